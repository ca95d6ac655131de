"""Runs the notebooks of the examples: ``python -m tests.notebooks`` stores what their cells show."""
