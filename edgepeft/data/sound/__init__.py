"""Recordings: ``.wav`` files are read by the standard library, resampled and normalized with numpy."""
