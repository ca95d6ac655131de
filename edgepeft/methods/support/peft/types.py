"""The kinds of ``peft`` adapters that can be trained on a device, and the reasons why others cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgepeft.methods.errors import UnsupportedPeftType

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

TRAINED = frozenset(
    {
        "ADAPTION_PROMPT",
        "PROMPT_TUNING",
        "P_TUNING",
        "PREFIX_TUNING",
        "LORA",
        "IA3",
        "LN_TUNING",
        "VERA",
        "LOHA",
        "LOKR",
        "OFT",
        "BOFT",
        "VBLORA",
        "RANDLORA",
        "MISS",
        "ROAD",
        "TRAINABLE_TOKENS",
        "WAVEFT",
        "DELORA",
        "GRALORA",
        "ADAMSS",
        "BEFT",
        "LILY",
        "PVERA",
        "GLORA",
        "UNILORA",
        "HIRA",
        "TINYLORA",
        "PEANUT",
        "SUPERTUNING",
        "DEFT",
        "FOURIERFT",
        "C3A",
        "SHIRA",
        "HRA",
        "PSOFT",
    }
)
"""Kinds whose losses on the device are torch's: ``peft.PeftType`` by name."""

REFUSED = {
    "ADALORA": "its loss has an orthogonality term, and its ranks change while it trains",
    "CARTRIDGE": "it trains a cache of keys and values, part of which is frozen",
    "CPT": "it has a loss of its own, and changes gradients by hooks",
    "FROD": "its sizes depend on values, which torch.export does not trace",
    "MULTITASK_PROMPT_TUNING": "it needs the number of a task with every batch",
    "OSF": "it projects gradients by hooks, which are no part of a graph",
    "POLY": "it needs the number of a task with every batch",
    "SHADOW": "it adds the loss of a network of its own",
    "XLORA": "it chooses among adapters by hooks, which are no part of a graph",
}
"""Kinds that would train differently on the device, each with the reason."""

_OPTIONS = {
    "velora_config": "VeLoRA replaces gradients by approximations",
    "coft": "constrained OFT projects its weights while it computes",
    "monteclora_config": "MonteCLoRA draws random numbers",
}
"""Options of kinds that train, each with the reason against it."""


def check_peft_type(model: nn.Module) -> None:
    """Refuse a ``PeftModel`` whose adapter would not train on a device as it does in torch.

    Raises:
        MethodError: Its kind is among ``REFUSED``, or unknown, or a part of it cannot be exported.
    """
    for name, config in _active(model):
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        reason = REFUSED.get(kind) if kind in TRAINED | REFUSED.keys() else "edgepeft does not know it"
        options = (reason for option, reason in _OPTIONS.items() if getattr(config, option, None) not in (None, False))
        reason = reason or next(options, None)
        if reason is not None:
            raise UnsupportedPeftType(
                f"The adapter {name!r} is of peft's kind {kind}, which cannot be trained on a device: {reason}.",
                context=f"model: {type(model).__name__}",
                hint="choose another kind, such as LORA, IA3, PREFIX_TUNING or PROMPT_TUNING.",
            )


def _active(model: nn.Module) -> Iterator[tuple[str, PeftConfig]]:
    configs: dict[str, PeftConfig] = getattr(model, "peft_config", None) or {}
    if not configs:
        return iter(())  # models of transformers raise an error if they have no adapters
    active = getattr(model, "active_adapters", None) or getattr(model, "active_adapter", None) or ()
    names = active() if callable(active) else active
    chosen = {names} if isinstance(names, str) else set(names)
    return ((name, config) for name, config in configs.items() if name in chosen)
