"""Parts of a train step that run in chunks: its largest tensors (logits, scores, wide rows) never exist whole."""

from edgepeft_export.chunks.attention import LONG, attend_by_head
from edgepeft_export.chunks.loss import LARGE, chunk_losses
from edgepeft_export.chunks.rows import divide_rows
from edgepeft_export.chunks.sizes import CHUNKS, NORMAL, ChunkSizes, checked_chunks

__all__ = [
    "CHUNKS",
    "LARGE",
    "LONG",
    "NORMAL",
    "ChunkSizes",
    "attend_by_head",
    "checked_chunks",
    "chunk_losses",
    "divide_rows",
]
