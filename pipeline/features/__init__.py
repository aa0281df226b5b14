"""Audio features: named specs, mel filter banks, the settings that choose them."""
