"""Write the ranks of a stack into a PEFT configuration. A stack's pairs have the sum of all devices' ranks."""

from __future__ import annotations

from collections.abc import Mapping

from edgepeft.aggregation.pairs import pairs_of
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.files.tensorfile import Array


def stacked_ranks(manifest: Manifest, parameters: Mapping[str, Array]) -> Json:
    """Return the fields of the configuration that differ; none where pairs have the rank they were prepared with.

    peft divides alpha by the rank: with ``alpha = scale · rank`` a longer pair keeps its scale.
    """
    pairs = pairs_of(manifest)
    ranks = {pair.layer: pair.rank_of(parameters) for pair in pairs}
    if all(ranks[pair.layer] == pair.rank for pair in pairs):
        return {}
    alphas = {pair.layer: pair.scale * ranks[pair.layer] for pair in pairs}
    first = pairs[0].layer
    return {
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "rank_pattern": {_module(name): rank for name, rank in ranks.items() if rank != ranks[first]},
        "alpha_pattern": {_module(name): alpha for name, alpha in alphas.items() if alpha != alphas[first]},
        "use_rslora": False,
    }


def _module(name: str) -> str:
    """Return the name that peft's patterns use, without the prefix of a ``PeftModel``."""
    return name.removeprefix("base_model.model.")
