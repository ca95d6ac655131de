"""The documentation's shell and Python blocks, run as a reader runs them: ``python -m tests.blocks``."""
