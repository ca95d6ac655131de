"""What a manifest says of generating text: section 7 of the SPEC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from edgepeft_runtime.files.schema import Check, Natural, Shape

BATCH, PAST = "batch", "past"


def _has_batch_and_past(shape: tuple[int | str, ...]) -> bool:
    return [dim for dim in shape if isinstance(dim, str)] == [BATCH, PAST]


@dataclass(frozen=True)
class CacheSpec:
    """A tensor of keys or values that one step leaves for the next; float32.

    Args:
        past: the input of ``generate.onnx``, and ``present`` the output that is the next step's ``past``.
        shape: of ``past``; one size is called ``batch``, one ``past``: as long as what was read before.
    """

    past: str
    present: str
    shape: Annotated[Shape, Check(f"sizes, {BATCH!r} and {PAST!r}", _has_batch_and_past)]

    def empty(self, batch: int) -> tuple[int, ...]:
        """Its shape before anything was read."""
        sizes = {BATCH: batch, PAST: 0}
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in self.shape)


@dataclass(frozen=True)
class GenerationSpec:
    """How a causal language model is made to go on with a text.

    Args:
        ids: the input that takes token ids, and ``attention_mask`` the one that says which are there, if any.
        end: tokens that end a text; the first one is learned behind an answer.
        cache: what ``generate.onnx`` keeps; empty where the bundle has no such graph.
    """

    ids: str
    attention_mask: str | None
    end: tuple[Natural, ...] = ()
    cache: tuple[CacheSpec, ...] = ()
