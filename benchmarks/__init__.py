"""Compare time and memory with peers in one run: ``python -m benchmarks``."""
