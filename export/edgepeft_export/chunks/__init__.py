"""Parts of a train step that run in chunks: logits and attention scores, its largest tensors, never exist whole."""

from edgepeft_export.chunks.attention import LONG, attend_by_head
from edgepeft_export.chunks.loss import CHUNK, LARGE, chunk_losses

__all__ = ["CHUNK", "LARGE", "LONG", "attend_by_head", "chunk_losses"]
