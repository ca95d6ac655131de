"""Optimizers as ONNX graphs."""

from edgepeft_export.optimizers.base import Bucket, Optimizer, OptimizerError, optimizer_graph, plan_buckets
from edgepeft_export.optimizers.rules import SGD, AdamW, by_name
from edgepeft_export.optimizers.sparsified import Sparsified

__all__ = [
    "SGD",
    "AdamW",
    "Bucket",
    "Optimizer",
    "OptimizerError",
    "Sparsified",
    "by_name",
    "optimizer_graph",
    "plan_buckets",
]
