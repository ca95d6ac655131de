"""The identity of a base: the hash of the source's frozen tensors, whatever the compiler and the quantizer do to them.

It is taken from the source, before any pass: a tensor that a pass renames, transposes, merges or folds counts as the
source has it. Tensors are hashed one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.modelfile import stored_tensors
from edgepeft_runtime.files import canonical


class SourceTensor(NamedTuple):
    """A tensor of a source; ``sha256`` is that of its bytes, row-major and little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


def of_parts(
    name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], parts: Iterable[NDArray[np.generic]]
) -> SourceTensor:
    """Describe a tensor of a source, whose numbers come in parts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).view(np.uint8).data)
    return SourceTensor(name, dtype.name, shape, digest.hexdigest())


def of_model(model: ir.Model) -> tuple[SourceTensor, ...]:
    """Describe the initializers and constants of a model, those of subgraphs and functions included."""
    return tuple(_of_tensor(name, tensor) for name, tensor in stored_tensors(model))


def base_sha256(source: Iterable[SourceTensor], parameters: Collection[str]) -> str:
    """Return the hash of all tensors of a source but the parameters (section 2 of the SPEC)."""
    frozen = [[name, dtype, [*shape], sha256] for name, dtype, shape, sha256 in source if name not in parameters]
    return hashlib.sha256(canonical.dumps(sorted(frozen))).hexdigest()


def _of_tensor(name: str, tensor: ir.TensorProtocol) -> SourceTensor:
    if tensor.dtype == ir.DataType.STRING:
        texts = [bytes(text) for text in tensor.string_data()]  # type: ignore[attr-defined]  # a StringTensor
        content = b"".join(len(text).to_bytes(8, "little") + text for text in texts)
        dtype = "string"
    else:
        content, dtype = tensor.tobytes(), str(tensor.dtype.numpy().name)
    return SourceTensor(name, dtype, tuple(tensor.shape.numpy()), hashlib.sha256(content).hexdigest())
