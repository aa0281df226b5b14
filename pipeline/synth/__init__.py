"""A synthetic corpus of real mp4 files whose boxes are known."""
