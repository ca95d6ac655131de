"""The formats that updates are merged to, by the names users choose them by."""

from __future__ import annotations

from edgepeft.merging.target import Target
from edgepeft_runtime.registry import Registry

TARGETS = Registry(Target, "edgepeft.merging.targets", "format")
