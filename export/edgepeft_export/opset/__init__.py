"""Which operators a device has: the kernels of the oldest ONNX Runtime release that edgepeft supports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import onnx
import onnx_ir as ir

from edgepeft_export.opset.types import Signature, signature_of, types_of
from edgepeft_runtime.errors import EdgepeftError

OPSET = 20
"""Operator set of every graph edgepeft writes: the first with Gelu; ONNX Runtime 1.19 runs up to 21."""

OPSET_4_BITS = 21
"""The first operator set with 4-bit tensors and scales of blocks; ONNX Runtime 1.19 runs it."""

IR_VERSION = 10
"""ONNX IR version of every graph edgepeft writes: the newest that ONNX Runtime 1.19 reads."""

MIN_ONNXRUNTIME = "1.19"


Kernel = tuple[int, int | None, Mapping[str, Sequence[str]]]
"""First and last version of an operator, and its element types by the name of the constraint."""


class UnsupportedOperator(EdgepeftError, code="unsupported-operator"):
    """A graph contains an operator that devices do not have, or not for its types."""

    def __init__(self, op_type: str, node: str, types: str = "") -> None:
        of_types = f" of {types}" if types else ""
        super().__init__(
            f"Op {op_type}{of_types} (node {node}) is not in the CPU build of onnxruntime {MIN_ONNXRUNTIME}.",
            context="Devices run stock onnxruntime, so the bundle would not load there.",
            hint=f"compute this part of the model in float32 or int64 (Op {op_type} has kernels for other types)."
            if types
            else f"replace {op_type} in the model by operators of ONNX opset {OPSET}.",
        )


def assert_runs_on_devices(model: ir.Model) -> None:
    """Raise ``UnsupportedOperator`` for the first node that stock onnxruntime (CPU) has no kernel for."""
    kernels, signatures = _registry()
    types = types_of(model, signatures)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        opset = model.graph.opset_imports.get(node.domain, 1)
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        candidates = [kernel for kernel in kernels.get(name, []) if _is_for(node, opset, kernel)]
        if _needs_no_kernel(node, opset):
            continue
        if not candidates:
            raise UnsupportedOperator(name, node.name or "?")
        signature = signature_of(node, opset, signatures)
        bound = types.bindings(node, signature) if signature is not None else {}
        if not any(_takes(kernel, bound) for kernel in candidates):
            raise UnsupportedOperator(name, node.name or "?", ", ".join(dict.fromkeys(bound.values())))


def has_kernel(name: str) -> bool:
    """Whether devices have an operator of that name, with its domain before it where that is not ONNX's."""
    return name in _registry()[0]


def _is_for(node: ir.Node, opset: int, kernel: Kernel) -> bool:
    first, last, _ = kernel
    if node.domain:
        return first <= opset
    if not onnx.defs.has(node.op_type, max_inclusive_version=opset):
        return False
    since: int = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset).since_version
    return first <= since and (last is None or since <= last)


def _needs_no_kernel(node: ir.Node, opset: int) -> bool:
    """Whether onnxruntime folds the node (a constant) or may expand it, since ONNX defines it by other operators."""
    if node.domain or not onnx.defs.has(node.op_type, max_inclusive_version=opset):
        return False
    schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset)
    return node.op_type == "Constant" or bool(schema.has_function or schema.has_context_dependent_function)


def _takes(kernel: Kernel, bound: Mapping[str, str]) -> bool:
    """Whether a kernel supports all types of a node. A constraint that the kernel does not name is free."""
    return all(dtype in kernel[2].get(kind, (dtype,)) for kind, dtype in bound.items())


@cache
def _registry() -> tuple[dict[str, list[Kernel]], dict[str, Signature]]:
    """The CPU kernels of onnxruntime 1.19.2, as its registry lists them, and the signatures of its own operators."""
    read = json.loads(files(__package__).joinpath("onnxruntime_1_19_cpu.json").read_text("utf-8"))
    kernels = {
        name: [(first, last, types) for first, last, types in entries] for name, entries in read["kernels"].items()
    }
    return kernels, {name: (inputs, outputs) for name, (inputs, outputs) in read["signatures"].items()}
