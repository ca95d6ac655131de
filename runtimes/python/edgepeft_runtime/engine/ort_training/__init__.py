"""The engine on ONNX Runtime Training."""
