"""The optimizers by the names users choose them by."""

from __future__ import annotations

from edgepeft_export.optimizers.base import Optimizer
from edgepeft_runtime.bundle.specs import OptimizerSpec
from edgepeft_runtime.registry import Registry

OPTIMIZERS = Registry(Optimizer, "edgepeft_export.optimizers", "optimizer")

DEFAULT = "adamw"


def by_name(name: str, **settings: object) -> Optimizer:
    """The optimizer of that name with these settings.

    Raises:
        SettingError: the name or a setting is unknown, or a value is out of range.
    """
    return OPTIMIZERS.make(name, **settings)


def of_manifest(spec: OptimizerSpec) -> Optimizer:
    """The optimizer that a manifest describes.

    Raises:
        SettingError: there is none of that kind, or a setting is unknown or out of range.
    """
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.settings.items()}
    return by_name(spec.kind, lr=spec.lr, **settings)
