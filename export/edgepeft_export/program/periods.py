"""Groups pieces of a graph into segments: a repeated pattern is a block, what lies between is divided by its bytes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

LONGEST = 8
"""Pieces of a block at most: attention, cross attention and feed-forward are three."""

NEAR = 1.1
"""Fewer segments are preferred to the least memory, up to this factor."""


@dataclass(frozen=True)
class Piece:
    """The part of a graph between two cuts.

    Attributes:
        kind: equal for pieces of equal structure.
        matmuls: their number.
        inside: bytes of the activations that it computes and keeps until their gradient, at nominal sizes.
        kept: bytes of what later pieces read of them.
        trains: whether it or an earlier piece reads a parameter. What lies below the first one runs forward only.
    """

    kind: Hashable
    matmuls: int
    inside: int
    kept: int
    trains: bool = True


def grouped(pieces: Sequence[Piece]) -> list[range]:
    """Ranges of pieces that become one segment each, in order. The first piece stays alone.

    Pieces that repeat with a period become one segment per period, so equal segments arise. Neighbours that do not
    repeat are joined up to a number of bytes, the largest with which the estimated memory of a step is near its
    least: small segments keep more values between them, and each call takes time. What remains at the end joins the
    last segment, which is not computed twice, unless it has more matmuls than any repeated segment.
    """
    blocks = _blocks([piece.kind for piece in pieces])
    ways = [_with_loose(pieces, blocks, limit) for limit in _limits(pieces)]
    peaks = [estimated_peak(pieces, way) for way in ways]
    best = next(way for way, peak in zip(ways, peaks, strict=True) if peak <= NEAR * min(peaks))
    return _with_tail(best, set(blocks), pieces)


def estimated_peak(pieces: Sequence[Piece], segments: Sequence[range]) -> int:
    """Bytes of activations in a step: a segment's own, what it returns, and what those before it keep."""
    kept = peak = 0
    for segment in segments:
        kept += pieces[segment.stop - 1].kept
        peak = max(peak, kept + sum(pieces[index].inside for index in segment))
    return peak


def _limits(pieces: Sequence[Piece]) -> Iterator[float]:
    """Bytes of a segment to try, from all down to those of the largest piece."""
    limit, least = float(sum(piece.inside for piece in pieces)), max(piece.inside for piece in pieces)
    while limit > least:
        yield limit
        limit /= 2**0.5
    yield least


def _blocks(kinds: Sequence[Hashable]) -> list[range]:
    """Pieces that repeat, from the second one on: one range per period."""
    found: list[range] = []
    at = 1
    while at < len(kinds):
        period, times = _period(kinds, at)
        if times > 1:
            found += [range(at + period * index, at + period * (index + 1)) for index in range(times)]
        at += period * times
    return found


def _period(kinds: Sequence[Hashable], at: int) -> tuple[int, int]:
    """The period from ``at`` on that covers most, and how often it repeats; of equal ones the shortest."""
    best = (1, 1)
    for period in range(1, LONGEST + 1):
        times = 1
        block = list(kinds[at : at + period])
        while list(kinds[at + period * times : at + period * (times + 1)]) == block and len(block) == period:
            times += 1
        if times > 1 and period * times > best[0] * best[1]:
            best = period, times
    return best


def _with_loose(pieces: Sequence[Piece], blocks: Sequence[range], limit: float) -> list[range]:
    """The blocks, and between them pieces that are joined as long as they have at most ``limit`` bytes."""
    starts = {block.start: block for block in blocks}
    ranges, at, may_grow = [range(1)], 1, False
    while at < len(pieces):
        if block := starts.get(at):
            ranges.append(block)
            at, may_grow = block.stop, False
            continue
        longer = range(ranges[-1].start, at + 1)
        if (
            may_grow
            and pieces[at].trains == pieces[at - 1].trains
            and sum(pieces[index].inside for index in longer) <= limit
        ):
            ranges[-1] = longer
        else:
            ranges.append(range(at, at + 1))
        at, may_grow = at + 1, True
    return ranges


def _with_tail(ranges: Sequence[range], repeated: set[range], pieces: Sequence[Piece]) -> list[range]:
    """Join what follows the last repeated segment, if it is no larger than the largest of them."""
    size = {segment: sum(pieces[index].matmuls for index in segment) for segment in ranges}
    largest = max((size[segment] for segment in repeated), default=0)
    joined = list(ranges)
    while len(joined) > 1 and joined[-2] not in repeated and size[joined[-2]] + size[joined[-1]] <= largest:
        whole = range(joined[-2].start, joined[-1].stop)
        size[whole] = size[joined[-2]] + size[joined[-1]]
        joined[-2:] = [whole]
    return joined
