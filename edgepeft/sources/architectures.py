"""Where transformers' models keep attention and feed-forward layers, by the names these have.

A family is a row of a table: BERT, RoBERTa, ELECTRA (``self.query``), DistilBERT (``q_lin``), GPT-2 (fused ``c_attn``),
GPT-NeoX (fused ``query_key_value``), Llama, Mistral, Qwen and ViT (``q_proj`` to ``o_proj``), BART and M2M100
(``q_proj`` to ``out_proj``), T5 (``q`` to ``o``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Attention:
    """Paths from a block to its layers; ``owner`` holds the size of a head."""

    query: str
    key: str
    value: str
    output: str
    owner: str = ""


ATTENTIONS = (
    Attention("self.query", "self.key", "self.value", "output.dense", "self"),
    Attention("q_lin", "k_lin", "v_lin", "out_lin"),
    Attention("q_proj", "k_proj", "v_proj", "o_proj"),
)
"""With query, key and value apart, and the sizes of heads where pruning knows them."""

FUSED = ("c_attn", "c_proj")
"""Query, key and value in one layer, and the output."""

FEED_FORWARDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("intermediate.dense",), "output.dense"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("fc1",), "fc2"),
    (("lin1",), "lin2"),
    (("c_fc",), "c_proj"),
)
"""Layers that read what a block is given, and the one that writes its result."""

_OTHER_ATTENTIONS = (
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q", "k", "v", "o"),
    ("query_key_value", "dense"),
    FUSED,
)
_OTHER_FEED_FORWARDS = ((("wi_0", "wi_1"), "wo"), (("wi",), "wo"), (("dense_h_to_4h",), "dense_4h_to_h"))


@dataclass(frozen=True)
class Part:
    """An attention or a feed-forward part of a block.

    Attributes:
        kind: ``attention`` or ``ffn``.
        first: name of the layer that reads the part's input.
        last: name of the layer whose result is added to the residual stream.
    """

    kind: str
    first: str
    last: str


def parts_of(model: nn.Module) -> Iterator[Part]:
    """Every attention and feed-forward part, in the order of the model's modules; none where no table fits."""
    attentions = [(a.query, a.key, a.value, a.output) for a in ATTENTIONS] + list(_OTHER_ATTENTIONS)
    for name, block in model.named_modules():
        if not name:
            continue  # what a small CNN calls fc1 and fc2 at its top is its head
        for paths in attentions:
            if layers_at(block, paths) is not None:
                yield Part("attention", join(name, paths[0]), join(name, paths[-1]))
        for into, out in (*FEED_FORWARDS, *_OTHER_FEED_FORWARDS):
            if layers_at(block, (*into, out)) is not None:
                yield Part("ffn", join(name, into[0]), join(name, out))


def layers_at(block: nn.Module, paths: tuple[str, ...]) -> list[nn.Module] | None:
    """The layers with a matrix at these paths, or ``None`` where one is missing."""
    from torch import nn

    found: list[nn.Module] = []
    for path in paths:
        try:
            layer = block.get_submodule(path)
        except AttributeError:
            return None
        if getattr(getattr(layer, "weight", None), "ndim", 0) != 2 or isinstance(layer, nn.Embedding):
            return None
        found.append(layer)
    return found


def blocks_of(model: nn.Module) -> list[str]:
    """Names of the blocks that follow one another: the longest list of modules, else the stages at the top."""
    from torch import nn

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if lists:
        name, longest = max(lists, key=lambda pair: len(pair[1]))
        return [join(name, str(index)) for index in range(len(longest))]
    return [name for name, child in model.named_children() if any(True for _ in child.parameters())]


def join(name: str, path: str) -> str:
    """The name of what lies at a path in the module of a name."""
    return f"{name}.{path}" if name else path
