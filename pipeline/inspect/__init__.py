"""Questions about a root and a machine: progress, missing tools, duplicate recordings."""
