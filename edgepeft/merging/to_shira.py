"""Write sparse changes as a SHiRA adapter (Bhardwaj et al., NeurIPS 2024), which Hugging Face ``peft`` loads.

SHiRA stores ``r (in + out)`` values per matrix, so the values are padded with zeros at index 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgepeft.merging.errors import MergeError, NotInAdapter
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.specs import SparseSpec
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.files.tensorfile import Array

PREFIX = "base_model.model."


def shira(bundle: Bundle, parameters: Mapping[str, Array]) -> tuple[Json, dict[str, Array]]:
    """Return the adapter's configuration and its tensors by key.

    Raises:
        MergeError: A changed tensor is not the weight of a linear layer, or is so small that ``r`` does not fit it.
    """
    linear = bundle.manifest.provenance.get("linear", [])
    specs = bundle.manifest.sparse
    if foreign := [spec.tensor for spec in specs if spec.tensor not in linear]:
        raise _refused(foreign, "SHiRA only changes the weights of linear layers")
    rank = max(-(-len(parameters[spec.values]) // sum(spec.shape)) for spec in specs)
    if small := [spec.tensor for spec in specs if rank * sum(spec.shape) > spec.size]:
        raise _refused(small, f"with r = {rank} SHiRA would have more values than they have elements")
    tensors: dict[str, Array] = {}
    for spec in specs:
        tensors |= _pair(spec, rank, parameters)
    sparse = {name for spec in specs for name in (spec.values, spec.indices)}
    whole = {name: array for name, array in parameters.items() if name not in sparse}
    tensors |= {f"{PREFIX}{name}": np.ascontiguousarray(array) for name, array in whole.items()}
    config = {
        "peft_type": "SHIRA",
        "r": rank,
        "target_modules": sorted(_module(spec.tensor) for spec in specs),
        "modules_to_save": sorted({_module(name) for name in whole}) or None,
    }
    return config, tensors


def _pair(spec: SparseSpec, rank: int, parameters: Mapping[str, Array]) -> dict[str, Array]:
    indices, values = parameters[spec.indices], parameters[spec.values]
    count = rank * sum(spec.shape)
    if indices[0] < 0:  # nothing was picked yet
        indices, values = indices[:0], values[:0]
    padded = np.zeros(count, np.float32)
    padded[: len(values)] = values
    positions = np.zeros((2, count), np.int32)
    positions[:, : len(indices)] = np.divmod(indices, spec.shape[1])
    stem = f"{PREFIX}{_module(spec.tensor)}"
    return {f"{stem}.shira_weight": padded, f"{stem}.shira_indices": positions}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _refused(names: list[str], reason: str) -> MergeError:
    return NotInAdapter(
        f"{len(names)} changed tensors do not fit a SHiRA adapter.",
        context=f"{reason}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
        hint="merge to torch or onnx.",
    )
