"""Declare a model's adapter: its pairs, masks and prompt, and the role of each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from edgepeft.compress.masks import masked_weights
from edgepeft.methods.support.pairs import attached_pairs
from edgepeft.sources.architectures import head_modules
from edgepeft_export.forward import Forward
from edgepeft_runtime.bundle.adapter_layout import AdapterLayout, LowRankPair


def declare(forward: Forward, model: nn.Module, masks: Sequence[str] = ()) -> Forward:
    """Return the graph with the adapter's layout and the parameters' roles, as its model's layers define them.

    Args:
        forward: The graph, with the model's names of parameters.
        model: The exported model, with its method attached.
        masks: Names of further pruned weights, which do not train.
    """
    layout = layout_of(model, masks).restricted_to(forward.parameters)
    return replace(forward, adapter=layout, roles=roles_of(model))


def layout_of(model: nn.Module, masks: Sequence[str] = ()) -> AdapterLayout:
    """Return the layout of a model's adapter, including pairs that do not train."""
    masked = dict.fromkeys([*masks, *masked_weights(model)])
    return AdapterLayout(_pairs(model), tuple(masked), _prompt_tokens(model))


def _pairs(model: nn.Module) -> tuple[LowRankPair, ...]:
    """Name the pairs. A pair that several layers share has the name of the first one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pairs: dict[str, LowRankPair] = {}
    for module_name, module in model.named_modules():
        for pair in attached_pairs(module):
            layer = ".".join(part for part in (module_name, pair.weight) if part)
            halves = names[id(pair.a)], names[id(pair.b)]
            named = LowRankPair(layer, *halves, pair.layout, pair.groups, pair.rank, pair.scale)
            if named.fits(tuple(pair.a.shape), tuple(pair.b.shape)):
                pairs.setdefault(named.a, named)
    return tuple(pairs.values())


def _prompt_tokens(model: nn.Module) -> int:
    """Return the number of positions of a ``PeftModel``'s prompt or prefix."""
    config: object = getattr(model, "active_peft_config", None)
    return int(getattr(config, "num_virtual_tokens", 0)) if getattr(config, "is_prompt_learning", False) else 0


def roles_of(model: nn.Module) -> dict[str, str]:
    """Return the role of each parameter: half of a pair, head, norm, bias or weight."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = {id(module) for name in head_modules(base) for module in base.get_submodule(name).modules()}
    halves: dict[int, str] = {}
    for module in model.modules():
        for pair in attached_pairs(module):
            halves |= {id(pair.a): "lora_A", id(pair.b): "lora_B"}
    roles: dict[str, str] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            own = "head" if id(module) in head else _own_role(module, name)
            roles[f"{module_name}.{name}" if module_name else name] = halves.get(id(parameter), own)
    return roles


def _own_role(module: nn.Module, name: str) -> str:
    if "Norm" in type(module).__name__:
        return "norm"
    return "bias" if name.startswith("bias") else "weight"
