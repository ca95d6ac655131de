"""Errors of data files."""

from __future__ import annotations

from edgepeft_runtime.errors import DataError


class BadImage(DataError, code="bad-image"):
    """An image cannot be decoded. Save it again as PNG or JPEG, or leave it out."""


class BadRecording(DataError, code="bad-recording"):
    """A recording cannot be read. Save it again as a .wav file of 16-bit whole numbers, or leave it out."""


class NoRecordings(DataError, code="no-recordings"):
    """The data has recordings, but the bundle does not accept recordings, or it has none where they are needed."""


class NoImages(DataError, code="no-images"):
    """The data is a folder of images, but the bundle does not accept images."""


class NoClass(DataError, code="no-class"):
    """An image is not in the folder of a class."""


class UnknownClass(DataError, code="unknown-class"):
    """The name of a folder is not a class of the bundle."""


class SeveralLabels(DataError, code="several-labels"):
    """The loss of the bundle accepts several labels, but this kind of data has one. Use an .npz file."""


class LabelPerToken(DataError, code="label-per-token"):
    """The bundle accepts more than one label per example, but this kind of data has one. Use an .npz file."""


class NoSuchData(DataError, code="no-such-data"):
    """There is no data at the path."""


class WrongColumns(DataError, code="wrong-columns"):
    """The columns of a table are not those that the bundle accepts."""


class BadHeldOutFraction(DataError, code="bad-held-out-fraction"):
    """The fraction of held-out examples leaves no example on one side."""


class NotText(DataError, code="not-text"):
    """A text is not valid Unicode. Give it in UTF-8."""


class BadTemplate(DataError, code="bad-template"):
    """A template does not contain the placeholder of the prompt exactly once."""


class NoChatTemplate(DataError, code="no-chat-template"):
    """The bundle has no chat template, which conversations need. Give the columns ``prompt`` and ``answer``."""


class BadChatTemplate(DataError, code="bad-chat-template"):
    """The chat template of the bundle is not a valid Jinja template."""


class BadLine(DataError, code="bad-line"):
    """A line of a table does not follow its format, or does not fit the bundle."""


class MixedRows(DataError, code="mixed-rows"):
    """A row of a list is neither a text, nor a tuple of texts and a label, nor a dict."""


class NotUtf8(DataError, code="not-utf-8"):
    """A file is not encoded in UTF-8. Save it again."""


class NoText(DataError, code="no-text"):
    """The bundle does not accept text, or accepts more than text."""


class NoTokenizer(DataError, code="no-tokenizer"):
    """The bundle has no tokenizer. Prepare it from a model directory that has one."""


class BadTokenizer(DataError, code="bad-tokenizer"):
    """The tokenizer of the bundle cannot be read. Prepare the bundle again."""
