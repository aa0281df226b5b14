"""Reports: an HTML page about runs, and the papers' tables."""
