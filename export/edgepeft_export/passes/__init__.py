"""Graph edits: a model in, the same model edited in place, each with one purpose. None of them imports torch."""

from edgepeft_export.passes.transposes import transpose_last_two

__all__ = ["transpose_last_two"]
