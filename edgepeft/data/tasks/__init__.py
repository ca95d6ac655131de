"""Tasks: what a model reads, what it learns, and how data becomes both. A task is a file in ``builtin``."""
