"""Folds trained tensors into an inference graph: a graph with its parameters in, a plain model out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.fold.constants import fold_constants, load_all
from edgepeft_export.fold.pairs import fold_lora
from edgepeft_export.graph.edit import bind_inputs

__all__ = ["fold"]


def fold(model: ir.Model, parameters: Mapping[str, NDArray[np.generic]]) -> int:
    """Make the parameters of an inference graph part of it, in place. Returns the number of LoRA pairs folded."""
    trained = bind_inputs(model.graph, parameters)
    folded = fold_lora(model, trained | fold_constants(model, trained))
    common.RemoveUnusedNodesPass()(model)
    load_all(model.graph)
    return folded
