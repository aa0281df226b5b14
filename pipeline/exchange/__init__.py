"""What other code reads and writes: its layouts in and out."""
