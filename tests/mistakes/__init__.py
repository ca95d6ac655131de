"""Typical mistakes of users, each made really by the command: ``python -m tests.mistakes --page docs/MISTAKES.md``."""
