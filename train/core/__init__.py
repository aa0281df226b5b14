"""What every part of training stands on: ranks, safe loading, schemas."""
