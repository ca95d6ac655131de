"""Recurrent networks: classifiers over token ids whose rows end where they end, and a speech model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from edgepeft import over_lengths
from tests.support.networks import SIZES, Batch, Network

VOCABULARY, CLASSES, FRAMES, FEATURES = 53, 4, 9, 12


class LstmClassifier(nn.Module):
    """Two layers in both directions over rows that end before their padding; the last states go to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 10)
        self.rnn = nn.LSTM(10, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.classifier = nn.Linear(32, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states, (last, _) = over_lengths(self.rnn, self.embedding(input_ids), attention_mask.sum(1))
        mean = states.sum(1) / attention_mask.sum(1, keepdim=True)
        return self.classifier(torch.cat([mean, last[-2], last[-1]], dim=-1))


class GruClassifier(nn.Module):
    """Two layers in both directions over whole rows, including padding; the rest is pooled for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 10)
        self.rnn = nn.GRU(10, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.classifier = nn.Linear(32, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states, _ = self.rnn(self.embedding(input_ids))
        mask = attention_mask[:, :, None].to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1)
        highest = (states + (mask - 1) * 2).amax(1)  # states are between -1 and 1
        return self.classifier(torch.cat([mean, highest], dim=-1))


class CnnGru(nn.Module):
    """Convolutions over time and frequency, then a GRU over time, read where each row ends: keyword spotting."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=(1, 2), padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.gru = nn.GRU(6 * FEATURES // 2, 9, batch_first=True)
        self.project = nn.Linear(9, 7)
        self.classifier = nn.Linear(7, CLASSES)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """``features`` is [batch, frames, frequencies]; ``lengths`` [batch] counts the frames of each row."""
        x = torch.relu(self.norm(self.conv(features[:, None])))  # [batch, 6, frames, frequencies / 2]
        states, _ = self.gru(x.transpose(1, 2).flatten(2))
        last = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        return self.classifier(torch.tanh(self.project(states.gather(1, last)[:, 0])))


def _made(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return kind()

    return make


def _ids() -> Batch:
    ids = torch.randint(1, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _id_batches(count: int) -> Iterator[tuple[Batch, Tensor]]:
    draw = torch.Generator().manual_seed(2)
    for step in range(count):
        rows, longest = SIZES[step % len(SIZES)]
        lengths = torch.randint(1, longest + 1, (rows, 1), generator=draw)
        mask = (torch.arange(longest) < lengths).long()
        ids = torch.randint(1, VOCABULARY, (rows, longest), generator=draw) * mask
        yield {"input_ids": ids, "attention_mask": mask}, torch.randint(0, CLASSES, (rows,), generator=draw)


def _speech(rows: int, frames: int, draw: torch.Generator) -> Batch:
    lengths = torch.randint(1, frames + 1, (rows,), generator=draw)
    return {"features": torch.randn(rows, frames, FEATURES, generator=draw), "lengths": lengths}


def _speech_batches(count: int) -> Iterator[tuple[Batch, Tensor]]:
    draw = torch.Generator().manual_seed(4)
    for step in range(count):
        rows = SIZES[step % len(SIZES)][0]
        yield _speech(rows, FRAMES, draw), torch.randint(0, CLASSES, (rows,), generator=draw)


NETWORKS: dict[str, Network] = {
    "lstm": Network(_made(LstmClassifier), _ids, _id_batches, "cross_entropy", ("rnn",)),
    "gru": Network(_made(GruClassifier), _ids, _id_batches, "cross_entropy", ("rnn",)),
    "cnn_gru": Network(
        _made(CnnGru),
        lambda: _speech(2, FRAMES, torch.Generator().manual_seed(4)),
        _speech_batches,
        "cross_entropy",
        ("gru", "conv", "project"),
    ),
}
