"""Read and write stacks: the mean of products as one long pair per layer, of a higher rank than any bundle's.

The format is that of an update (section 5 of the SPEC) with another name. The ranks of pairs and the numbers of sparse
indices may be larger than the bundle's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgepeft.aggregation.pairs import pairs_of
from edgepeft_runtime.bundle.bundle import Bundle, checked_tensors
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import ParameterSpec, SparseSpec
from edgepeft_runtime.errors import ForeignUpdate, WrongIndices
from edgepeft_runtime.files.tensorfile import Array, TensorFile, read_tensors, write_tensors

FORMAT = "edgepeft-stack"
VERSION = "2"


def write_stack(path: Path, parameters: Mapping[str, Array], bundle: Bundle) -> Path:
    """Write a stack, with its digest."""
    metadata = {"format": FORMAT, "version": VERSION, "base_sha256": bundle.base_sha256}
    write_tensors(path, parameters, metadata, digest=True)
    return path


def is_stack(file: TensorFile) -> bool:
    """Whether a tensor file claims to be a stack."""
    return file.metadata.get("format") == FORMAT


def read_stack(path: str | Path, bundle: Bundle) -> dict[str, Array]:
    """Read a stack; see ``stack_in``."""
    return stack_in(read_tensors(path, require_digest=True), path, bundle)


def stack_in(file: TensorFile, path: str | Path, bundle: Bundle) -> dict[str, Array]:
    """Return the parameters of a stack, checked against the bundle except for their lengths.

    Raises:
        UpdateError: The stack has another base, or does not fit.
    """
    base = file.metadata.get("base_sha256")
    if base != bundle.base_sha256:
        raise ForeignUpdate(
            "The stack has another base.",
            context=f"base of the stack {base}\nbase of the bundle {bundle.base_sha256}",
            hint="merge it with the bundle from which it was aggregated.",
        )
    source = f"The stack {path}"
    tensors = checked_tensors(file.tensors, _lengthened(bundle.manifest, file.tensors), source)
    for spec in bundle.manifest.sparse:
        _check_indices(tensors[spec.indices], spec, source)
    return tensors


def _lengthened(manifest: Manifest, tensors: Mapping[str, Array]) -> list[ParameterSpec]:
    """Return the parameters with the tensors' ranks of pairs and numbers of indices."""
    shapes: dict[str, tuple[int, ...]] = {}
    for pair in pairs_of(manifest):
        if pair.a in tensors and tensors[pair.a].ndim == len(pair.a_shape):
            shapes |= pair.shapes(pair.rank_of(tensors))
    for spec in manifest.sparse:
        if spec.values in tensors:
            shapes |= dict.fromkeys((spec.values, spec.indices), (tensors[spec.values].size,))
    return [replace(spec, shape=shapes.get(spec.name, spec.sizes)) for spec in manifest.parameters]


def _check_indices(indices: Array, spec: SparseSpec, source: str) -> None:
    if bool((indices == -1).all()):
        return
    if not bool((indices >= 0).all() and (indices < spec.size).all() and (np.diff(indices) > 0).all()):
        raise WrongIndices(
            f"{source} contains indices that are not ascending positions in their tensor.",
            context=f"tensor {spec.indices!r}, of {spec.size} elements of {spec.tensor}",
            hint="the file is damaged, or another program wrote it; use another one.",
        )
