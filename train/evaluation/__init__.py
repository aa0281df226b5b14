"""Evaluation: protocols, metrics, confidence intervals, groups of clips, retrieval."""
