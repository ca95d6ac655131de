"""Errors of files and folders, whoever reads or writes them."""

from __future__ import annotations

from edgepeft_runtime.errors.base import EdgepeftError


class FileError(EdgepeftError):
    """A file or folder that cannot be read, written or used."""


class CannotReadFile(FileError, code="cannot-read-file"):
    """A file cannot be opened or read. Check the path and the permissions, or copy the file again."""


class CannotWriteFile(FileError, code="cannot-write-file"):
    """A file or folder cannot be written. Make room, check the permissions, or choose another path."""


class NotARegularFile(FileError, code="not-a-regular-file"):
    """A link, folder, pipe or device is where a plain file has to be. Give the path of the file itself."""


class NotAFolder(FileError, code="not-a-folder"):
    """A file or link is where a folder has to be. Give the path of the folder itself."""


class NoSuchFolder(FileError, code="no-such-folder"):
    """A folder does not exist. Create it, or correct the path."""


class PathInUse(FileError, code="path-in-use"):
    """Another process is using or writing this file or folder. Wait for it to end, or choose another path."""


class TooLarge(FileError, code="too-large"):
    """A file is larger than the limit for its kind, so it is not read."""


class TensorFileError(FileError):
    """A tensor file that is damaged or not in the safetensors format.

    Args:
        problem: the defect, as a sentence.
        source: the file, as the subject of the message.
    """

    def __init__(self, problem: str, source: str = "The tensor file") -> None:
        hint = "fetch or write the file again; the copy was cut short or changed on the way."
        super().__init__(f"{source} is damaged or of another format.", context=problem, hint=hint)


class TruncatedTensorFile(TensorFileError, code="truncated-tensor-file"):
    """The file is shorter or longer than its header says. Copy it again."""


class BadTensorFileHeader(TensorFileError, code="tensor-file-header"):
    """The header is not a JSON object of the safetensors format, or too large."""


class UnknownTensorDtype(TensorFileError, code="tensor-file-dtype"):
    """The header names a dtype that the runtime does not know."""


class BadTensorFileLayout(TensorFileError, code="tensor-file-layout"):
    """The data of the tensors overlaps, leaves gaps or does not fit their shapes."""


class NoDigest(TensorFileError, code="no-digest"):
    """The file has no digest, so it is unknown whether it is complete. Fetch or write it again."""


class WrongDigest(TensorFileError, code="wrong-digest"):
    """The digest in the header does not match the content. Fetch or write the file again."""


class BadDeltaIndices(TensorFileError, code="bad-delta-indices"):
    """The delta-coded indices cannot be decoded. Fetch or write the file again."""


class TensorError(EdgepeftError):
    """Tensors that do not fit the bundle, or contain values that cannot be used."""


class WrongTensors(TensorError, code="wrong-tensors"):
    """The tensors do not have the names, shapes and dtypes of the bundle's parameters.

    Use the bundle they belong to.
    """


class WrongIndices(TensorError, code="wrong-indices"):
    """The indices of a sparse tensor are not ascending positions within it. Use another file."""


class NotFinite(TensorError, code="not-finite"):
    """A tensor of a file or a batch has a value that is NaN or infinite."""
