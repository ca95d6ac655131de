"""Forward graphs from ``.onnx`` files."""
