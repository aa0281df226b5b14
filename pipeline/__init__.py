"""The data pipeline: lists → manifest → download → extract → shard. Imports no torch."""
