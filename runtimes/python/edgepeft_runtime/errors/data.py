"""Errors of batches and data sets."""

from __future__ import annotations

from edgepeft_runtime.errors.base import BatchError, DataError


class NotABatch(BatchError, code="not-a-batch"):
    """A batch is not a mapping of names to arrays."""


class TextInBatch(BatchError, code="text-in-batch"):
    """A batch or a data set contains text where arrays are needed. Load it with ``edgepeft.data.load``."""


class MissingInput(BatchError, code="missing-input"):
    """A batch lacks an input or a label of the bundle. Name the arrays as the bundle does."""


class UnknownInput(BatchError, code="unknown-input"):
    """A batch has an array that is neither an input nor a label of the bundle. Leave it out."""


class WrongDtype(BatchError, code="wrong-dtype"):
    """An array of a batch has another dtype than the bundle's input or label."""


class WrongShape(BatchError, code="wrong-shape"):
    """An array of a batch has another shape than the bundle's input or label."""


class EmptyBatch(BatchError, code="empty-batch"):
    """A batch has no example. Leave empty batches out."""


class LabelOutOfRange(BatchError, code="label-out-of-range"):
    """A label is not the number of a class. Number the classes from 0."""


class NoLabelCounts(BatchError, code="no-label-counts"):
    """Every label of a step is the ignored one, so there is no loss. Leave such batches out."""


class CannotGenerate(BatchError, code="cannot-generate"):
    """The bundle was not prepared to generate text. Prepare it with the loss causal_lm."""


class BadPrompt(BatchError, code="bad-prompt"):
    """A prompt is not a list of token ids of the model. Tokenize the text first."""


class PromptTooLong(BatchError, code="prompt-too-long"):
    """A prompt leaves no room for an answer. Shorten it."""


class NoData(DataError, code="no-data"):
    """There are no examples. Give at least one."""


class DifferentLengths(DataError, code="different-lengths"):
    """Arrays that belong together have different lengths or shapes."""


class MissingColumn(DataError, code="missing-column"):
    """A frame or a data set lacks a column for an input or a label. Name the columns as the bundle does."""


class CannotReadData(DataError, code="cannot-read-data"):
    """A data file cannot be read. Check the path, the permissions and the format."""


class UnknownData(DataError, code="unknown-data"):
    """The type or suffix of the data is not one that can be read."""


class DataUsedUp(DataError, code="data-used-up"):
    """A generator was read to its end and is needed again. Pass a list, or a function that returns the batches."""
