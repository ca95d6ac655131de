"""Methods, which mark or add the parameters that train. One small file per family.

A file that defines a ``Method`` with a name adds it: its class to the names here and in ``edgepeft``, its name and
its settings to the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepeft.methods.base import Method
from edgepeft.methods.errors import MethodError
from edgepeft.methods.registry import METHODS, by_name

if TYPE_CHECKING:
    from edgepeft.methods.support.existing import attach

__all__ = ["METHODS", "Method", "MethodError", "attach", "by_name"]


def __getattr__(name: str) -> object:
    """Return the class of a method, such as ``Lora``, or ``attach``, which needs torch."""
    if name == "attach":
        from edgepeft.methods.support.existing import attach

        return attach
    for cls in () if name.startswith("_") else METHODS.values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
