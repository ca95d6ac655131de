"""Write the models that onnxsim and ExecuTorch, each in its own environment, make their steps from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.official_forward import Scores, make_distinct, write_out_attention

OPSET = 17
"""Of onnxsim's step graphs. Layer norm is one operator in it."""
ROWS = "labels.npy"
"""File of the labels of a batch, one for each row of the scores."""


def row_labels(loss: str, labels: np.ndarray) -> np.ndarray:
    """Labels for scores of shape [rows, classes]: those of the next tokens for a causal model."""
    return (labels[:, 1:] if loss == "causal_lm" else labels).reshape(-1)


class _Loss(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """A model fed in order, the labels of its rows last; it returns its loss."""

    def __init__(self, model: nn.Module, names: list[str], causal: bool) -> None:
        super().__init__()
        self.scores = Scores(model, names, causal)

    def forward(self, *inputs: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.scores(*inputs[:-1]), inputs[-1])


def write_onnxsim(model: nn.Module, inputs: Mapping[str, Tensor], loss: str, folder: Path) -> None:
    """Write ``forward.onnx``, whose parameters have distinct values, and ``first.npz``, what they start from."""
    folder.mkdir()
    write_out_attention(model)
    scores = Scores(model, list(inputs), loss == "causal_lm").eval()
    parameters = {name: p for name, p in scores.named_parameters() if p.requires_grad}
    first = {name: p.detach().numpy().copy() for name, p in parameters.items()}
    make_distinct(parameters)
    torch.onnx.export(
        scores,
        tuple(inputs.values()),
        str(folder / "forward.onnx"),
        input_names=list(inputs),
        output_names=["logits"],
        opset_version=OPSET,
        do_constant_folding=False,
        dynamo=False,
    )
    np.savez(folder / "first.npz", allow_pickle=False, **first)


def write_executorch(model: nn.Module, inputs: Mapping[str, Tensor], loss: str, folder: Path) -> None:
    """Write ``loss.pt2``, an exported program whose result is the loss, and ``names.json``, its inputs in order."""
    folder.mkdir()
    write_out_attention(model)
    labels = torch.from_numpy(np.load(folder.parent / ROWS))
    whole = _Loss(model, list(inputs), loss == "causal_lm").eval()
    torch.export.save(torch.export.export(whole, (*inputs.values(), labels)), folder / "loss.pt2")
    (folder / "names.json").write_text(json.dumps(list(inputs)), encoding="utf-8")
