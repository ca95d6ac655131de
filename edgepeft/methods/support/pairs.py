"""Yield the low-rank pairs of a layer, either Hugging Face ``peft``'s or our own."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import nn

from edgepeft.methods.support.around import Around
from edgepeft.methods.support.attached_pair import AttachedPair


def attached_pairs(module: nn.Module) -> Iterator[AttachedPair]:
    """Yield the pairs of a layer; none for any other module."""
    if isinstance(module, Around):
        yield from module.pairs()
    elif "peft" in sys.modules:
        yield from _of_peft(module)


def _of_peft(layer: nn.Module) -> Iterator[AttachedPair]:
    """Yield the pairs of a layer's active adapters."""
    from peft.tuners.lora.layer import LoraLayer, MultiheadAttention, ParamWrapper

    if not isinstance(layer, LoraLayer):
        return
    experts = layer.num_experts if isinstance(layer, ParamWrapper) else 1
    for adapter in layer.active_adapters:
        own = "in_proj_weight" if isinstance(layer, MultiheadAttention) else ""
        weight = ".".join(filter(None, (own, adapter if len(layer.active_adapters) > 1 else "")))
        if adapter in layer.lora_embedding_A:
            a, b = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
            yield AttachedPair(a, b, a.shape[0], float(layer.scaling[adapter]), weight=weight)
        elif adapter in layer.lora_A:
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            groups = experts if experts > 1 else getattr(layer.lora_B[adapter], "groups", 1)
            layout = "experts" if experts > 1 else "torch"
            yield AttachedPair(a, b, a.shape[0] // groups, float(layer.scaling[adapter]), groups, layout, weight)
