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
    """

    rows: int
    scores: int
    logits: int


CHUNKS = {"normal": ChunkSizes(256, 1 << 20, 64), "small": ChunkSizes(64, 1 << 17, 16)}

NORMAL = CHUNKS["normal"]


def checked_chunks(name: str) -> ChunkSizes:
    """The sizes of that name; raises ``BadSetting`` for an unknown one."""
    if name not in CHUNKS:
        raise BadSetting("chunks", name, " or ".join(CHUNKS))
    return CHUNKS[name]
