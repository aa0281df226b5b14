"""Foundations of the training package: ranks, safe loading, schemas."""
