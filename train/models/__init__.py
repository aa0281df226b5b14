"""Models: recipes, checkpoints, the authors' checkpoints, baselines."""
