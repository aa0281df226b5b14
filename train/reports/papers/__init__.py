"""The papers' tables with avpipe's figures beside them."""
