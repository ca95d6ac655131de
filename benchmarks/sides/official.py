"""ONNX Runtime's own training package, without what it does not need to train.

``import onnxruntime.training`` imports torch for a mixed-precision optimizer of its own. The packages below it do not
need torch, so they are imported without running that package's ``__init__``: else its side would carry torch's memory.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import onnxruntime


def open_package() -> None:
    """Make ``onnxruntime.training.*`` importable in an environment without torch."""
    folder = str(Path(onnxruntime.__file__).parent / "training")
    package = ModuleType("onnxruntime.training")
    package.__path__ = [folder]
    package.__spec__ = ModuleSpec("onnxruntime.training", None, is_package=True)
    sys.modules[package.__name__] = package
