"""Images and texts that belong together: CLIP and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import NoImages, WrongColumns
from edgepeft.data.pictures.folder import Pictures, image_spec
from edgepeft.data.records import Records
from edgepeft.data.table import read_table
from edgepeft.data.tasks.base import ROWS, Model, Reading, Task, first_present, floats, text_inputs, token_ids
from edgepeft.data.tasks.columns import TEXT
from edgepeft.data.text import Texts, encoded, texts_of
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice

IMAGES = ("image", "path", "file", "image_path", "file_name", "image_file")
TEXTS = (TEXT, "caption", "title", "sentence", "description")
"""Columns that are used without being named."""


@dataclass(frozen=True)
class ImagesWithTexts:
    """Images, and the text of each."""

    pictures: Pictures
    texts: Texts

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the inputs at these indices; texts are padded to the longest."""
        return {**self.texts.batch(rows), **self.pictures.batch(rows)}


@dataclass(frozen=True)
class ImageText(Task):
    """Rows have the path of an image and its text. The loss is CLIP's.

    In a batch, each text ranks the images, and each image ranks the texts. The temperature stays as it is in the model.
    SigLIP's own loss, a sigmoid per pair, is not built in. Its texts have their full length, because it reads their
    last token, padding or not.
    """

    name: ClassVar[str] = "image-text"
    auto_class: ClassVar[str] = "AutoModelForZeroShotImageClassification"
    mappings: ClassVar[tuple[str, ...]] = ("ZERO_SHOT_IMAGE_CLASSIFICATION",)
    loss: ClassVar[str] = "multiple_negatives"
    outputs: ClassVar[tuple[str, ...] | None] = ("text_embeds", "image_embeds")
    text: ClassVar[bool] = True
    image: ClassVar[bool] = True

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        if _padded(model):
            notice("SigLIP trains with CLIP's ranking loss here, not with its own sigmoid for each pair.")
        scale = {} if model.scale is None else {"scale": model.scale}
        return self.loss, {"symmetric": True, **scale}

    def example(self, model: Model) -> dict[str, Array]:
        assert model.image is not None
        pixels = floats(ROWS, model.image.channels, *model.image.size)
        if _padded(model):
            length = int(model.config.get_text_config().max_position_embeddings)
            return {"input_ids": token_ids(model.config, ROWS, length), model.image.input: pixels}
        return {**text_inputs(model), model.image.input: pixels}

    def axes(self, example: Mapping[str, Array]) -> Mapping[str, Mapping[int, str]]:
        free = "attention_mask" in example
        texts = {0: "batch", 1: "sequence"} if free else {0: "batch"}
        return {name: texts if array.ndim == 2 else {0: "batch"} for name, array in example.items()}

    def table(self, records: Records, reading: Reading) -> Dataset:
        manifest = reading.bundle.manifest
        texts = manifest.text.fields if manifest.text is not None else ()
        spec, dtype = image_spec(f"{records.source} has paths of some", manifest, texts)
        image, text = _columns(records, reading)
        table = read_table(records, [text], image)
        ids, types = encoded(table, reading.bundle, (spec.input,))
        folder = Path(records.source).parent
        paths = [folder / str(cell) for cell in table.labels or ()]
        return ImagesWithTexts(Pictures(paths, spec, dtype), texts_of(ids, manifest, type_ids=types))

    def folder(self, path: Path, reading: Reading) -> Dataset:
        raise NoImages(
            f"The bundle accepts pairs of images and texts, and {path} is a folder.",
            context=f"its inputs: {', '.join(spec.name for spec in reading.bundle.manifest.inputs)}",
            hint=f"give a table with the columns {IMAGES[0]!r} (paths, relative to the table) and {TEXT!r}.",
        )


def _padded(model: Model) -> bool:
    """Whether texts are as long as the model's positions."""
    return str(model.config.model_type).startswith("siglip")


def _columns(records: Records, reading: Reading) -> tuple[str, str]:
    """Return the column of paths and that of texts; ``--text-column`` may name the second, or both."""
    given, present = reading.columns.texts, records.columns
    image = given[0] if len(given) > 1 else first_present(present, *IMAGES)
    text = given[-1] if given != (TEXT,) else first_present(present, *TEXTS)
    if image is None or text is None:
        raise WrongColumns(
            f"{records.source}: There is no column of {'images' if image is None else 'texts'}.",
            context=f"columns: {some(present, 20)}",
            hint=f"name them (--text-column {IMAGES[0]},{TEXT}): the paths of images, and their texts.",
        )
    return image, text
