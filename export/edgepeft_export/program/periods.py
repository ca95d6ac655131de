"""Groups pieces of a graph into segments: the largest repeated pattern is a block."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

LONGEST = 8
"""Pieces of a block at most: attention, cross attention and feed-forward are three."""


def grouped(kinds: Sequence[Hashable], weights: Sequence[int], smallest: int = 2) -> list[range]:
    """Ranges of pieces that become one segment each, in order. The first piece stays alone.

    Pieces that repeat with a period become one segment per period, so equal segments arise. Pieces that do not repeat
    are joined until they have ``smallest`` matmuls, and what remains at the end joins the last segment, which is not
    computed twice, unless it has more matmuls than any repeated segment.

    Args:
        kinds: equal for pieces of equal structure.
        weights: number of matmuls of each piece.
        smallest: matmuls of a segment that does not repeat.
    """
    repeated: list[range] = []
    ranges, at, start = [range(1)], 1, 1
    while at < len(kinds):
        period, times = _period(kinds, at)
        if times < 2:
            at += 1
            if sum(weights[start:at]) >= smallest or at == len(kinds):
                ranges.append(range(start, at))
                start = at
            continue
        if start < at:
            ranges.append(range(start, at))
        blocks = [range(at + period * index, at + period * (index + 1)) for index in range(times)]
        ranges += blocks
        repeated += blocks
        at += period * times
        start = at
    return _with_tail(ranges, set(repeated), weights)


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


def _with_tail(ranges: Sequence[range], repeated: set[range], weights: Sequence[int]) -> list[range]:
    """Join what follows the last repeated segment, if it is no larger than the largest of them."""
    size = {piece: sum(weights[index] for index in piece) for piece in ranges}
    largest = max((size[piece] for piece in repeated), default=0)
    joined = list(ranges)
    while len(joined) > 1 and joined[-2] not in repeated and size[joined[-2]] + size[joined[-1]] <= largest:
        whole = range(joined[-2].start, joined[-1].stop)
        size[whole] = size[joined[-2]] + size[joined[-1]]
        joined[-2:] = [whole]
    return joined
