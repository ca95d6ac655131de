"""Networks on rows of a table: transactions that may be fraud, and a recommender of items to users."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tests.support.networks import SIZES, Batch, Network

USERS, ITEMS = 30, 50


class Fraud(nn.Module):
    """An MLP with layer norm on twelve numbers of a transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, row: Tensor) -> Tensor:
        return self.head(self.body(row))


class Recommender(nn.Module):
    """Tables of users and items, and an MLP over both: does a user like an item?"""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(USERS, 8)
        self.items = nn.Embedding(ITEMS, 8)
        self.body = nn.Sequential(nn.Linear(24, 16), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        one, other = self.users(user), self.items(item)
        return self.head(self.body(torch.cat([one, other, one * other], dim=-1)))


def fraud() -> nn.Module:
    torch.manual_seed(0)
    return Fraud()


def recommender() -> nn.Module:
    torch.manual_seed(0)
    return Recommender()


def _rows(count: int) -> Iterator[tuple[Batch, Tensor]]:
    draw = torch.Generator().manual_seed(4)
    for step in range(count):
        rows = SIZES[step % len(SIZES)][0]
        yield {"row": torch.randn(rows, 12, generator=draw)}, torch.randint(0, 2, (rows,), generator=draw)


def _pairs(count: int) -> Iterator[tuple[Batch, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    for step in range(count):
        rows = SIZES[step % len(SIZES)][0]
        user, item = (torch.randint(0, size, (rows,), generator=draw) for size in (USERS, ITEMS))
        yield {"user": user, "item": item}, torch.randint(0, 2, (rows,), generator=draw)


NETWORKS: dict[str, Network] = {
    "mlp": Network(fraud, lambda: {"row": torch.zeros(2, 12)}, _rows, "cross_entropy", ("body.0", "body.3")),
    "recommender": Network(
        recommender,
        lambda: {"user": torch.tensor([0, 1]), "item": torch.tensor([2, 3])},
        _pairs,
        "cross_entropy",
        ("users", "items", "body.0"),
    ),
}
