"""Load an adapter: the bundle's own, a file, or arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgepeft_runtime.bundle.bundle import Bundle, checked_parameters
from edgepeft_runtime.files.tensorfile import Array, read_tensors, sha256_of, tensor_chunks

AdapterSource = str | Path | Mapping[str, Array]
"""The path of an adapter or an update, or its tensors by name."""


def load_adapter(bundle: Bundle, adapter: AdapterSource | None = None) -> tuple[dict[str, Array], str]:
    """Return the parameters of an adapter and the SHA-256 of its file; ``None`` stands for the bundle's own.

    Raises:
        BundleError: it is damaged, or does not fit the bundle.
    """
    if adapter is None:
        return bundle.adapter(), bundle.adapter_sha256
    if isinstance(adapter, Mapping):
        arrays = {name: np.asarray(array) for name, array in adapter.items()}
        parameters = checked_parameters(arrays, bundle.manifest, "The adapter")
        return parameters, tensor_chunks(parameters)[1]
    file = read_tensors(adapter, most=bundle.adapter_bytes)
    parameters = checked_parameters(file.tensors, bundle.manifest, f"The adapter {adapter}")
    return parameters, sha256_of(adapter)
