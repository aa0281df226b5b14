"""Which clips there should be: the official lists, checked, parsed and joined into three tables."""
