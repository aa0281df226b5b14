"""Readers of untrusted tars and zips, plain or compressed, damaged anywhere."""
