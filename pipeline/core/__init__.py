"""Foundations shared by all stages: paths, ids, atomic files, locks, Parquet tables, the ledger, the sample format."""
