"""On the workstation: merge the update into an ordinary ONNX model."""

import edgepeft

print(edgepeft.merge("bundle", "update.safetensors", to="onnx", out="merged.onnx", overwrite=True))
