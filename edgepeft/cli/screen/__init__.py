"""The output of the command: results, progress, notices, and how much of them."""
