"""Where parts of a stage run: worker processes of this machine, or a Ray cluster."""
