"""Load an adapter directory of Hugging Face ``peft`` as a source: its base, and the adapter to train further."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from edgepeft.errors import NoAdapterDirectory
from edgepeft.sources.errors import AdapterDoesNotFit, BaseNotFound, SourceError

CONFIG = "adapter_config.json"
TASKS = {"SEQ_CLS": "text-classification", "TOKEN_CLS": "token-classification", "CAUSAL_LM": "causal-lm"}
"""Our names of tasks, by those of peft."""


def is_adapter(path: Path) -> bool:
    """Whether a directory contains an adapter, and no model."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def base_of(path: Path) -> tuple[Path, str | None]:
    """Return the model directory that an adapter was trained on, and its task if the adapter names it.

    Raises:
        SourceError: The configuration cannot be read, or the base is not on disk.
    """
    try:
        config: Any = json.loads((path / CONFIG).read_text("utf-8"))
        name, task = str(config["base_model_name_or_path"]), config.get("task_type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoAdapterDirectory(
            f"{path} is not an adapter directory of peft.",
            context=f"{CONFIG}: {type(error).__name__}: {error}",
            hint="give a directory written by PeftModel.save_pretrained.",
        ) from error
    for base in (Path(name), path / name, path.parent / name):
        if base.is_dir():
            return base, TASKS.get(str(task))
    raise BaseNotFound(
        f"The adapter {path} belongs to the model {name!r}, which is not a directory here.",
        context=None,
        hint=f"download that model to a directory, and write its path to base_model_name_or_path in {CONFIG}.",
    )


def with_adapter(base: nn.Module, path: Path) -> nn.Module:
    """Attach the adapter to the base, and set it to train.

    Raises:
        SourceError: The adapter does not fit the base.
    """
    from peft import PeftConfig, PeftModel

    try:
        prompt = PeftConfig.from_pretrained(path).is_prompt_learning
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            # peft loads prompts for inference only, so their trainable parameters are marked below.
            model: nn.Module = PeftModel.from_pretrained(base, path, is_trainable=not prompt)
    except Exception as error:  # peft, safetensors and torch each raise their own exceptions
        raise _does_not_fit(path, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}") from error
    missing = [str(w.message) for w in warned if "missing adapter keys" in str(w.message).lower()]
    if missing:
        raise _does_not_fit(path, missing[0].splitlines()[0][:400])
    if prompt:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("prompt_encoder" in name or "modules_to_save" in name)
    return model


def _does_not_fit(path: Path, reason: str) -> SourceError:
    return AdapterDoesNotFit(
        f"The adapter {path} cannot be attached to its base.",
        context=reason,
        hint="check that base_model_name_or_path names the model it was trained on; name its classes if it has a head.",
    )
