"""Folds pairs into quantized weights for good: the weights are dequantized, or rounded again as they were."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.fold.constants import fold_constants, load_all
from edgepeft_export.fold.matmuls import Product
from edgepeft_export.fold.pairs import Matrix, fold_lora
from edgepeft_export.fold.quantized_matmuls import PackedProduct, packed_product
from edgepeft_export.graph.edit import bind_inputs


def fold_quantized(model: ir.Model, parameters: Mapping[str, NDArray[np.generic]], *, again: bool) -> int:
    """Make the parameters of an inference graph part of it, in place. Returns the number of LoRA pairs folded.

    Args:
        again: round the weights again as they were; else they become float32.
    """
    load_all(model.graph)
    trained = bind_inputs(model.graph, parameters)
    trained |= fold_constants(model, trained)
    if again:
        folded = fold_lora(model, trained, packed_product, _pack, spare_masks=False)
        folded += fold_lora(model, trained)  # into what was not packed
    else:
        _unpack(model.graph)
        folded = fold_lora(model, trained, spare_masks=False)  # rounding has made zeros of its own
    model.graph.sort()
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    return folded


def _unpack(graph: ir.Graph) -> None:
    for node in list(graph):
        found = packed_product(node.outputs[0])
        if found is not None:
            found.unpack(graph)


def _pack(graph: ir.Graph, base: Product, matrix: Matrix) -> None:
    assert isinstance(base, PackedProduct)
    base.pack(graph, matrix)
