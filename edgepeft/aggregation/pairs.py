"""Which trained matrices are the two halves of a LoRA pair, what their product is, and how it is scaled.

The manifest says which parameters are halves (roles ``lora_A`` and ``lora_B``). Two belong together when their names
differ in the mark of the role alone: that holds for pairs by ``peft``, by our own layers and on a graph, which all name
the halves of one layer alike. Layouts are told apart by shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.bundle.manifest import Manifest, ParameterSpec
from edgepeft_runtime.files.tensorfile import Array

Floats = NDArray[np.float64]
Factors = tuple[Floats, Floats]
"""B [groups, out, rank] and A [groups, rank, in]: their product, by groups, is the change of the weight, unscaled."""

_MARK = re.compile(r"lora_(embedding_)?([AB])")


@dataclass(frozen=True)
class Pair:
    """Two parameters whose product changes one weight: ``scale · B A``.

    Attributes:
        name: of the layer, for people.
        a, b: names of the parameters.
        a_shape, b_shape: as the manifest has them.
        groups: of a grouped convolution, which has a pair in each of them; else 1.
        rank: of the pair (in each group).
        rank_first: ``True``: A is [rank, in, …] and B [out, rank, …], as torch has them. ``False``: A is [in, rank] and
            B [rank, out], as they stand in ``x A B`` on a graph.
        scale: ``alpha / rank`` and the like; ``None`` where the recipe does not tell.
    """

    name: str
    a: str
    b: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    groups: int
    rank: int
    rank_first: bool
    scale: float | None

    def factors(self, tensors: Mapping[str, Array]) -> Factors:
        """The pair's matrices, float64, in one layout for all kinds."""
        a, b = (tensors[name].astype(np.float64) for name in (self.a, self.b))
        if not self.rank_first:
            return b.T[None], a.T[None]
        rank = a.shape[0] // self.groups
        return b.reshape(self.groups, -1, rank), a.reshape(self.groups, rank, -1)

    def tensors(self, factors: Factors) -> dict[str, Floats]:
        """The inverse of :meth:`factors`, of any rank."""
        b, a = factors
        if not self.rank_first:
            return {self.a: a[0].T, self.b: b[0].T}
        shapes = self.shapes(a.shape[1])
        return {self.a: a.reshape(shapes[self.a]), self.b: b.reshape(shapes[self.b])}

    def shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        """The parameters' shapes at another rank."""
        if not self.rank_first:
            return {self.a: (self.a_shape[0], rank), self.b: (rank, self.b_shape[1])}
        return {
            self.a: (self.groups * rank, *self.a_shape[1:]),
            self.b: (self.b_shape[0], rank, *self.b_shape[2:]),
        }


def pairs_of(manifest: Manifest) -> tuple[Pair, ...]:
    """The pairs among a bundle's parameters, in their order; halves that train alone are none."""
    specs = {spec.name: spec for spec in manifest.parameters}
    found: list[Pair] = []
    for spec in manifest.parameters:
        other = specs.get(_counterpart(spec.name)) if spec.role == "lora_A" else None
        layout = _layout(spec, other) if other is not None and other.role == "lora_B" else None
        if other is not None and layout is not None:
            groups, rank, first = layout
            scale = _scale(spec.name, rank, manifest.recipe)
            shapes = spec.sizes, other.sizes
            found.append(Pair(_layer(spec.name), spec.name, other.name, *shapes, groups, rank, first, scale))
    return tuple(found)


def _counterpart(name: str) -> str:
    """The name of the B that belongs to an A."""
    last = list(_MARK.finditer(name))[-1:]
    return f"{name[: last[0].end() - 1]}B{name[last[0].end() :]}" if last else ""


def _layer(name: str) -> str:
    """``rnn.lora_A.weight_ih_l0`` as ``rnn.weight_ih_l0``, ``query.lora_A.default.weight`` as ``query``."""
    parts = [part for part in name.split(".") if not _MARK.fullmatch(part)]
    while parts[1:] and parts[-1] in ("weight", "default"):
        parts.pop()
    return ".".join(parts)


def _layout(a: ParameterSpec, b: ParameterSpec) -> tuple[int, int, bool] | None:
    """Groups, rank, and whether the rank comes first; ``None`` where the shapes fit no product."""
    first, second = a.sizes, b.sizes
    if len(first) != len(second) or len(first) < 2:
        return None
    if len(first) > 2:  # kernels: B is 1x1, and looks at the channels that A's group gives
        groups = first[0] // second[1] if first[0] % second[1] == 0 else 0
        fits = groups > 0 and second[0] % groups == 0 and math.prod(second[2:]) == 1
        return (groups, second[1], True) if fits else None
    # Between square layers both readings are possible; the rank is what is small.
    readings = [(rank, rank_first) for rank, other, rank_first in _shared(first, second) if rank == other]
    return (1, *min(readings, key=lambda reading: reading[0])) if readings else None


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[tuple[int, int, bool], ...]:
    return (a[0], b[1], True), (a[1], b[0], False)


def _scale(name: str, rank: int, recipe: Mapping[str, Any]) -> float | None:
    """The factor of a pair, by how the bundle was prepared."""
    peft = recipe.get("peft", {})
    if name in peft.get("keys", {}):
        return _peft_scale(_layer(name), rank, peft["config"])
    prepared = recipe.get("rank")
    if not isinstance(prepared, int):
        return None
    alpha = 2 * prepared if recipe.get("alpha") is None else float(recipe["alpha"])
    return alpha / (math.sqrt(prepared) if recipe.get("method") == "rslora" else prepared)


def _peft_scale(layer: str, rank: int, config: Mapping[str, Any]) -> float | None:
    if config.get("lora_alpha") is None:
        return None
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    fits = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", layer))
    alpha = float(next(fits, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
