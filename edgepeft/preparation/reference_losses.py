"""Compute a reference for a compiled loss: by torch's function of that name, else by the loss's own nodes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnx_ir.passes import common
from torch import Tensor

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses import Loss
from edgepeft_export.losses.entropy import write_cross_entropies
from edgepeft_export.opset import IR_VERSION, OPSET
from edgepeft_export.verification import GraphRun
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.files.tensorfile import Array


def _cross_entropy(output: Tensor, labels: Tensor, settings: Json) -> Tensor:
    weights = settings.get("class_weights")
    return F.cross_entropy(
        output.movedim(settings.get("class_axis", -1), 1),
        labels,
        None if weights is None else torch.tensor(weights),
        ignore_index=settings["ignore_index"],
        label_smoothing=settings["label_smoothing"],
    )


def _causal_lm(output: Tensor, labels: Tensor, settings: Json) -> Tensor:
    return _cross_entropy(output[:, :-1], labels[:, 1:], settings)


def _bce(output: Tensor, labels: Tensor, settings: Json) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, labels, pos_weight=torch.tensor(settings["pos_weight"]))


TORCH_LOSSES: Mapping[str, Callable[[Tensor, Tensor, Json], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "causal_lm": _causal_lm,
    "bce_with_logits": _bce,
    "mse": lambda output, labels, _: F.mse_loss(output, labels),
    "l1": lambda output, labels, _: F.l1_loss(output, labels),
}
"""Torch's mean loss of an output, its labels and the settings in a manifest, by the name of the loss."""


def loss_alone(loss: Loss, outputs: Mapping[str, Array], labels: Mapping[str, Array]) -> float:
    """Run the nodes that a loss emits on labels and on a model's outputs, which were compared with torch."""
    values = {name: _input(name, array) for name, array in {**outputs, **labels}.items()}
    graph = ir.Graph(list(values.values()), [], nodes=[], opset_imports={"": OPSET}, name="loss")
    terms = loss.emit(Emitter(graph), *({name: values[name] for name in part} for part in (outputs, labels)))
    graph.outputs.extend(terms)
    model = write_cross_entropies(ir.Model(graph, ir_version=IR_VERSION))
    common.NameFixPass()(model)
    total, weight = GraphRun(model)({**outputs, **labels}).values()
    return float(total) / float(weight)


def _input(name: str, array: Array) -> ir.Value:
    dtype = ir.DataType.from_numpy(array.dtype)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
