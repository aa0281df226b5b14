"""From maps to measured numbers: protocols, metrics, intervals, groups, retrieval."""
