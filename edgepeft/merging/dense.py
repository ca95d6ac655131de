"""Add sparse changes to the tensors they belong to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgepeft_export.program.link import link
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.programs import INFER
from edgepeft_runtime.bundle.specs import SparseSpec
from edgepeft_runtime.files.tensorfile import Array


def with_dense(bundle: Bundle, parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Return the parameters of an update, with whole changed tensors by name in place of values and indices."""
    changed = dict(parameters)
    if bundle.manifest.sparse:
        frozen = link(bundle, INFER).graph.initializers
        for spec in bundle.manifest.sparse:
            values, indices = changed.pop(spec.values), changed.pop(spec.indices)
            changed[spec.tensor] = _sum(_base(frozen, spec), indices, values)
    return changed


def _base(frozen: Mapping[str, ir.Value], spec: SparseSpec) -> Array:
    """Return the tensor in the source's layout; the graph may store it transposed."""
    transposed = spec.tensor not in frozen
    tensor = frozen[f"{spec.tensor}.T" if transposed else spec.tensor].const_value
    assert tensor is not None
    return np.array(tensor.numpy().T if transposed else tensor.numpy(), order="C")


def _sum(base: Array, indices: Array, values: Array) -> Array:
    if indices[0] >= 0:  # otherwise nothing was picked yet
        base.reshape(-1)[indices] += values
    return base
