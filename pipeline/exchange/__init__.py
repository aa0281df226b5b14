"""Layouts that other code reads and writes, in and out."""
