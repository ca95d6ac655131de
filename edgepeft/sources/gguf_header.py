"""Read the header of a ``.gguf`` file: the architecture, and the type and shape of each tensor.

transformers reads the file itself, but says neither its architecture nor its types. The package ``gguf`` reads each
token of the vocabulary as an object, which takes seconds. Format: ggml, docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from edgepeft.sources.errors import UnreadableGguf

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of numbers in the metadata, as ``struct`` writes them; the others are strings and arrays."""

_FLOATS = {"F32", "F16", "BF16", "F64"}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file.

    Attributes:
        kind: ggml's name of its type, such as ``F16`` or ``Q4_1``.
        shape: As in torch; a matrix is ``[outputs, inputs]``.
    """

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GgufHeader:
    """The header of a file.

    Attributes:
        architecture: ggml's name of the architecture, such as ``llama``.
        tensors: The tensors by ggml's names.
    """

    architecture: str
    tensors: Mapping[str, GgufTensor]

    @property
    def quantized(self) -> str | None:
        """How many tensors have which type that rounds weights: ``15 in Q8_0 of 20 tensors``; ``None`` if none has."""
        kinds = Counter(tensor.kind for tensor in self.tensors.values() if tensor.kind not in _FLOATS)
        if not kinds:
            return None
        counts = ", ".join(f"{count} in {kind}" for kind, count in kinds.most_common())
        return f"{counts} of {len(self.tensors)} tensors"


def read_header(path: Path) -> GgufHeader:
    """Read the header of a file.

    Raises:
        UnreadableGguf: The file is damaged, cut off, or of another version.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content).header()
    except (OSError, ValueError, struct.error) as error:
        raise UnreadableGguf(
            f"{path} cannot be read as a GGUF file.", context=str(error), hint="download or convert the file again."
        ) from error


class _Reader:
    """Reads one value after the other. Whatever lies outside the file raises ``ValueError`` or ``struct.error``."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._position = 0

    def header(self) -> GgufHeader:
        if self._bytes(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        (version,) = self._numbers("I")
        if version not in _VERSIONS:
            raise ValueError(f"it has version {version}; versions 2 and 3 are read")
        tensors, pairs = self._numbers("QQ")
        metadata = dict(self._pair() for _ in range(tensors and pairs))
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise ValueError("it has no tensors or no general.architecture")
        return GgufHeader(architecture, dict(self._tensor() for _ in range(tensors)))

    def _pair(self) -> tuple[str, str | None]:
        """Return a key of the metadata, and its value if it is a string."""
        key = self._string()
        (kind,) = self._numbers("I")
        if kind == _STRING:
            return key, self._string()
        if kind == _ARRAY:
            kind, count = self._numbers("IQ")
            if kind == _STRING:
                for _ in range(count):
                    self._bytes(*self._numbers("Q"))
                return key, None
            self._bytes(count * _width(kind))
        else:
            self._bytes(_width(kind))
        return key, None

    def _tensor(self) -> tuple[str, GgufTensor]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._string()
        (rank,) = self._numbers("I")
        shape = self._numbers(f"{min(rank, 8)}Q")[::-1]
        code, offset = self._numbers("IQ")
        kind = GGMLQuantizationType(code)
        elements, size = GGML_QUANT_SIZES[kind]
        if offset + prod(shape) // elements * size > len(self._content):
            raise ValueError(f"it ends before the tensor {name}")
        return name, GgufTensor(kind.name, shape)

    def _string(self) -> str:
        return self._bytes(*self._numbers("Q")).decode("utf-8")

    def _numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(f"<{layout}", self._bytes(struct.calcsize(f"<{layout}")))

    def _bytes(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        if self._position > len(self._content):
            raise ValueError("it is cut off")
        return self._content[start : self._position]


def _width(kind: int) -> int:
    """Bytes of a number."""
    if kind not in _NUMBERS:
        raise ValueError(f"its metadata has values of the unknown type {kind}")
    return struct.calcsize(f"<{_NUMBERS[kind]}")
