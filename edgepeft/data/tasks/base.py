"""The interface of a task. Workstations and devices read the same declaration, so it needs numpy alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.pictures.folder import ImageFolder
from edgepeft.data.records import Records
from edgepeft.data.tasks.columns import TEXT, Columns, classified, notice_unused
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.specs import ImageSpec
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.settings import Named

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROWS = 2
"""Examples in a generated batch."""

_CODES = 128
"""Token ids of an example for a model of characters, which has no vocabulary."""


@dataclass(frozen=True)
class Model:
    """What a task needs of a model to feed it.

    Attributes:
        config: Its configuration.
        arguments: Names of the arguments of its ``forward``.
        length: Number of tokens of an example.
        image: How images become its input; ``None`` if they do not.
        classes: Number of class names that were given, if any.
        mask_id: The tokenizer's token for masked ones, if it has one.
        scale: The factor of similarities that the model has learned, if it has one.
        masked: Whether the model reads a mask of the samples of recordings.
        frames: Name of the output with the number of frames of each recording, if there is one.
    """

    config: PretrainedConfig
    arguments: Collection[str]
    length: int
    image: ImageSpec | None = None
    classes: int | None = None
    mask_id: int | None = None
    scale: float | None = None
    masked: bool = False
    frames: str | None = None


@dataclass(frozen=True)
class Reading:
    """How a data set is read.

    Attributes:
        bundle: The bundle, which describes inputs and labels.
        columns: Names of the columns.
        labelled: Whether labels are needed.
        template: Template of the prompts, with the placeholder ``{prompt}``; ``None`` means the bundle's.
    """

    bundle: Bundle
    columns: Columns
    labelled: bool
    template: str | None = None


@dataclass(frozen=True)
class Task(Named):
    """Declares a task. A subclass has a ``name``, and is the only class of its file.

    Attributes:
        auto_class: Class of transformers that loads the model.
            Without one, the class that the configuration names.
        mappings: Names of transformers' lists of the classes of this task, ``MODEL_FOR_…_MAPPING_NAMES``.
        late: Whether a class that is in lists of several tasks belongs to the other: BART is in those of masked models.
        marker: A file by which a directory shows that it is of this task.
        endings: How the names of further classes end, such as those of a user's own code.
        loss: Name of the loss.
        outputs: Names of the model's outputs, of which the loss reads the first.
        head: Name of a head in ``edgepeft.sources.directories.heads`` that replaces the results of ``forward``
            of the models that need it.
        text, image: Whether the model reads texts or images with the directory's tokenizer or image processor.
        sound: Whether the model reads recordings if its input is samples.
        spells: Whether the classes are characters, which the vocabulary names.
        fields: What each argument that is made of text consists of, as in the manifest's ``text``.
        prompts: Whether texts may be prompts in a template.
        arguments: Arguments with which transformers loads the model.
        names_classes: Whether the labels are classes, which the configuration names.
        half: Whether weights stay in the precision of the checkpoint.
        refused: Why models of the task cannot be prepared, and what to do; empty if they can.
    """

    auto_class: ClassVar[str] = ""
    mappings: ClassVar[tuple[str, ...]] = ()
    late: ClassVar[bool] = False
    marker: ClassVar[str] = ""
    endings: ClassVar[tuple[str, ...]] = ()
    loss: ClassVar[str] = "cross_entropy"
    outputs: ClassVar[tuple[str, ...] | None] = ("logits",)
    head: ClassVar[str | None] = None
    text: ClassVar[bool] = False
    image: ClassVar[bool] = False
    sound: ClassVar[bool] = False
    spells: ClassVar[bool] = False
    fields: ClassVar[Mapping[str, str]] = {"input_ids": "ids", "attention_mask": "attention_mask"}
    prompts: ClassVar[bool] = False
    arguments: ClassVar[Mapping[str, object]] = {}
    names_classes: ClassVar[bool] = False
    half: ClassVar[bool] = False
    refused: ClassVar[tuple[str, str] | None] = None

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:  # noqa: ARG002  # of subclasses
        """Return the name and the settings of the loss that transformers uses for this model."""
        return self.loss, {}

    def example(self, model: Model) -> dict[str, Array]:
        """Return a batch of ``ROWS`` generated examples, arguments of ``forward`` by name."""
        raise NotImplementedError

    def special(self, model: Model) -> dict[str, int]:  # noqa: ARG002
        """Return the ids of tokens that reading data needs, by their names in the manifest."""
        return {}

    def axes(self, example: Mapping[str, Array]) -> Mapping[str, Mapping[int, str]] | None:  # noqa: ARG002
        """Return the sizes of an example that may change; ``None``: those of token ids, and the number of examples."""
        return None

    def table(self, records: Records, reading: Reading) -> Dataset:
        """Read the rows of a table."""
        notice_unused(records.source, Columns((TEXT,)), reading.template)
        return classified(records, reading.bundle, reading.columns, reading.labelled)

    def folder(self, path: Path, reading: Reading) -> Dataset:
        """Read a folder of files."""
        notice_unused(str(path), reading.columns, reading.template)
        return ImageFolder(path, reading.bundle.manifest, labelled=reading.labelled)


def token_ids(config: PretrainedConfig, *shape: int, seed: int = 0) -> NDArray[np.int64]:
    """Return random token ids of a model's vocabulary, none of which is a special token of low number."""
    size = int(getattr(config.get_text_config(), "vocab_size", _CODES))
    return np.random.default_rng(seed).integers(min(4, size - 1), size, shape)


def text_inputs(model: Model, *leading: int) -> dict[str, Array]:
    """Return token ids and a mask, ``[examples, …, tokens]``, as far as the model accepts them."""
    ids = token_ids(model.config, *(leading or (ROWS,)), model.length)
    given: dict[str, Array] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {name: array for name, array in given.items() if name in model.arguments}


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return random numbers from 0 to 1."""
    return np.random.default_rng(seed).random(shape, np.float32)


def number(config: PretrainedConfig, *names: str, default: int) -> int:
    """Return the first of these numbers that a configuration has; of a pair, its first."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return int(value[0] if isinstance(value, list | tuple) else value)
    return default


def problem(config: PretrainedConfig, usual: str = "cross_entropy") -> str:
    """Return the loss of a classifier, which depends on ``problem_type`` or its number of scores."""
    kind = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    return {"regression": "mse", "multi_label_classification": "bce_with_logits"}.get(kind, usual)


def first_present(columns: Sequence[str], *candidates: str) -> str | None:
    """Return the first candidate that is a column."""
    return next((name for name in candidates if name in columns), None)
