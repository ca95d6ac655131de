"""The losses by the names users choose them by."""

from __future__ import annotations

from edgepeft_export.losses.base import Loss
from edgepeft_runtime.registry import Registry

LOSSES = Registry(Loss, "edgepeft_export.losses.builtin", "loss")


def by_name(name: str, **settings: object) -> Loss:
    """The loss of that name with these settings.

    Raises:
        SettingError: the name or a setting is unknown, or a value is out of range.
    """
    return LOSSES.make(name, **settings)
