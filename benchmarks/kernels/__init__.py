"""What ONNX Runtime's kernels cost on the shapes of train graphs."""
