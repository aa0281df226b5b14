"""Stage 1: clips out of YouTube, addresses, folders and archives."""
