"""A state dict of what trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from edgepeft.merging.dense import with_dense
from edgepeft.merging.target import MergeError, publish
from edgepeft_runtime.bundle import Bundle
from edgepeft_runtime.staging import staged
from edgepeft_runtime.tensorfile import Array


def write(bundle: Bundle, parameters: Mapping[str, Array], out: Path) -> str:
    """Write a file for ``model.load_state_dict(state, strict=False)``; returns what was done, in a sentence."""
    state = {name: torch.from_numpy(np.array(array)) for name, array in with_dense(bundle, parameters).items()}
    with staged(out, error=MergeError) as folder:
        made = folder / out.name
        if out.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(state, made)
        else:
            torch.save(state, made)
        publish(made, out)
    return f"{len(state)} tensors as a state dict: model.load_state_dict(..., strict=False)"
