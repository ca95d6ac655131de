"""The last step of every graph: operators of devices, without unused and repeated nodes, checked."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.errors import DequantizedTensor
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.graph.edit import fix_names
from edgepeft_export.graph.shapes import forget_names, input_names
from edgepeft_export.opset import IR_VERSION, OPSET, assert_runs_on_devices

LARGE = 4096
"""Elements. Constants that gradient rules emit are smaller."""


def finish(model: ir.Model, known: Collection[str]) -> None:
    """Lower a graph to what devices run, in place.

    Args:
        model: may have operators of our own.
        known: names of the tensors of the model and its loss.

    Raises:
        UnsupportedOperator: the graph contains an operator that devices do not have.
        DequantizedTensor: the graph stores a float copy of a quantized tensor.
    """
    lower(model)
    sweep(model)
    for body in model.graph.subgraphs():
        forget_names(body, input_names(model.graph))
    check(model, known)


def sweep(model: ir.Model) -> None:
    """Remove unused nodes, merge equal ones, and name every node uniquely."""
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    fix_names(model)
    common.RemoveUnusedOpsetsPass()(model)
    model.graph.opset_imports.setdefault("", OPSET)
    model.ir_version, model.producer_name = IR_VERSION, "edgepeft"
    common.ClearMetadataAndDocStringPass()(model)


def check(model: ir.Model, known: Collection[str]) -> None:
    """Check that devices can run a finished graph, and that it stores no large float tensors but known ones."""
    assert_runs_on_devices(model)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.size > LARGE and name not in known:
            raise DequantizedTensor(
                f"The graph would store {name}, {tensor.size:,} float elements, besides the quantized base.",
                context=f"read by {', '.join(str(use.node.name) for use in value.uses())}",
                hint="this is a defect of a gradient rule: please report the model's operators.",
            )
