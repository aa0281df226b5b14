"""Stage 2: clips to samples (frame, audio, features) in the cache."""
