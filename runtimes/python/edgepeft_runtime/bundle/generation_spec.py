"""What a manifest says of generating text: section 7 of the SPEC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgepeft_runtime.files.fields import Fields

BATCH, PAST = "batch", "past"


@dataclass(frozen=True)
class CacheSpec:
    """A tensor of keys or values that one step leaves for the next; float32.

    Args:
        past: the input of ``generate.onnx``, and ``present`` the output that is the next step's ``past``.
        shape: of ``past``; one size is called ``batch``, one ``past``: as long as what was read before.
    """

    past: str
    present: str
    shape: tuple[int | str, ...]

    @classmethod
    def parse(cls, fields: Fields) -> CacheSpec:
        """Read the fields of a cache."""
        shape = fields.shape()
        if [dim for dim in shape if isinstance(dim, str)] != [BATCH, PAST]:
            raise fields.wrong("shape", f"sizes, {BATCH!r} and {PAST!r}", list(shape))
        return cls(fields.take("past", str), fields.take("present", str), shape)

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
    end: tuple[int, ...] = ()
    cache: tuple[CacheSpec, ...] = ()

    @classmethod
    def parse(cls, fields: Fields) -> GenerationSpec:
        """Read the fields of ``generation``."""
        ids, mask, end = fields.take("ids", str), fields.take("attention_mask", str, None), fields.take("end", list)
        if not all(type(token) is int and token >= 0 for token in end):
            raise fields.wrong("end", "token ids", end)
        spec = cls(ids, mask, tuple(end), tuple(CacheSpec.parse(part) for part in fields.list_of("cache")))
        fields.finish()
        return spec

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        cache = [{"past": part.past, "present": part.present, "shape": list(part.shape)} for part in self.cache]
        return {"ids": self.ids, "attention_mask": self.attention_mask, "end": list(self.end), "cache": cache}
