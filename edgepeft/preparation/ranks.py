"""Notice ranks that are larger than what they adapt."""

from __future__ import annotations

from edgepeft_export.forward import Forward
from edgepeft_runtime.notices import notice


def notice_ranks(forward: Forward) -> None:
    """Notice pairs with a rank above both sizes of their matrix, which has fewer elements than the pair."""
    found = {}
    for pair in forward.adapter.pairs:
        sides = [forward.parameters[name].size // (pair.rank * pair.groups) for name in (pair.a, pair.b)]
        if pair.rank > max(sides):
            found[pair.layer] = f"rank {pair.rank}, {' x '.join(map(str, sides))} elements"
    if found:
        layer, fact = next(iter(found.items()))
        notice(
            f"the rank is above both sizes of {len(found)} adapted matrices ({layer}: {fact}); a lower one is as able."
        )
