"""Write a state dict of the trained tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from edgepeft.merging.dense import with_dense
from edgepeft.merging.target import publish
from edgepeft.methods.registry import METHODS
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.files.staging import staged
from edgepeft_runtime.files.tensorfile import Array


def write(bundle: Bundle, parameters: Mapping[str, Array], out: Path) -> str:
    """Write a file for ``model.load_state_dict(state, strict=False)``, and return the code that loads it."""
    state = {name: torch.from_numpy(np.array(array)) for name, array in with_dense(bundle, parameters).items()}
    with staged(out) as folder:
        made = folder / out.name
        if out.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(state, made)
        else:
            torch.save(state, made)
        publish(made, out)
    return f"{len(state)} tensors as a state dict. {_how_to_load(bundle.manifest.provenance, out)}"


def _how_to_load(provenance: Json, out: Path) -> str:
    """Return code that loads the tensors into the model, and asserts that the model has all of them."""
    if "trainable" in provenance:  # the source was a file
        return "Its names are those of the .onnx file's initializers, and of the added pairs."
    lines = ["Load it into the model that was prepared:"]
    if provenance.get("prune"):
        lines[0] = "Load it into the model that was prepared, pruned with the same settings:"
    if provenance.get("method") in METHODS and METHODS[provenance["method"]].adds_parameters:
        lines += ["from edgepeft.methods import attach, by_name", f"model = attach({_method(provenance)}, model)"]
    if out.suffix == ".safetensors":
        lines += ["from safetensors.torch import load_file", f"state = load_file({str(out)!r})"]
    else:
        lines += ["import torch", f"state = torch.load({str(out)!r})"]
    lines.append("assert not model.load_state_dict(state, strict=False).unexpected_keys")
    return "\n".join(lines)


def _method(provenance: Json) -> str:
    """Return the call that makes the method with its settings, without those at their defaults."""
    settings = [repr(provenance["method"])]
    for field in fields(METHODS[provenance["method"]]):
        value = provenance.get(field.name)
        given = tuple(value) if isinstance(value, list) else value
        if field.name in provenance and given != field.default:
            settings.append(f"{field.name}={given!r}")
    return f"by_name({', '.join(settings)})"
