"""Taggers of tokens: an embedding, two recurrent layers in both directions, a head; random weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import edgepeft
from benchmarks.cases.base import MAIN, Batch, Case

VOCABULARY, WIDTH, TAGS, ROWS, LENGTH = 8192, 128, 17, 8, 128


class Tagger(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Token ids [n, length] to scores [n, length, tags]."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = kind(WIDTH, WIDTH, num_layers=2, bidirectional=True, batch_first=True)
        self.classifier = nn.Linear(2 * WIDTH, TAGS)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.classifier(self.rnn(self.embedding(input_ids))[0])


def _source(kind: type[nn.RNNBase]) -> edgepeft.Source:
    torch.manual_seed(0)
    return edgepeft.Source(Tagger(kind).eval(), {"input_ids": torch.zeros(2, LENGTH, dtype=torch.long)})


def _batch() -> Batch:
    draw = np.random.default_rng(0)
    ids = draw.integers(0, VOCABULARY, (ROWS, LENGTH))
    return {"input_ids": ids, "labels": draw.integers(0, TAGS, ids.shape)}


def _case(kind: type[nn.RNNBase]) -> Case:
    return Case(
        summary=f"{kind.__name__} of 2 layers of width {WIDTH} in both directions, LoRA r=8, batch {ROWS} x {LENGTH}",
        source=partial(_source, kind),
        method=edgepeft.Lora(rank=8, modules_to_save=("classifier",)),
        batch=_batch,
        sides=MAIN,
    )


LSTM, GRU = _case(nn.LSTM), _case(nn.GRU)
