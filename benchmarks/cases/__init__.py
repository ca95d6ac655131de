"""The cases: a model, its trainable parameters and one batch. Each is built on request, in the requesting process."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.cases.base import Case

_HOMES = {
    "minilm": ("benchmarks.cases.minilm", "LORA"),
    "mobilenet-lora": ("benchmarks.cases.mobilenet", "LORA"),
    "mobilenet-bias": ("benchmarks.cases.mobilenet", "BIAS"),
    "resnet": ("benchmarks.cases.resnet", "LORA"),
    "unet": ("benchmarks.cases.unet", "LORA"),
    "lstm": ("benchmarks.cases.tagger", "LSTM"),
    "gru": ("benchmarks.cases.tagger", "GRU"),
    "decoder": ("benchmarks.cases.decoder", "LORA"),
    "tiny": ("benchmarks.cases.tiny", "LORA"),
}
"""Case to the module and the name it lives under."""

CASES = tuple(_HOMES)
MEASURED = tuple(name for name in CASES if name != "tiny")
"""The cases that results are about; ``tiny`` only shows, in seconds, that every side runs."""


def load(name: str) -> Case:
    """The case of that name; imports torch."""
    module, attribute = _HOMES[name]
    case: Case = getattr(import_module(module), attribute)
    return case
