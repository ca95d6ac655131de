"""What the command writes: results, progress, notices, and how much of them."""
