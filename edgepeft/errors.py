"""Errors that several packages of the workstation raise."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError, FileError, UpdateError


class WrongClassNames(EdgepeftError, code="wrong-class-names"):
    """The class names do not fit the model, or two of them are equal. Give one name for each score."""


class Contradiction(EdgepeftError, code="contradicting-settings"):
    """Two settings exclude each other. Leave one of them out."""


class MemoryBudgetTooSmall(EdgepeftError, code="memory-budget"):
    """No trainable configuration fits into the memory budget. Allow more memory, or use smaller batches."""


class FixedBatchSize(EdgepeftError, code="fixed-batch-size"):
    """The number of examples of a batch is fixed in the model, so it cannot be chosen. Export it as a dynamic axis."""


class NoAdapterDirectory(EdgepeftError, code="no-adapter-directory"):
    """A path is not an adapter directory of peft. Give one written by save_pretrained."""


class NormTooLarge(UpdateError, code="norm-too-large"):
    """The norm of an update exceeds the limit."""


class SystemFailure(EdgepeftError, code="system-error"):
    """The operating system reports an error."""


class TargetExists(FileError, code="target-exists"):
    """The output path exists. Choose another path, or allow overwriting."""


class WrongSuffix(EdgepeftError, code="wrong-suffix"):
    """The name of the output file has the wrong suffix."""
