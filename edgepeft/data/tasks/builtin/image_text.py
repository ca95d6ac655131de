"""Images and texts that belong together: CLIP and its kin, on pairs given as ``.npz``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import ROWS, Model, Task, floats, text_inputs
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.notices import notice


@dataclass(frozen=True)
class ImageText(Task):
    """Declares the loss of CLIP: in a batch, each text ranks the images, and each image ranks the texts.

    The temperature stays as it is in the model. SigLIP's own loss, a sigmoid per pair, is not built in.
    """

    name: ClassVar[str] = "image-text"
    auto_class: ClassVar[str] = "AutoModelForZeroShotImageClassification"
    mappings: ClassVar[tuple[str, ...]] = ("ZERO_SHOT_IMAGE_CLASSIFICATION",)
    loss: ClassVar[str] = "multiple_negatives"
    outputs: ClassVar[tuple[str, ...] | None] = ("text_embeds", "image_embeds")
    text: ClassVar[bool] = True
    image: ClassVar[bool] = True

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        if model.config.model_type.startswith("siglip"):
            notice("SigLIP trains with CLIP's ranking loss here, not with its own sigmoid for each pair.")
        scale = {} if model.scale is None else {"scale": model.scale}
        return self.loss, {"symmetric": True, **scale}

    def example(self, model: Model) -> dict[str, Array]:
        assert model.image is not None
        pixels = floats(ROWS, model.image.channels, *model.image.size)
        return {**text_inputs(model), model.image.input: pixels}
