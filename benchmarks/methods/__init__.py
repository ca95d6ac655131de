"""Every method on one task, side by side: ``python -m benchmarks.methods``."""
