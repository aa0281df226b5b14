"""The `avpipe` command."""
