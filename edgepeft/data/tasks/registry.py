"""The tasks by name, and the task of a bundle."""

from __future__ import annotations

from edgepeft.data.tasks.base import Task
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.registry import Registry

TASKS = Registry(Task, "edgepeft.data.tasks.builtin", "task")

_BY_LOSS = {"causal_lm": "causal-lm"}
_USUAL = "text-classification"
"""It also reads rows of numbers and folders of images, each by what the bundle accepts."""


def task_of(manifest: Manifest) -> Task:
    """Return the task of a bundle. That of a user's own model follows from its loss."""
    if manifest.task is not None and manifest.task in TASKS:
        return TASKS.make(manifest.task)
    return TASKS.make(_BY_LOSS.get(manifest.loss.kind, _USUAL))
