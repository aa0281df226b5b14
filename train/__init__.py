"""Training and evaluation on the shards of `pipeline`. Imports no media decoder."""
