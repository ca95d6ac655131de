"""A bundle's train and eval graphs in the layout of ONNX Runtime Training 1.19.

The layout, as ``onnxruntime.training.artifacts`` writes it: user inputs, parameters, a buffer per parameter into which
its gradient is added in place, and ``lazy_reset_grad``, which empties the buffers first. The loss is the mean, and the
gradient that of the mean: an application needs nothing but batch and labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.graph.edit import fix_names
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.program.link import link
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.plan import LOSS_SUM, LOSS_WEIGHT
from edgepeft_runtime.bundle.programs import EVAL, TRAIN
from edgepeft_runtime.bundle.specs import Bucket

MICROSOFT = "com.microsoft"
LOSS, RESET = "loss", "lazy_reset_grad"
_SMALLEST = float(np.finfo(np.float32).tiny)
"""Replaces a weight of 0. Where every label is ignored, loss and gradient are then 0 and not NaN."""


def training_model(bundle: Bundle) -> ir.Model:
    """``training_model.onnx``: returns ``loss``, ``loss_weight``, and whether each gradient was added."""
    model = loaded(bundle, TRAIN)
    graph = model.graph
    outputs = {str(value.name): value for value in graph.outputs}
    emit = Emitter(graph, scope="ort_training")
    weight = _weight(emit, outputs[LOSS_WEIGHT])
    # Multiplied, as in the portable engine's optimizer. On a quantized base a difference in rounding would grow.
    scale = emit.op("Reciprocal", weight)
    gradients: dict[str, ir.Value] = {}
    for bucket in bundle.manifest.buckets:
        flat = outputs[f"{bucket.name}.gradient"]
        gradients |= _parts(emit, emit.op("Mul", flat, scale), bucket, bundle)
    _mean_loss(emit, graph, outputs, weight)
    graph.outputs[2:] = []
    _accumulate(emit, gradients)
    return _cleaned(model)


def eval_model(bundle: Bundle) -> ir.Model:
    """``eval_model.onnx``: returns ``loss``, ``loss_weight`` and the model's outputs."""
    model = loaded(bundle, EVAL)
    outputs = {str(value.name): value for value in model.graph.outputs}
    emit = Emitter(model.graph, scope="ort_training")
    _mean_loss(emit, model.graph, outputs, _weight(emit, outputs[LOSS_WEIGHT]))
    return _cleaned(model)


def loaded(bundle: Bundle, program: str) -> ir.Model:
    """A program of the bundle as one graph that contains its frozen tensors."""
    return ir.external_data.load_to_model(link(bundle, program))


def _weight(emit: Emitter, weight: ir.Value) -> ir.Value:
    return emit.op("Max", weight, emit.scalar(_SMALLEST, like=weight))


def _parts(emit: Emitter, flat: ir.Value, bucket: Bucket, bundle: Bundle) -> dict[str, ir.Value]:
    """The gradient of each member of a bucket, by the member's name."""
    shapes = {spec.name: spec.sizes for spec in bundle.manifest.parameters}
    sizes = [int(np.prod(shapes[name])) for name in bucket.members]
    parts: Sequence[ir.Value] = [flat]
    if len(sizes) > 1:
        parts = emit.ops("Split", flat, emit.ints(*sizes), outputs=len(sizes), axis=0)
    members = zip(bucket.members, parts, strict=True)
    return {name: emit.op("Reshape", part, emit.ints(*shapes[name])) for name, part in members}


def _mean_loss(emit: Emitter, graph: ir.Graph, outputs: dict[str, ir.Value], weight: ir.Value) -> None:
    """Replace the sum of the loss, the first output, by its mean."""
    loss = emit.op("Div", outputs[LOSS_SUM], weight)
    loss.name, loss.shape, loss.dtype = LOSS, ir.Shape([]), ir.DataType.FLOAT
    graph.outputs[0] = loss


def _accumulate(emit: Emitter, gradients: dict[str, ir.Value]) -> None:
    """A buffer per parameter, to which its gradient is added in place."""
    graph = emit.graph
    parameters = {str(value.name): value for value in graph.inputs}
    reset = ir.Value(name=RESET, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.BOOL))
    for name, gradient in gradients.items():
        gradient.name, gradient.shape, gradient.dtype = f"{name}_grad", parameters[name].shape, ir.DataType.FLOAT
        buffer = ir.Value(
            name=f"{name}_grad.accumulation.buffer", shape=gradient.shape, type=ir.TensorType(ir.DataType.FLOAT)
        )
        graph.inputs.append(buffer)
        added = emit.op("InPlaceAccumulatorV2", buffer, gradient, reset, domain=MICROSOFT)
        added.name, added.shape, added.dtype = f"{name}_grad.accumulation.out", ir.Shape([1]), ir.DataType.BOOL
        graph.outputs.append(added)
    graph.inputs.append(reset)


def _cleaned(model: ir.Model) -> ir.Model:
    """Remove unused nodes."""
    common.RemoveUnusedNodesPass()(model)
    fix_names(model)
    common.RemoveUnusedOpsetsPass()(model)
    model.graph.opset_imports.setdefault(MICROSOFT, 1)
    return model
