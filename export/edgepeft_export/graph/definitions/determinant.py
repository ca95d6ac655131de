"""Determinants of small matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.definitions.algebra import Term
from edgepeft_export.graph.definitions.registry import NotDefined, definition
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of

_LARGEST = 4
"""Rows. The expansion has n! products."""


@definition("Det")
def det(_node: ir.Node, values: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value | None]:
    """The expansion along the first row (Laplace): the sum of ±a₁ⱼ times the determinant without row 1, column j."""
    (x,) = values
    assert x is not None
    size = dims_of(x)[-1]
    if not isinstance(size, int) or size > _LARGEST:
        raise NotDefined(
            f"its matrices are not of at most {_LARGEST} rows", "compute the determinant by other operators"
        )
    entries = [[_entry(x, row, column, emit) for column in range(size)] for row in range(size)]
    return [_expanded(entries).value]


def _entry(x: ir.Value, row: int, column: int, emit: Emitter) -> Term:
    at = [emit.constant(np.asarray(index, np.int64)) for index in (row, column)]
    return Term(emit.op("Gather", emit.op("Gather", x, at[0], axis=-2), at[1], axis=-1), emit)


def _expanded(entries: Sequence[Sequence[Term]]) -> Term:
    first, *rest = entries
    if not rest:
        return first[0]
    minors = [[[*row[:column], *row[column + 1 :]] for row in rest] for column in range(len(first))]
    products = [entry * _expanded(minor) for entry, minor in zip(first, minors, strict=True)]
    total = products[0]
    for column, product in enumerate(products[1:], start=1):
        total = total - product if column % 2 else total + product
    return total
