"""Write an adapter directory that Hugging Face ``peft`` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from edgepeft.merging.bake_prompt import KEY as PROMPT
from edgepeft.merging.bake_prompt import baked_prompt, is_prompt, split_prompt
from edgepeft.merging.errors import HalfAPair, NotAPeftModel, NotInAdapter, UnknownAdapterKey
from edgepeft.merging.stacked_ranks import stacked_ranks
from edgepeft.merging.to_shira import shira
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.files.staging import replace_directory
from edgepeft_runtime.files.tensorfile import Array

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def write(bundle: Bundle, parameters: Mapping[str, Array], out: Path) -> str:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, and return a summary."""
    config, tensors = (shira if bundle.manifest.sparse else _adapter)(bundle, parameters)
    with replace_directory(out) as folder:
        text = json.dumps({**config, "inference_mode": True}, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        _check(folder / WEIGHTS, tensors)
        for file in folder.iterdir():
            file.chmod(0o644)  # some libraries write files that only their owner can read
    return f"{len(tensors)} tensors as a PEFT adapter: PeftModel.from_pretrained(base, {str(out)!r})"


def _adapter(bundle: Bundle, parameters: Mapping[str, Array]) -> tuple[Json, dict[str, Array]]:
    """Return the adapter's configuration and its tensors by key."""
    provenance = _provenance(bundle)
    config, keys = dict(provenance["config"]), provenance["keys"]
    prompt: dict[str, Array] = {}
    if is_prompt(config):
        encoder, parameters = split_prompt(parameters)
        prompt = {PROMPT: baked_prompt(config, encoder)}
    missing = [name for name in parameters if name not in keys]
    if missing:
        raise NotInAdapter(
            f"{len(missing)} of {len(parameters)} trained tensors are not part of a PEFT adapter.",
            context=", ".join(missing[:5]) + (" …" if len(missing) > 5 else ""),
            hint="merge to torch or onnx, or prepare the model with these tensors in modules_to_save.",
        )
    tensors = {keys[name]: np.ascontiguousarray(array) for name, array in parameters.items()}
    _check_halves(bundle.manifest)
    tied = {
        key: np.ascontiguousarray(tensors[keys[name]].transpose(axes)).copy()
        for key, (name, axes) in provenance.get("tied", {}).items()
    }
    return {**config, **stacked_ranks(bundle.manifest, parameters)}, {**prompt, **tensors, **tied}


def _provenance(bundle: Bundle) -> Json:
    """Return the record of ``edgepeft.preparation.peft_format.peft_provenance``."""
    provenance = bundle.manifest.provenance.get("peft")
    if not isinstance(provenance, dict) or not {"config", "keys"} <= provenance.keys():
        raise NotAPeftModel(
            "The bundle was not made from a PEFT model, so its update cannot become a PEFT adapter.",
            context=f"method: {bundle.manifest.provenance.get('method', 'unknown')}",
            hint="merge to torch (a state dict) or onnx (a model for inference).",
        )
    return provenance


def _check_halves(manifest: Manifest) -> None:
    """Refuse a pair whose A was frozen, because peft silently draws a missing half at random."""
    paired = {pair.b for pair in manifest.adapter.pairs}
    alone = [spec.name for spec in manifest.parameters if spec.role == "lora_B" and spec.name not in paired]
    if alone:
        raise HalfAPair(
            f"{len(alone)} pairs lack A, which did not train.",
            context=", ".join(alone[:3]) + (" …" if len(alone) > 3 else ""),
            hint="merge to onnx, or to torch, and load the state dict into the prepared model.",
        )


def _check(path: Path, tensors: Mapping[str, Array]) -> None:
    """Read the file back and compare it. Refuse unknown keys, because peft ignores them without an error."""
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[key], tensors[key]) for key in tensors)
    foreign = [key for key in tensors if key != PROMPT and not key.startswith("base_model.")]
    if foreign:
        raise UnknownAdapterKey(
            "peft would not find all tensors of the adapter.",
            context=f"{foreign[0]!r} does not begin with 'base_model.'",
            hint="prepare the bundle again with this version of edgepeft.",
        )
