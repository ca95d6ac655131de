"""Find the files of a model: a Hugging Face model directory, or a ``.gguf`` file that transformers reads."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepeft.sources.errors import UnreadableGguf
from edgepeft.sources.gguf_header import read_header
from edgepeft_runtime.errors import MissingExtra
from edgepeft_runtime.notices import notice

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SUFFIX = ".gguf"
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


@dataclass(frozen=True)
class ModelFiles:
    """Files of a model.

    Attributes:
        folder: The directory. A ``.gguf`` file takes its tokenizer from here if there is one, else from itself.
        gguf: Name of the file in the directory that contains weights and configuration; ``None`` if there is none.
    """

    folder: Path
    gguf: str | None = None

    def __str__(self) -> str:
        return str(self.folder if self.gguf is None else self.folder / self.gguf)

    @property
    def arguments(self) -> dict[str, str]:
        """Arguments of ``from_pretrained`` beside the directory."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def files_in(folder: Path) -> ModelFiles:
    """Return the files of a directory: its only ``.gguf`` if it has no other weights.

    Raises:
        UnreadableGguf: There are several.
    """
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if not found or any(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
        return ModelFiles(folder)
    if len(found) > 1:
        raise UnreadableGguf(
            f"{folder} has {len(found)} {SUFFIX} files.",
            context=", ".join(file.name for file in found),
            hint="name one of them as the source.",
        )
    return ModelFiles(folder, found[0].name)


def read_gguf_config(files: ModelFiles) -> PretrainedConfig:
    """Return the configuration that transformers makes of a ``.gguf`` file. A line says which weights are rounded.

    Raises:
        UnreadableGguf: The file is damaged, or transformers does not know its architecture.
        MissingExtra: The package ``gguf`` is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra(
            f"Reading {files} needs the package gguf, which is not installed.",
            context=None,
            hint="pip install 'edgepeft[gguf]'",
        )
    assert files.gguf is not None
    header = read_header(files.folder / files.gguf)
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(files.folder, local_files_only=True, **files.arguments)
    except Exception as error:  # transformers and gguf each raise their own exceptions
        raise UnreadableGguf(
            f"transformers cannot read {files}.",
            context=f"architecture {header.architecture!r}: {type(error).__name__}: "
            f"{(str(error).strip().splitlines() or [''])[0]}",
            hint=f"give the model directory that it was converted from; transformers reads: {_architectures()}.",
        ) from error
    if header.quantized is not None:
        notice(
            f"{files}: {header.quantized}; they are dequantized to float32. int4 keeps the numbers of Q4_0 and Q4_1 "
            "up to the rounding of int8; others are rounded once more."
        )
    return config


def _architectures() -> str:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return ", ".join(sorted(GGUF_SUPPORTED_ARCHITECTURES))
