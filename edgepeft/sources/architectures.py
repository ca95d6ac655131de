"""Find attention and feed-forward layers in models of transformers by their names.

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
    """Paths from a block to its layers; ``owner`` has the size of a head."""

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
"""Separate query, key and value, with sizes of heads that pruning knows."""

FUSED = ("c_attn", "c_proj")
"""Query, key and value in one layer, and the output."""

FEED_FORWARDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("intermediate.dense",), "output.dense"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("fc1",), "fc2"),
    (("lin1",), "lin2"),
    (("c_fc",), "c_proj"),
)
"""Layers that read a block's input, and the layer that writes its output."""

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
        first: Name of the layer that reads the part's input.
        last: Name of the layer whose result is added to the residual stream.
    """

    kind: str
    first: str
    last: str


def parts_of(model: nn.Module) -> Iterator[Part]:
    """Yield every attention and feed-forward part, in the order of the model's modules; none if no table fits."""
    attentions = [(a.query, a.key, a.value, a.output) for a in ATTENTIONS] + list(_OTHER_ATTENTIONS)
    for name, block in model.named_modules():
        if not name:
            continue  # fc1 and fc2 at the top of a small CNN are its head
        for paths in attentions:
            if layers_at(block, paths) is not None:
                yield Part("attention", join(name, paths[0]), join(name, paths[-1]))
        for into, out in (*FEED_FORWARDS, *_OTHER_FEED_FORWARDS):
            if layers_at(block, (*into, out)) is not None:
                yield Part("ffn", join(name, into[0]), join(name, out))


def layers_at(block: nn.Module, paths: tuple[str, ...]) -> list[nn.Module] | None:
    """Return the layers with a matrix at these paths, or ``None`` if one is missing."""
    from torch import nn

    layers: list[nn.Module] = []
    for path in paths:
        try:
            layer = block.get_submodule(path)
        except AttributeError:
            return None
        if getattr(getattr(layer, "weight", None), "ndim", 0) != 2 or isinstance(layer, nn.Embedding):
            return None
        layers.append(layer)
    return layers


def blocks_of(model: nn.Module) -> list[str]:
    """Return the names of consecutive blocks: the longest list of modules, else the stages at the top."""
    from torch import nn

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if lists:
        name, longest = max(lists, key=lambda pair: len(pair[1]))
        return [join(name, str(index)) for index in range(len(longest))]
    return [name for name, child in model.named_children() if any(True for _ in child.parameters())]


def join(name: str, path: str) -> str:
    """Return the name of the module at a path inside a named module."""
    return f"{name}.{path}" if name else path


_HEADS = ("classifier", "classification_head", "score", "head", "fc", "qa_outputs", "lm_head")


def head_modules(model: nn.Module) -> list[str]:
    """Return the names of the task heads at the top of the model, as transformers and torchvision call them."""
    names = [name for name, _ in model.named_children()]
    heads = tuple(name for name in names if name in _HEADS)
    # peft trains every module that ends with such a name, like DistilBERT's pre_classifier.
    return [name for name in names if name.endswith(heads)]
