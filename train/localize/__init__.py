"""Heat maps over any video."""
