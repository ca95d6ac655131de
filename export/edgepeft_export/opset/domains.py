"""Domains of operators beside ONNX's own."""

from __future__ import annotations

DOMAIN = "edgepeft"
"""Operators of our own, which live only while a graph is compiled."""

CONTRIB = "com.microsoft"
"""Operators that onnxruntime adds."""

ML = "ai.onnx.ml"
"""ONNX's operators of classical machine learning."""
