"""Other results of ``forward`` than transformers' own, for tasks whose loss transformers computes inside the model.

A head is a class that is put before the model's own, so the names of its parameters and modules stay as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Upsampled(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """The classes of pixels in the size of the image, as transformers resizes them for the loss."""

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        logits = super().forward(pixel_values=pixel_values).logits
        size = pixel_values.shape[-2:]
        return {"logits": F.interpolate(logits, size=size, mode="bilinear", align_corners=False)}


_HEADS: dict[str, type[nn.Module]] = {head.__name__: head for head in (Upsampled,)}


def with_head(model: nn.Module, name: str | None) -> nn.Module:
    """Put a head before the model's class, in place."""
    if name is not None:
        own = type(model)
        model.__class__ = type(own.__name__, (_HEADS[name], own), {"__module__": own.__module__})
    return model
