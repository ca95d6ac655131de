"""Export a forward graph that ONNX Runtime's own gradient builder accepts.

The builder does not support the LayerNormalization operator, so the graph is exported at opset 14, where layer norm
is decomposed; only torch's older exporter can do that. That exporter merges equal initializers, which would tie
adapters together and give the builder two gradients of one name. Parameters are therefore exported with distinct
values and reset afterwards. BatchNorm, which the builder would train with batch statistics, is decomposed with its
running statistics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

OPSET = 14


class Scores(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """A model fed in order, whose scores are [rows, classes]: for a causal model, of all positions but the last."""

    def __init__(self, model: nn.Module, names: list[str], causal: bool) -> None:
        super().__init__()
        self.model, self._names, self._causal = model, names, causal

    def forward(self, *inputs: Tensor) -> Tensor:
        result = self.model(**dict(zip(self._names, inputs, strict=True)))
        logits: Tensor = result if isinstance(result, Tensor) else result.logits
        return (logits[:, :-1] if self._causal else logits).flatten(0, -2)


def write_forward(model: nn.Module, inputs: Mapping[str, Tensor], loss: str, folder: Path) -> None:
    """Write ``forward.onnx`` and ``names.json`` (``trainable`` and ``inputs``); ``model`` is used up.

    Args:
        model: with its adapters, in eval mode.
        inputs: arguments by name, of the sizes it will be fed.
        loss: ``cross_entropy`` or ``causal_lm``.
    """
    folder.mkdir()
    write_out_attention(model)
    _write_out_norms(model)
    wrapped = Scores(model, list(inputs), loss == "causal_lm").eval()
    parameters = dict(wrapped.named_parameters())
    trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
    first = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    make_distinct(parameters)
    path = folder / "forward.onnx"
    torch.onnx.export(
        wrapped,
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=["logits"],
        opset_version=OPSET,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        dynamo=False,
    )
    graph = onnx.load(str(path))
    _set_initializers(graph, first, trainable)
    onnx.save(graph, str(path))
    fed = [value.name for value in graph.graph.input]
    (folder / "names.json").write_text(json.dumps({"trainable": trainable, "inputs": fed}), encoding="utf-8")


def write_out_attention(model: nn.Module) -> None:
    """Attention as matmuls and a softmax, as other engines have no gradient of the whole."""
    if hasattr(model, "config"):
        model.config._attn_implementation = "eager"


class _Affine(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """BatchNorm2d with frozen statistics: [n, c, h, w] times a scale per channel plus an offset."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("offset", -norm.running_mean * scale)
        self.bias = norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + (self.offset + self.bias).view(-1, 1, 1)


def _write_out_norms(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _Affine(child))


def make_distinct(parameters: Mapping[str, nn.Parameter]) -> None:
    """Draw all values, so that no two tensors are equal."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))


def _set_initializers(model: onnx.ModelProto, values: Mapping[str, Tensor], needed: Sequence[str]) -> None:
    there = {tensor.name: tensor for tensor in model.graph.initializer}
    gone = [name for name in needed if name not in there]
    if gone:
        raise ValueError(f"the exporter kept no initializer for {gone[0]} and {len(gone) - 1} more that train")
    for name in there.keys() & values.keys():
        there[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[name].numpy()), name))
