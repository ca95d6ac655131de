"""Images read between their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import mul

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.definitions.algebra import Term
from edgepeft_export.graph.definitions.registry import definition
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dtype_of, rank

_CUBIC = -0.75


@dataclass(frozen=True)
class _Tap:
    """One pixel index along an axis, for every point, with its weight."""

    index: Term
    weight: Term | None


@dataclass(frozen=True)
class _Sampling:
    """How a node samples an image.

    Attributes:
        mode: nearest, linear or cubic.
        padding: zeros, border or reflection.
        aligned: whether -1 and 1 are the centres of the outermost pixels, instead of their edges.
    """

    mode: str
    padding: str
    aligned: bool

    @classmethod
    def of(cls, node: ir.Node) -> _Sampling:
        mode = str(node.attributes.get_string("mode", "linear")).removeprefix("bi")
        padding = str(node.attributes.get_string("padding_mode", "zeros"))
        return cls(mode, padding, bool(node.attributes.get_int("align_corners", 0)))

    def taps(self, at: Term, size: Term) -> Iterator[_Tap]:
        """The pixels that contribute along an axis, of a coordinate from -1 to 1."""
        point = (at + 1.0) * (size - 1.0) / 2.0 if self.aligned else ((at + 1.0) * size - 1.0) / 2.0
        if self.mode == "nearest":
            yield self._tap(point.apply("Round"), None, size)
            return
        first = point.floor()
        fraction = point - first
        weights = _linear(fraction) if self.mode == "linear" else _cubic(fraction)
        for offset, weight in weights.items():
            yield self._tap(first + float(offset), weight, size)

    def _tap(self, index: Term, weight: Term | None, size: Term) -> _Tap:
        """A tap whose index lies within the image; what is outside weighs 0, or is read at the edge or mirrored."""
        last = size - 1.0
        if self.padding == "zeros":
            inside = index.is_at_least(0.0) * (last - index).is_at_least(0.0)
            weight = inside if weight is None else weight * inside
        elif self.padding == "reflection":
            index = self._mirrored(index, size)
        return _Tap(index.at_least(0.0).at_most(last), weight)

    def _mirrored(self, index: Term, size: Term) -> Term:
        """Reflected at the edges of the image, or at the centres of its outermost pixels, as often as it takes."""
        low = 0.0 if self.aligned else -0.5
        length = (size - 1.0 if self.aligned else size).at_least(1.0)
        far = abs(index - low)
        times = (far / length).floor()
        rest = far - times * length
        odd = times - (times / 2.0).floor() * 2.0
        return rest + odd * (length - rest * 2.0) + low


def _linear(t: Term) -> dict[int, Term]:
    return {0: t * -1.0 + 1.0, 1: t}


def _cubic(t: Term) -> dict[int, Term]:
    """Weights of the four neighbours (Keys, IEEE Transactions on Acoustics 1981, with a = -0.75)."""
    a, rest = _CUBIC, t * -1.0 + 1.0

    def near(d: Term) -> Term:
        return (d * (a + 2) - (a + 3)) * d * d + 1.0

    def far(d: Term) -> Term:
        return ((d * a - 5 * a) * d + 8 * a) * d - 4 * a

    return {-1: far(t + 1.0), 0: near(t), 1: near(rest), 2: far(rest + 1.0)}


@definition("GridSample")
def grid_sample(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """y at a point is Σ weight · pixel over its neighbours (Jaderberg et al., NeurIPS 2015).

    Pixels are rows of a table [batch · pixels, channels], so a point reads all its channels at once. Along each axis
    the weights depend on the distance, which carries the gradient to the grid; indices carry none.
    """
    x, grid = given
    assert x is not None and grid is not None
    sampling, axes = _Sampling.of(node), rank(x) - 2
    sizes = [Term(emit.dim(x, axis + 2), emit) for axis in range(axes)]
    pixels_last = emit.op("Transpose", x, perm=[0, *range(2, axes + 2), 1])
    table = emit.op("Reshape", pixels_last, emit.op("Concat", emit.ints(-1), emit.dim(x, 1), axis=0))
    taps = [
        list(sampling.taps(_coordinate(emit, grid, axes - 1 - axis), size.cast(dtype_of(grid))))
        for axis, size in enumerate(sizes)
    ]
    starts, total = _starts(emit, x, sizes), None
    for chosen in product(*taps):
        read = Term(emit.op("Gather", table, _row(chosen, sizes, starts).value, axis=0), emit)
        weight = _weight(chosen)
        read = read if weight is None else read * weight.apply("Unsqueeze", emit.ints(-1))
        total = read if total is None else total + read
    assert total is not None
    return (emit.op("Transpose", total.value, perm=[0, axes + 1, *range(1, axes + 1)]),)


def _row(taps: Sequence[_Tap], sizes: Sequence[Term], starts: Term) -> Term:
    """The row of the table that a tap of each axis means."""
    row, *others = (tap.index.cast(ir.DataType.INT64) for tap in taps)
    for index, size in zip(others, sizes[1:], strict=True):
        row = row * size + index
    return row + starts


def _weight(taps: Sequence[_Tap]) -> Term | None:
    weights = [tap.weight for tap in taps if tap.weight is not None]
    return reduce(mul, weights) if weights else None


def _coordinate(emit: Emitter, grid: ir.Value, index: int) -> Term:
    """One coordinate of all points, [batch, ...]; the grid has the last axis first."""
    return Term(emit.op("Gather", grid, _integer(emit, index), axis=-1), emit)


def _starts(emit: Emitter, x: ir.Value, sizes: Sequence[Term]) -> Term:
    """The first row of each image in the table, [batch, 1, ...]."""
    batch = emit.op("Squeeze", emit.dim(x, 0), emit.ints(0))
    numbers = emit.op("Range", _integer(emit, 0), batch, _integer(emit, 1))
    return Term(emit.op("Reshape", numbers, emit.ints(-1, *[1] * len(sizes))), emit) * reduce(mul, sizes)


def _integer(emit: Emitter, number: int) -> ir.Value:
    return emit.constant(np.asarray(number, np.int64))
