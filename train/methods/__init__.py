"""One file per paper: network and loss."""
