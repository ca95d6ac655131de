"""The checks of every update, however it arrived. They operate on bytes and values, and do no I/O.

They run in this order, each with its codes (sections 5 and 8.3 of the SPEC):

1. A header of at most 1 MB (``tensor-file-header``).
2. The form of a tensor file, its digest, and the metadata of an update: see
   ``parse_update``.
3. The base (``foreign-update``), the adapter that it started from (``stale-update``), and names, dtypes, shapes and
   finite values of the tensors: see ``check_origin``.
4. The norm of the change, if it is limited (``norm-too-large``).

Checks of a single way of receiving updates (signatures, ledger, weights) run before or after these.
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
    """Parse the update in ``content`` (checks 1 and 2); errors refer to it as ``name``.

    Raises:
        UpdateError: The first check that fails.
    """
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER_BYTES:
        facts = f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are accepted"
        raise BadTensorFileHeader(facts, f"The tensor file {name}")
    return parse_update(content, name)


def checked(content: bytes, name: object, manifest: Manifest, adapter_sha256: str) -> Update:
    """Parse the update in ``content``, and check that it started from an adapter of a bundle (checks 1 to 3).

    Args:
        content: The bytes of the file.
        name: Name of the file in errors.
        manifest: Manifest of the bundle.
        adapter_sha256: Hash of the adapter file that it must have started from.

    Raises:
        UpdateError: The first check that fails.
    """
    update = parsed(content, name)
    check_origin(update, manifest, adapter_sha256)
    return update


def check_norm(norm: float, most: float) -> None:
    """Check the L2 norm of an update's change; a norm that is not finite is always too large.

    Raises:
        UpdateError: It is larger than ``most`` (``norm-too-large``).
    """
    if not (math.isfinite(norm) and norm <= most):
        facts = f"norm {norm:.6g}; at most {most:.6g}"
        raise NormTooLarge("The update changes too much.", context=facts, hint=None)
