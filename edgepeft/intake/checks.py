"""The checks that every update passes, however it arrived. They take bytes and values, and do no I/O.

In this order, each with its codes (sections 5 and 8.3 of the SPEC):

1. A header of at most 1 MB (``tensor-file-header``).
2. The form of a tensor file, its digest, and the metadata of an update: see
   :func:`~edgepeft_runtime.train.update.parse_update`.
3. The base (``foreign-update``), the adapter that it started from (``stale-update``), and names, dtypes, shapes and
   finite values of the tensors: see :func:`~edgepeft_runtime.train.update.check_origin`.
4. The norm of the change, where it is limited (``norm-too-large``).

What only one way of receiving updates asks for (signatures, ledger, weights) comes before or after these.
"""

from __future__ import annotations

import math

from edgepeft.errors import NormTooLarge
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import BadTensorFileHeader
from edgepeft_runtime.train.update import Update, check_origin, parse_update

MAX_HEADER_BYTES = 2**20
"""Largest header of an update: names, shapes and metadata."""


def parsed(content: bytes, name: object) -> Update:
    """Return the update that ``content`` is (checks 1 and 2); ``name`` is what errors call it.

    Raises:
        UpdateError: The first check that fails.
    """
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER_BYTES:
        facts = f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are accepted"
        raise BadTensorFileHeader(facts, f"The tensor file {name}")
    return parse_update(content, name)


def checked(content: bytes, name: object, manifest: Manifest, adapter_sha256: str) -> Update:
    """Return the update that ``content`` is, if it started from an adapter of a bundle (checks 1 to 3).

    Args:
        content: The bytes of the file.
        name: What errors call it.
        manifest: The bundle's.
        adapter_sha256: Hash of the adapter file that it has to have started from.

    Raises:
        UpdateError: The first check that fails.
    """
    update = parsed(content, name)
    check_origin(update, manifest, adapter_sha256)
    return update


def check_norm(norm: float, most: float) -> None:
    """Check the L2 norm of what an update changes; one that is not finite is always too large.

    Raises:
        UpdateError: It is larger than ``most`` (``norm-too-large``).
    """
    if not (math.isfinite(norm) and norm <= most):
        facts = f"norm {norm:.6g}; at most {most:.6g}"
        raise NormTooLarge("The update changes too much.", context=facts, hint=None)
