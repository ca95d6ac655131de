"""How much of the largest tensors of a train step exists at once."""

from __future__ import annotations

from dataclasses import dataclass

from edgepeft_runtime.errors import BadSetting


@dataclass(frozen=True)
class ChunkSizes:
    """Sizes of chunks. Smaller ones take less memory and more time, as each chunk packs the matrices again.

    Attributes:
        rows: rows of a segment between wide tensors.
        scores: attention scores of one example, where a head has no more.
        logits: rows of logits.
        many_logits: the same above ``HUGE`` classes, where a chunk would be larger than the activations of a block.
    """

    rows: int
    scores: int
    logits: int
    many_logits: int

    def logits_of(self, classes: int) -> int:
        """The rows of logits over so many classes."""
        return self.logits if classes <= HUGE else self.many_logits


HUGE = 65536
"""Classes."""

CHUNKS = {"normal": ChunkSizes(256, 1 << 20, 64, 32), "small": ChunkSizes(64, 1 << 17, 16, 16)}

NORMAL = CHUNKS["normal"]


def checked_chunks(name: str) -> ChunkSizes:
    """The sizes of that name; raises ``BadSetting`` for an unknown one."""
    if name not in CHUNKS:
        raise BadSetting("chunks", name, " or ".join(CHUNKS))
    return CHUNKS[name]
