"""How frames are augmented for training."""
