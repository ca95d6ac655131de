"""Every reader of untrusted files, fed changed files: each is read, or refused with an error of ours.

``tests/test_fuzz.py`` tries some hundred changes per reader; ``python -m tests.fuzz --inputs 100000 --page
docs/FUZZING.md`` tries many, and writes what it has found. A new reader gets a line in ``targets.py``.
"""
