"""Training: the loop, its checkpoints and logs, the choice of the best epoch, the benchmark."""
