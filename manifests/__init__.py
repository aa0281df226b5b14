"""What defines the data: the catalogue of official lists and the splits they give."""
