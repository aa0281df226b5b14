"""One HTML page about evaluated runs."""
