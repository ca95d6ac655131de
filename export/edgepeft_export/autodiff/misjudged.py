"""Sizes that ONNX's shape inference has wrong are forgotten, so that rules ask the run for them."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import NoGradientForCase, full_name
from edgepeft_export.autodiff.rules.einsum import misjudged_sizes
from edgepeft_export.shapes import dims_of


def forget_misjudged_sizes(graph: ir.Graph) -> None:
    """Of Einsum's output, inference gives an index the size of the first operand that has it; others may broadcast it.

    The name of such a size is taken from all values computed from the output.
    """
    names: set[str] = set()
    computed: set[ir.Value] = set()
    for node in graph:
        found = _misjudged(node)
        names |= found
        if found or any(value in computed for value in node.inputs):
            computed.update(node.outputs)
            for output in node.outputs:
                _forget(output, names)


def _misjudged(node: ir.Node) -> set[str]:
    try:
        return misjudged_sizes(node) if full_name(node) == "Einsum" else set()
    except NoGradientForCase:  # of no matter where no gradient crosses it
        return set()


def _forget(value: ir.Value, names: set[str]) -> None:
    if value.shape is not None and any(dim in names for dim in dims_of(value)):
        value.shape = ir.Shape([None if dim in names else dim for dim in dims_of(value)])
