"""Find the heads and feed-forward neurons of transformers' models.

These modules compute the number of heads from the width of their projections, and read only the size of a head from the
configuration, so they run with fewer heads without changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from edgepeft.compress.groups import Count, Group, blocks, computing, input_axis, reading
from edgepeft.sources.architectures import ATTENTIONS, FEED_FORWARDS, FUSED, Attention, join, layers_at

_HEAD_SIZES = ("head_dim", "attention_head_size")
_HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")


def transformer_groups(model: nn.Module) -> Iterator[Group]:
    """Yield the heads of every attention block and the neurons of every feed-forward block."""
    for name, block in model.named_modules():
        for attention in ATTENTIONS:
            paths = (attention.query, attention.key, attention.value, attention.output)
            layers = layers_at(block, paths)
            if layers is not None:
                yield _heads(name, block, attention, layers)
        fused = layers_at(block, FUSED)
        if fused is not None and hasattr(block, "split_size") and not getattr(block, "is_cross_attention", False):
            yield _fused_heads(name, block, *fused)
        for into, out in FEED_FORWARDS:
            layers = layers_at(block, (*into, out))
            if layers is not None:
                yield _neurons(name, into, out, layers)


def _outputs(layer: nn.Module) -> int:
    return int(layer.weight.shape[1 - input_axis(layer)])


def _head_size(owner: nn.Module) -> int:
    return next(int(getattr(owner, name)) for name in _HEAD_SIZES if hasattr(owner, name))


def _counts(owner: nn.Module, heads: int, key_heads: int, size: int) -> tuple[Count, ...]:
    wanted = dict.fromkeys(_HEAD_COUNTS, heads)
    wanted |= {"num_key_value_heads": key_heads, "all_head_size": heads * size, "split_size": heads * size}
    return tuple(Count(owner, name, count) for name, count in wanted.items() if hasattr(owner, name))


def _heads(name: str, block: nn.Module, attention: Attention, layers: list[nn.Module]) -> Group:
    """Return groups whose units are a key/value head with all its query heads, to keep the repeat factor."""
    query, key, value, output = layers
    owner = block.get_submodule(attention.owner)
    size = _head_size(owner)
    units = _outputs(key) // size
    repeats = _outputs(query) // _outputs(key)
    wide, narrow = blocks(units, repeats * size), blocks(units, size)
    slices = (
        # queries and keys do not scale an output, so only value and output weights measure a head's contribution
        *computing(join(name, attention.query), query, wide, scored=False),
        *computing(join(name, attention.key), key, narrow, scored=False),
        *computing(join(name, attention.value), value, narrow),
        reading(join(name, attention.output), output, wide),
    )
    return Group(name, "heads", units, slices, _counts(owner, repeats, 1, size))


def _fused_heads(name: str, block: nn.Module, into: nn.Module, out: nn.Module) -> Group:
    """Return the heads of a block with query, key and value in one layer."""
    size = _head_size(block)
    width = _outputs(into) // 3
    units = width // size
    parts = [blocks(units, size, start) for start in (0, width, 2 * width)]
    slices = (
        *computing(join(name, FUSED[0]), into, torch.cat(parts, dim=1)),
        reading(join(name, FUSED[1]), out, parts[0]),
    )
    return Group(name, "heads", units, slices, _counts(block, 1, 1, size))


def _neurons(name: str, into: tuple[str, ...], out: str, layers: list[nn.Module]) -> Group:
    units = _outputs(layers[0])
    indices = blocks(units, 1)
    slices = [
        part for path, layer in zip(into, layers, strict=False) for part in computing(join(name, path), layer, indices)
    ]
    return Group(name, "ffn", units, (*slices, reading(join(name, out), layers[-1], indices)))
