"""Training: the loop, its checkpoints and logs, selection of the best epoch, the benchmark."""
