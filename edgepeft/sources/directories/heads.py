"""Other results of ``forward`` than transformers' own, for tasks whose loss transformers computes inside the model.

A head is a class that is put before the model's own, so the names of its parameters and modules stay as they are.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepeft.sources.directories.feature_extractor import masks_silence
from edgepeft.sources.directories.sentence_transformers import Pooling, pooling_of

SCORES, FRAMES = "logits", "frames"


class Head(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """The base of heads.

    Attributes:
        returned: Names of its outputs, where they are others than the task's.
    """

    returned: ClassVar[tuple[str, ...] | None] = None

    @classmethod
    def fits(cls, model: nn.Module) -> bool:  # noqa: ARG003  # of subclasses
        """Whether a model needs the head."""
        return True

    def configure(self, folder: Path) -> None:
        """Read the settings of the head in a model's directory."""


class Upsampled(Head):
    """The classes of pixels in the size of the image, as transformers resizes them for the loss."""

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        logits = super().forward(pixel_values=pixel_values).logits
        size = pixel_values.shape[-2:]
        return {"logits": F.interpolate(logits, size=size, mode="bilinear", align_corners=False)}


class LastEnd(Head):
    """Scores of a text by an encoder and a decoder, at the last token that ends a text: BART, T5.

    transformers picks the token by a mask, whose result has as many rows as there are such tokens.
    """

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return bool(model.config.is_encoder_decoder) and hasattr(model, "classification_head")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if hasattr(self, "_shift_right"):  # T5; others do so themselves
            given["decoder_input_ids"] = self._shift_right(input_ids)
        hidden = getattr(self, self.base_model_prefix)(**given)[0]
        ends = (input_ids == self.config.eos_token_id) * torch.arange(1, input_ids.shape[1] + 1, dtype=torch.int32)
        last = ends.argmax(1)[:, None, None].expand(-1, 1, hidden.shape[-1])
        return {"logits": self.classification_head(hidden.gather(1, last).squeeze(1))}


class Framed(Head):
    """Scores of frames, with the number of frames of each recording, which the loss of CTC reads.

    transformers computes it from a mask of the samples. Models whose feature extractor returns no mask get none: they
    were trained on silence after shorter recordings.
    """

    returned = (SCORES, FRAMES)
    masked = False

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        samples = "input_values" in inspect.signature(model.forward).parameters
        return samples and hasattr(model, "_get_feat_extract_output_lengths")

    def configure(self, folder: Path) -> None:
        self.masked = masks_silence(folder)

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask if self.masked else None
        logits = super().forward(input_values, attention_mask=mask).logits
        return {SCORES: logits, FRAMES: self._get_feat_extract_output_lengths(attention_mask.sum(-1))}


class Pooled(Head):
    """An embedding of each text, as sentence-transformers pools the tokens' hidden states.

    Token ids are ``[examples, texts, tokens]``, embeddings ``[examples, texts, width]``.
    """

    pooling: Pooling

    def configure(self, folder: Path) -> None:
        self.pooling = pooling_of(folder)
        if getattr(self, "pooler", None) is not None:
            self.pooler = None  # a layer of pretraining, which no embedding reads

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        flat = {"input_ids": input_ids.flatten(0, 1), "attention_mask": attention_mask.flatten(0, 1)}
        if token_type_ids is not None:
            flat["token_type_ids"] = token_type_ids.flatten(0, 1)
        hidden = super().forward(**flat)[0]
        pooled = _pooled(hidden, flat["attention_mask"].unsqueeze(-1).to(hidden.dtype), self.pooling.mode)
        if self.pooling.normalized:
            pooled = F.normalize(pooled, dim=-1)
        return {"embeddings": pooled.unflatten(0, input_ids.shape[:2])}


def _pooled(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Return one vector of ``hidden`` ``[texts, tokens, width]`` for each text."""
    if mode == "cls":
        return hidden[:, 0]
    if mode == "max":
        return torch.where(mask > 0, hidden, torch.full_like(hidden, -1e9)).max(1).values
    total, count = (hidden * mask).sum(1), mask.sum(1).clamp(min=1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


_HEADS: dict[str, type[Head]] = {head.__name__: head for head in (Upsampled, LastEnd, Framed, Pooled)}


def with_head(model: nn.Module, name: str | None, folder: Path) -> nn.Module:
    """Put a head before the model's class, in place, with its settings in the directory, if the model needs it."""
    if name is not None and _HEADS[name].fits(model):
        own = type(model)
        model.__class__ = type(own.__name__, (_HEADS[name], own), {"__module__": own.__module__})
        model.configure(folder)
    return model
