"""The compiler: a forward graph, its loss and its gradient become the ONNX graphs of a bundle."""
