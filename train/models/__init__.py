"""Which network with which settings: recipes, checkpoints, the authors' checkpoints, baselines."""
