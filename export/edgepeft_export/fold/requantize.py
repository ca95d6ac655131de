"""Folds pairs into quantized weights. The weights are dequantized, or rounded again as before."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.fold.constants import fold_constants, load_all
from edgepeft_export.fold.pairs import fold_lora
from edgepeft_export.graph.constants import new_initializer
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.graph.edit import bind_inputs, replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.linear import LinearSite


def fold_quantized(model: ir.Model, parameters: Mapping[str, NDArray[np.generic]], *, again: bool) -> int:
    """Make the parameters of an inference graph part of it, in place. Returns the number of LoRA pairs folded.

    Args:
        again: round the weights again as before; else they become float32.
    """
    load_all(model.graph)
    trained = bind_inputs(model.graph, parameters)
    trained |= fold_constants(model, trained)
    if not again:
        for linear in quantized_layers(model.graph):
            _dequantize(model.graph, linear)
    # Rounding makes zeros of its own, so masks cannot be recognized. The caller has refused them.
    folded = fold_lora(model, trained, into_quantized=again, spare_masks=again)
    lower(model)  # 4-bit matrices that were rounded again
    model.graph.sort()
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    return folded


def quantized_layers(graph: ir.Graph) -> list[LinearSite]:
    """The linear layers whose weight can be dequantized, or rounded again."""
    layers = [linear for node in graph if (linear := LinearSite.of(node)) is not None]
    return [linear for linear in layers if linear.storage in ("int8", "int4", "blocks")]


def _dequantize(graph: ir.Graph, linear: LinearSite) -> None:
    """Replace the weight by a float32 one. New nodes are appended at the end."""
    weight = new_initializer(graph, f"{linear.weight.name}.dequantized", linear.matrix().astype(np.float32))
    if linear.is_conv:
        linear.node.replace_input_with(1, weight)
        return
    emit = Emitter(graph, scope=str(linear.node.name))
    result = emit.op("MatMul", linear.x, weight)
    replace_value(linear.result, result if linear.bias is None else emit.op("Add", result, linear.bias))
