"""The methods by the names users choose them by."""

from __future__ import annotations

from edgepeft.methods.base import Method
from edgepeft_runtime.registry import Registry

METHODS = Registry(Method, "edgepeft.methods", "method")

DEFAULT = "lora"
"""The method of a model directory where none is named."""


def by_name(name: str, **settings: object) -> Method:
    """Return the method of that name with these settings.

    Raises:
        SettingError: The name or a setting is unknown, or a value is out of range.
    """
    return METHODS.make(name, **settings)
