"""Compare the accuracy of on-device fine-tuning with PyTorch in fp32: ``python -m benchmarks.accuracy``."""
