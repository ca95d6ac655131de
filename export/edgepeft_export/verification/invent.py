"""Generates inputs for a file without examples, of several sizes, until the file has run on two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.shapes import dims_of, dtype_of
from edgepeft_export.verification.compare import Array, Arrays
from edgepeft_export.verification.graph import GraphRun

Sizes = Mapping[str, int]

_LONG = (16, 32, 64, 224)
"""Sizes of free axes after the first that convolutions and windows may need."""


@dataclass(frozen=True)
class Runs:
    """Runs of a file at different sizes.

    Attributes:
        pairs: inputs and outputs of up to two runs.
        failure: the reason of the last run that failed.
    """

    pairs: tuple[tuple[Arrays, Arrays], ...] = ()
    failure: str | None = None


def run_twice(model: ir.Model, given: Arrays | None) -> Runs:
    """Run a model as read at two sizes, or at fewer where it does not run at two.

    Args:
        model: every free axis of its inputs has a name.
        given: an example of the user, which is run first.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    runs: list[tuple[Arrays, Arrays]] = []
    failure = None
    try:
        run = GraphRun(model)
    except Exception as error:  # onnxruntime's exceptions have no class in common but this one
        return Runs((), _first_line(error))
    for feeds in _attempts(inputs, given):
        if any(_shapes(feeds) == _shapes(other) for other, _ in runs):
            continue
        try:
            runs = _of_one_rank([*runs, (feeds, run(feeds))], keep_first=given is not None)
        except Exception as error:  # as above
            failure = _first_line(error)
        if len(runs) == 2:
            break
    return Runs(tuple(runs), failure)


def _of_one_rank(runs: list[tuple[Arrays, Arrays]], *, keep_first: bool) -> list[tuple[Arrays, Arrays]]:
    """The runs whose outputs have as many axes as the first, or else the most.

    A ``Squeeze`` without axes drops that of a batch of one, too.
    """
    axes = [sum(array.ndim for array in outputs.values()) for _, outputs in runs]
    wanted = axes[0] if keep_first else max(axes)
    return [pair for pair, count in zip(runs, axes, strict=True) if count == wanted]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _attempts(inputs: Sequence[ir.Value], given: Arrays | None) -> Iterator[Arrays]:
    if given is not None:
        yield given
        for factor in (2, 0.5):
            yield {str(value.name): _resized(given[str(value.name)], value, factor) for value in inputs}
        return
    if any(value.dtype is None or value.shape is None or value.dtype == ir.DataType.STRING for value in inputs):
        return
    for sizes in _sizes(_symbols(inputs)):
        for ones in (False, True):
            yield {str(value.name): _drawn(value, sizes, ones) for value in inputs}


def _symbols(inputs: Sequence[ir.Value]) -> tuple[list[str], list[str]]:
    """Names of the first axes and of all others."""
    first = [dim for value in inputs for dim in dims_of(value)[:1] if isinstance(dim, str)]
    rest = [dim for value in inputs for dim in dims_of(value)[1:] if isinstance(dim, str) and dim not in first]
    return list(dict.fromkeys(first)), list(dict.fromkeys(rest))


def _sizes(symbols: tuple[list[str], list[str]]) -> Iterator[Sizes]:
    """Yield small sizes that all differ, then long axes as a network may need them, then ones."""
    first, rest = symbols
    names = [*first, *rest]
    yield {name: 2 + i for i, name in enumerate(names)}
    yield {name: 3 + 2 * i for i, name in enumerate(names)}
    for batch in (2, 1):
        for long in _LONG:
            yield {**dict.fromkeys(first, batch), **{name: long + 32 * i for i, name in enumerate(rest)}}
            yield {**dict.fromkeys(first, batch), **dict.fromkeys(rest, long)}
    yield dict.fromkeys(names, 1)


def _drawn(value: ir.Value, sizes: Sizes, ones: bool) -> Array:
    shape = [sizes[dim] if isinstance(dim, str) else int(dim or 1) for dim in dims_of(value)]
    dtype, draw = dtype_of(value).numpy(), np.random.default_rng(len(shape))
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:  # every table has a second row
        return np.asarray(np.ones(shape) if ones else draw.integers(0, 2, shape)).astype(dtype)
    return np.asarray(draw.normal(size=shape)).astype(dtype)


def _resized(array: Array, value: ir.Value, factor: float) -> Array:
    for axis, dim in enumerate(dims_of(value)):
        if isinstance(dim, str):
            size = max(1, int(array.shape[axis] * factor))
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return array


def _shapes(feeds: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}
