"""Data of any kind as batches of arrays."""
