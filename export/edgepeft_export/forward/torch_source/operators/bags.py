"""Exports ``embedding_bag`` as the rows of its table and their sum, mean or maximum.

The exporter writes a loop over the bags that appends to a sequence of tensors, which no gradient crosses.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepeft_export.forward.function_mode import Function, FunctionMode


class EmbeddingBags(FunctionMode):
    """While active, a bag of embeddings is written by other operators, for any number of tokens and bags."""

    def call(self, function: Function, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> object:
        if function is not F.embedding_bag or kwargs.get("max_norm") is not None:  # which changes the table
            return function(*args, **kwargs)
        return _bags(*args, **kwargs)


def _bags(
    ids: Tensor,
    table: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,  # noqa: ARG001  # there is none
    norm_type: float = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,  # noqa: ARG001  # as nn.Embedding does: graphs have the exact gradient
    mode: str = "mean",
    sparse: bool = False,  # noqa: ARG001
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """The arguments are those of ``torch.nn.functional.embedding_bag``."""
    rows = F.embedding(ids, table)
    counted = torch.ones_like(ids, dtype=table.dtype) if padding_idx is None else (ids != padding_idx).to(table.dtype)
    weights = counted if per_sample_weights is None else counted * per_sample_weights
    if offsets is None:
        bags: _OfRows | _OfRanges = _OfRows()
    else:
        count = offsets.shape[0] - include_last_offset
        bags = _OfRanges(ids, offsets[:count] if mode == "max" else offsets, count)
    if mode == "max":
        lowest = (1.0 - counted).unsqueeze(-1) * torch.finfo(table.dtype).min
        return bags.largest(rows * counted.unsqueeze(-1) + lowest) * bags.total(counted.unsqueeze(-1)).clamp(max=1.0)
    total = bags.total(rows * weights.unsqueeze(-1))
    return total if mode == "sum" else total / bags.total(counted.unsqueeze(-1)).clamp(min=1.0)


class _OfRows:
    """Bags of one size: each row of the ids, [bags, tokens]."""

    def total(self, values: Tensor) -> Tensor:
        return values.sum(1)

    def largest(self, values: Tensor) -> Tensor:
        return values.amax(1)


class _OfRanges:
    """Bags that are ranges of the ids, [tokens], by the position at which each begins. A bag may be empty.

    A further start is the end of the last bag, after which tokens are in none. (Torch counts them for a maximum.)
    """

    def __init__(self, ids: Tensor, starts: Tensor, count: int) -> None:
        begun = starts.unsqueeze(0) <= torch.arange(ids.shape[0]).unsqueeze(1)
        self._range, self._ranges, self._count = begun.to(torch.int64).sum(1) - 1, starts.shape[0], count

    def total(self, values: Tensor) -> Tensor:
        none = values.new_zeros(self._ranges, values.shape[1])
        return none.scatter_add(0, self._index(values), values)[: self._count]

    def largest(self, values: Tensor) -> Tensor:
        lowest = values.new_full((self._ranges, values.shape[1]), torch.finfo(values.dtype).min)
        return lowest.scatter_reduce(0, self._index(values), values, "amax")[: self._count]

    def _index(self, values: Tensor) -> Tensor:
        return self._range.unsqueeze(1).expand(-1, values.shape[1])
