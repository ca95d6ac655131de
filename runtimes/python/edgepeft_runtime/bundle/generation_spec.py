"""How to generate text with a bundle: ``generation`` in its manifest (section 7 of the SPEC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from edgepeft_runtime.files.schema import Check, Natural, Shape

BATCH, PAST = "batch", "past"


def _has_batch_and_past(shape: tuple[int | str, ...]) -> bool:
    return [dim for dim in shape if isinstance(dim, str)] == [BATCH, PAST]


@dataclass(frozen=True)
class CacheSpec:
    """A float32 tensor of keys or values that one step passes to the next.

    Args:
        past: the value that the program ``generate`` reads.
        present: the result that is the next step's ``past``.
        shape: shape of ``past``. One size is ``batch``, another ``past``, the number of tokens read before.
    """

    past: str
    present: str
    shape: Annotated[Shape, Check(f"sizes, {BATCH!r} and {PAST!r}", _has_batch_and_past)]

    def empty(self, batch: int) -> tuple[int, ...]:
        """Return the shape of ``past`` before the first step."""
        sizes = {BATCH: batch, PAST: 0}
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in self.shape)


@dataclass(frozen=True)
class GenerationSpec:
    """How a causal language model continues a text.

    Args:
        ids: the input of token ids.
        attention_mask: the input that is 1 for tokens and 0 for padding, if there is one.
        end: tokens that end a text; the first one is learned after an answer.
        cache: tensors that the program ``generate`` passes on; empty where the bundle has no such program.
    """

    ids: str
    attention_mask: str | None
    end: tuple[Natural, ...] = ()
    cache: tuple[CacheSpec, ...] = ()
