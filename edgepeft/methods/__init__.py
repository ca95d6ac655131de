"""Methods: each marks or adds what may train. One small file per family."""

from edgepeft.methods.base import Method, MethodError, by_name
from edgepeft.methods.bottleneck import Adapter
from edgepeft.methods.existing import attach
from edgepeft.methods.freeze import Freeze
from edgepeft.methods.frozen_a import FrozenA
from edgepeft.methods.lora import Dora, Lora, RsLora
from edgepeft.methods.prompts import Prefix, Prompt, PTuning
from edgepeft.methods.pruned import Pruned
from edgepeft.methods.scaling import IA3, Norm, Vera
from edgepeft.methods.select import BitFit, Full, Head
from edgepeft.methods.shared import Shared
from edgepeft.methods.sift import Sift

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
