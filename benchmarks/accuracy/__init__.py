"""Accuracy of what a device fine-tunes, against PyTorch in fp32: ``python -m benchmarks.accuracy``."""
