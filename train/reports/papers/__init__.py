"""The papers' tables with avpipe's results next to the published ones."""
