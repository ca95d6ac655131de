"""Read how a directory of sentence-transformers pools hidden states: ``modules.json`` and ``1_Pooling/config.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgepeft.sources.errors import SourceDoesNotLoad
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.notices import notice

FILE = "modules.json"
MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens")
_OLD_NAMES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Pooling:
    """How the hidden states of tokens become an embedding.

    Attributes:
        mode: One of ``MODES``.
        normalized: Whether embeddings are divided by their norm.
    """

    mode: str = "mean"
    normalized: bool = False


def pooling_of(folder: Path) -> Pooling:
    """Return the pooling of a directory; without ``modules.json`` the mean, with a notice.

    Raises:
        SourceDoesNotLoad: The directory has modules or a pooling that are not known here.
    """
    if not (folder / FILE).is_file():
        notice(f"{folder} has no {FILE}: an embedding is the mean of the tokens' hidden states.")
        return Pooling()
    mode, normalized = "mean", False
    for module in _read(folder / FILE):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            mode = _mode(folder / str(module.get("path")) / "config.json")
        elif kind == "Normalize":
            normalized = True
        elif kind != "Transformer" or module.get("path"):
            raise _refused(folder, f"{FILE} has the module {kind} at {module.get('path')!r}")
    return Pooling(mode, normalized)


def _mode(path: Path) -> str:
    config = _read(path)[0]
    mode = config.get("pooling_mode") or [name for key, name in _OLD_NAMES.items() if config.get(key)] or "mean"
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if mode not in MODES:
        raise _refused(path.parent.parent, f"its pooling is {mode}; there are: {', '.join(MODES)}")
    return str(mode)


def _read(path: Path) -> list[Json]:
    """Return the objects in a file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(path.parent, f"{path.name}: {error}") from error
    found = content if isinstance(content, list) else [content]
    if not all(isinstance(entry, dict) for entry in found):
        raise _refused(path.parent, f"{path.name} is no list of objects")
    return found


def _refused(folder: Path, why: str) -> SourceDoesNotLoad:
    return SourceDoesNotLoad(
        f"The sentence encoder in {folder} cannot be prepared.",
        context=why,
        hint="prepare the model by a function that returns the module and example inputs (file.py:function).",
    )
