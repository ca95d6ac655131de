"""Methods: each marks or adds what may train. One small file per family.

Names are loaded when they are first used: the table in ``registry`` is read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepeft.methods.base import Method, MethodError, by_name
    from edgepeft.methods.bottleneck import Adapter
    from edgepeft.methods.freeze import Freeze
    from edgepeft.methods.frozen_a import FrozenA
    from edgepeft.methods.lora import Dora, Lora, RsLora
    from edgepeft.methods.prompts import Prefix, Prompt, PTuning
    from edgepeft.methods.pruned import Pruned
    from edgepeft.methods.scaling import IA3, Norm, Vera
    from edgepeft.methods.select import BitFit, Full, Head
    from edgepeft.methods.shared import Shared
    from edgepeft.methods.sift import Sift
    from edgepeft.methods.support.existing import attach

_HOMES = {
    "base": "Method MethodError by_name",
    "bottleneck": "Adapter",
    "support.existing": "attach",
    "freeze": "Freeze",
    "frozen_a": "FrozenA",
    "lora": "Dora Lora RsLora",
    "prompts": "Prefix Prompt PTuning",
    "pruned": "Pruned",
    "scaling": "IA3 Norm Vera",
    "select": "BitFit Full Head",
    "shared": "Shared",
    "sift": "Sift",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "IA3",
    "Adapter",
    "BitFit",
    "Dora",
    "Freeze",
    "FrozenA",
    "Full",
    "Head",
    "Lora",
    "Method",
    "MethodError",
    "Norm",
    "PTuning",
    "Prefix",
    "Prompt",
    "Pruned",
    "RsLora",
    "Shared",
    "Sift",
    "Vera",
    "attach",
    "by_name",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'edgepeft.methods' has no attribute {name!r}")
    return getattr(import_module(f"edgepeft.methods.{_HOME_OF[name]}"), name)
