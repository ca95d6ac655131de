"""Which operators a device has: the kernels of the oldest ONNX Runtime release that edgepeft supports."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import onnx
import onnx_ir as ir

from edgepeft_runtime.errors import EdgepeftError

OPSET = 20
"""Operator set of every graph edgepeft writes: the first with Gelu; ONNX Runtime 1.19 runs up to 21."""

IR_VERSION = 10
"""ONNX IR version of every graph edgepeft writes: the newest that ONNX Runtime 1.19 reads."""

MIN_ONNXRUNTIME = "1.19"


class UnsupportedOperator(EdgepeftError):
    """A graph holds an operator that devices do not have."""

    def __init__(self, op_type: str, node: str) -> None:
        super().__init__(
            "unsupported-operator",
            f"Op {op_type} (node {node}) is not in the CPU build of onnxruntime {MIN_ONNXRUNTIME}.",
            context="Devices run stock onnxruntime, so the bundle would not load there.",
            hint=f"replace {op_type} in the model by operators of ONNX opset {OPSET}.",
        )


def assert_runs_on_devices(model: ir.Model) -> None:
    """Raise :class:`UnsupportedOperator` for the first node that stock onnxruntime (CPU) has no kernel for."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if not _has_kernel(node.domain, node.op_type, model.graph.opset_imports.get(node.domain, 1)):
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise UnsupportedOperator(name, node.name or "?")


def _has_kernel(domain: str, op_type: str, opset: int) -> bool:
    if not domain and op_type == "Constant":
        return True  # no kernel: onnxruntime makes it an initializer when it loads the graph
    ranges = _kernels().get(f"{domain}.{op_type}" if domain else op_type, [])
    if domain:
        return any(first <= opset for first, _ in ranges)
    if not onnx.defs.has(op_type, max_inclusive_version=opset):
        return False
    schema = onnx.defs.get_schema(op_type, max_inclusive_version=opset)
    since = schema.since_version
    if any(first <= since and (last is None or since <= last) for first, last in ranges):
        return True
    # onnxruntime expands an operator it has no kernel for where ONNX defines it by other operators.
    return bool(schema.has_function or schema.has_context_dependent_function)


@cache
def _kernels() -> dict[str, list[tuple[int, int | None]]]:
    """The CPU kernels of onnxruntime 1.19.2: operator to ranges of ``since_version``, as its registry lists them."""
    text = files(__package__).joinpath("onnxruntime_1_19_cpu.json").read_text("utf-8")
    return {op: [(first, last) for first, last in ranges] for op, ranges in json.loads(text).items()}
