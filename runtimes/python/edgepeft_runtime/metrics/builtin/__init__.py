"""The metrics, one class each, found by their files."""
