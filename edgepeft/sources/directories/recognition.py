"""Find the task of a model: named by the user, or by the class in the model's configuration."""

from __future__ import annotations

import json
from pathlib import Path

from edgepeft.data.tasks.base import Task
from edgepeft.data.tasks.registry import TASKS
from edgepeft.sources.errors import NoModelDirectory, TaskNotSupported, UnknownTask
from edgepeft.sources.model_files import ModelFiles
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.names import did_you_mean

GGUF_TASK = "causal-lm"
"""The task of a ``.gguf`` file, which names none."""


def task_of(files: ModelFiles, name: str | None) -> Task:
    """Return the task of a model.

    Args:
        files: The model.
        name: The task that the user names, if any.

    Raises:
        UnknownTask: There is no task of that name, or the configuration names none.
        TaskNotSupported: Models of the task cannot be prepared.
    """
    if name is None:
        name = _named(files.folder, _read_config(files.folder)) if files.gguf is None else GGUF_TASK
    if name not in TASKS:
        raise UnknownTask(
            f"There is no task {name!r}.", context=f"there are: {', '.join(TASKS)}", hint=did_you_mean(name, TASKS)
        )
    task = TASKS.make(name)
    if task.refused is not None:
        why, hint = task.refused
        raise TaskNotSupported(f"Models of the task {name} cannot be prepared: {why}.", context=str(files), hint=hint)
    return task


def class_of(folder: Path) -> str | None:
    """Return the name of the model's class in its configuration."""
    architectures = _read_config(folder).get("architectures") or ()
    return str(architectures[0]) if architectures else None


def _named(folder: Path, config: Json) -> str:
    for task in TASKS.values():
        if task.marker and (folder / task.marker).is_file():
            return task.name
    architectures = [str(name) for name in config.get("architectures") or ()]
    for name in architectures:
        task_name = _of_class(name)
        if task_name is not None:
            return task_name
    raise UnknownTask(
        f"The configuration of {folder} does not name the task of the model.",
        context=f"architectures: {', '.join(architectures) or None}",
        hint=f"name the task: {', '.join(name for name, task in TASKS.items() if task.refused is None)}.",
    )


def _of_class(architecture: str) -> str | None:
    """Return the task in whose list transformers has a class; else that whose classes have names of this ending.

    One ending may belong to several tasks: ``Wav2Vec2ForSequenceClassification`` classifies audio.
    """
    from transformers.models.auto import modeling_auto

    for task in sorted(TASKS.values(), key=lambda task: task.late):
        for mapping in task.mappings:
            listed = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES", {})
            names = {name for value in listed.values() for name in ((value,) if isinstance(value, str) else value)}
            if architecture in names:
                return task.name
    return next((task.name for task in TASKS.values() if architecture.endswith(task.endings)), None)


def _read_config(path: Path) -> Json:
    try:
        content = json.loads((path / "config.json").read_text("utf-8"))
        if isinstance(content, dict):
            return content
        reason = f"it contains a {type(content).__name__} instead of an object"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise NoModelDirectory(
        f"{path} is not a Hugging Face model directory.",
        context=f"config.json: {reason}",
        hint="it is a bundle already: edgepeft train trains it."
        if (path / "manifest.json").is_file()
        else "give a directory written by save_pretrained.",
    )
