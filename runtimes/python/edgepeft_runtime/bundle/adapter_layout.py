"""The structure of a bundle's adapter, as its method declared it (``adapter`` in section 2 of the SPEC).

Readers rely on this declaration alone, never on names, shapes or the provenance.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated

from edgepeft_runtime.errors import BadManifest
from edgepeft_runtime.files.schema import Natural, one_of
from edgepeft_runtime.shown import quoted

LAYOUTS = ("torch", "graph", "experts")


@dataclass(frozen=True)
class LowRankPair:
    """Two parameters whose product, times ``scale``, is added to one weight.

    With the layout ``torch`` the change is ``scale · B A``: A is ``[groups * rank, in, *kernel]`` and B is
    ``[out, rank, *ones]``. A grouped convolution has one product per group; all other layers have one group. The
    matrices of a recurrent layer are ``[rank, in]`` and ``[gates * hidden, rank]``, those of an embedding
    ``[rank, rows]`` and ``[width, rank]``, whose transposed product is added to the table.
    The layout ``experts`` is that of a mixture of experts, whose experts are the groups. A is as with ``torch``, and B
    is ``[out, rank * groups]``, with the expert as the faster index of its columns.
    With the layout ``graph`` the change is ``scale · A B``, as in ``x A B``: A is ``[in, rank]``, B is ``[rank, out]``.

    Attributes:
        layer: Name of the adapted layer.
        a, b: Names of the parameters, whose roles are ``lora_A`` and ``lora_B``.
        layout: One of ``LAYOUTS``.
        groups: Number of groups.
        rank: Rank of the pair, in each group.
        scale: Factor of the product, such as ``alpha / rank``.
    """

    layer: str
    a: str
    b: str
    layout: Annotated[str, one_of(LAYOUTS)]
    groups: Natural
    rank: Natural
    scale: float

    @property
    def rank_axis(self) -> int:
        """The axis of A along which the rank lies; in B it is the other one of the first two."""
        return 1 if self.layout == "graph" else 0

    def fits(self, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        """Whether parameters of these shapes form the pair."""
        if self.rank < 1 or self.groups < 1 or len(a) != len(b) or len(a) < 2:
            return False
        if self.layout == "graph":
            return self.groups == 1 and len(a) == 2 and a[1] == b[0] == self.rank
        rows = self.groups * self.rank
        if self.layout == "experts":
            return len(a) == 2 and a[0] == b[1] == rows
        return a[0] == rows and b[1] == self.rank and b[0] % self.groups == 0 and math.prod(b[2:]) == 1


@dataclass(frozen=True)
class AdapterLayout:
    """The structure of the parameters that a method attached.

    Attributes:
        pairs: The low-rank pairs; each parameter is in one of them at most.
        masks: Names of the source's pruned weights, whose zeros stay zero.
        prompt_tokens: Number of positions of a trained prompt in front of the input.
        non_trainable: Names of parameters that keep their initial values.
    """

    pairs: tuple[LowRankPair, ...] = ()
    masks: tuple[str, ...] = ()
    prompt_tokens: Natural = 0
    non_trainable: tuple[str, ...] = ()

    def restricted_to(self, names: Collection[str]) -> AdapterLayout:
        """Return the layout of an adapter that has only these parameters."""
        pairs = tuple(pair for pair in self.pairs if pair.a in names and pair.b in names)
        non_trainable = tuple(name for name in self.non_trainable if name in names)
        return AdapterLayout(pairs, self.masks, self.prompt_tokens, non_trainable)


def check_adapter(layout: AdapterLayout, shapes: Mapping[str, tuple[str, tuple[int, ...]]], trained: set[str]) -> None:
    """Refuse a layout that contradicts the parameters.

    Args:
        layout: The layout.
        shapes: Role and shape of each float parameter, by its name.
        trained: Names of the parameters that train.

    Raises:
        BundleError: The parameters of a pair do not have its roles and shapes, or the non-trainable parameters are not
            exactly those that do not train (``bad-manifest``).
    """
    used: set[str] = set()
    for pair in layout.pairs:
        (role_a, a), (role_b, b) = shapes.get(pair.a, ("", ())), shapes.get(pair.b, ("", ()))
        roles_fit = (role_a, role_b) == ("lora_A", "lora_B") and not {pair.a, pair.b} & used
        if not (roles_fit and pair.fits(a, b) and math.isfinite(pair.scale) and pair.scale != 0):
            raise BadManifest("A low-rank pair does not fit its parameters.", f"layer: {quoted(pair.layer)}")
        used |= {pair.a, pair.b}
    odd = (shapes.keys() - trained) ^ set(layout.non_trainable)
    if odd or len(layout.non_trainable) != len(set(layout.non_trainable)):
        raise BadManifest(
            "The non-trainable parameters must be exactly the parameters in no bucket.",
            f"wrong: {', '.join(map(quoted, sorted(odd)))}" if odd else "a name is listed twice",
        )
