"""Parts of a train step that run over chunks of rows, so that tensors as large as a vocabulary never exist whole."""

from edgepeft_export.chunks.loss import CHUNK, LARGE, chunk_losses

__all__ = ["CHUNK", "LARGE", "chunk_losses"]
