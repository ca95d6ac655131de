"""The data and the model of both fleet examples: unevenly distributed texts, and MiniLM to classify them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from docstring_topics import CLASSES, minilm
from docstrings import Example, collect, split
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel

import edgepeft
from edgepeft_export.optimizers import AdamW

TRAIN, TEST, LENGTH = 1600, 400, 32
SKEW = 0.5
"""Concentration of the Dirichlet distribution of each topic over devices: the smaller, the less alike they are."""


def texts(devices: int) -> tuple[list[list[Example]], dict[str, np.ndarray]]:
    """The devices' parts, each topic drawn by its own distribution, and the held-out texts, as arrays."""
    train, test = split(collect())
    train, test = train[:TRAIN], test[:TEST]
    draw = np.random.default_rng(0)
    shares: list[list[Example]] = [[] for _ in range(devices)]
    for topic in CLASSES:
        owner = draw.choice(devices, sum(label == topic for _, label in train), p=draw.dirichlet([SKEW] * devices))
        for device, example in zip(owner, (example for example in train if example[1] == topic), strict=True):
            shares[device].append(example)
    return shares, encode(test)


def encode(examples: list[Example]) -> dict[str, np.ndarray]:
    """Token ids and labels, as a device's own software would pass them, so that the device needs no tokenizer."""
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch([text for text, _ in examples])
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        "labels": np.array([CLASSES.index(label) for _, label in examples], np.int64),
    }


class Topics(nn.Module):
    """MiniLM, the mean of its states over a text, and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(minilm())
        self.classifier = nn.Linear(self.encoder.config.hidden_size, len(CLASSES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counts = attention_mask[..., None].to(states.dtype)
        return self.classifier((states * counts).sum(1) / counts.sum(1))


def prepare(work: Path) -> Path:
    print("workstation: prepare MiniLM with LoRA r=8 on query and value, its base in int8")
    torch.manual_seed(0)
    ids = torch.ones(2, LENGTH, dtype=torch.int64)
    return edgepeft.prepare(
        Topics().eval(),
        {"input_ids": ids, "attention_mask": ids},
        method=edgepeft.Lora(rank=8, alpha=16, target_modules=("query", "value")),
        compute="int8",
        optimizer=AdamW(lr=5e-3, max_grad_norm=1.0),
        classes=CLASSES,
        out=work / "bundle",
    ).bundle
