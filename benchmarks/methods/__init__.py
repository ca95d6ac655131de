"""Compare every method on one task: ``python -m benchmarks.methods``."""
