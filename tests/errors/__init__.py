"""The catalogue of errors; ``python -m tests.errors`` writes ``docs/ERRORS.md`` from the classes."""
