"""Where raw clips come from: YouTube, addresses, tars, folders."""
