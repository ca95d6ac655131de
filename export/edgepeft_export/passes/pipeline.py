"""Runs the passes that bring a forward graph into the form that the gradient rules handle best."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.graph.kernels import dequantize_once
from edgepeft_export.graph.shapes import infer_missing_shapes, infer_shapes
from edgepeft_export.passes import (
    drop_guards,
    drop_identities,
    gather_scales,
    multiply_by_taps,
    name_squeezed_axes,
    narrow,
    pad_pools,
    share_transposed,
    single_precision,
    stack_convolutions,
    transpose_last_two,
    write_out_prelus,
)
from edgepeft_runtime.notices import notice


def widen(model: ir.Model) -> bool:
    """Convert a graph to float32, with a notice. Returns whether it computed in half precision."""
    halves = single_precision(model)
    if halves:
        notice(f"The model computes in {', '.join(halves)}: its graph is brought to float32, in which devices compute.")
    return bool(halves)


def tidy(model: ir.Model) -> ir.Model:
    """Run the passes in place, and infer shapes between them. The model computes the same, up to rounding."""
    common.RemoveUnusedNodesPass()(model)
    drop_identities(model)
    infer_shapes(model)
    while name_squeezed_axes(model):
        infer_shapes(model)
    for edit in (pad_pools, drop_guards, transpose_last_two, gather_scales, narrow, share_transposed):
        if edit(model):
            common.RemoveUnusedNodesPass()(model)
            infer_missing_shapes(model)
    common.NameFixPass()(model)
    return model


def tune(model: ir.Model) -> bool:
    """Run the passes of train graphs that follow the gradient, in place. Returns whether one has changed something."""
    changed = [
        stack_convolutions(model),
        multiply_by_taps(model),
        write_out_prelus(model),
        dequantize_once(model.graph),
    ]
    return any(changed)
