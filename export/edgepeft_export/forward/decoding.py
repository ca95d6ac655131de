"""The forward graph of one decoding step, with a cache of keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from edgepeft_export.forward.graph import Forward
from edgepeft_export.graph.shapes import dims_of
from edgepeft_runtime.bundle.generation_spec import CacheSpec


@dataclass(frozen=True)
class Decoding:
    """A graph that generates, and the names of its cache.

    Attributes:
        forward: inputs ``input_ids`` int64 [batch, sequence], ``attention_mask`` int64 [batch, total],
            total = past + sequence, each ``past`` [batch, heads, past, size]; outputs ``logits`` [batch, vocabulary]
            of the last position, each ``present`` [batch, heads, total, size].
        cache: pairs of ``past`` and ``present``, in the order of the graph.
    """

    forward: Forward
    cache: tuple[tuple[str, str], ...]

    def specs(self) -> tuple[CacheSpec, ...]:
        """The cache for the manifest."""
        shapes = {str(value.name): dims_of(value) for value in self.forward.model.graph.inputs}
        return tuple(
            CacheSpec(
                past, present, tuple(f"{past}_{axis}" if dim is None else dim for axis, dim in enumerate(shapes[past]))
            )
            for past, present in self.cache
        )
