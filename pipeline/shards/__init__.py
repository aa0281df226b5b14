"""Stage 3: samples to WebDataset tars with one index; verified and copied."""
