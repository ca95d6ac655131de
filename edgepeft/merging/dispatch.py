"""Checks an update against its bundle and hands it to the format asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from edgepeft.merging.target import MergeError, check_target
from edgepeft_runtime.bundle import Bundle
from edgepeft_runtime.update import check_update, read_update

_WRITERS = {
    "peft": "edgepeft.merging.to_peft",
    "torch": "edgepeft.merging.to_torch",
    "onnx": "edgepeft.merging.to_onnx",
}

__all__ = ["MergeError", "merge"]


def merge(
    bundle: str | Path | Bundle,
    update: str | Path,
    *,
    to: str,
    out: str | Path,
    overwrite: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Turn what a device sent back into what the workstation's tools read.

    Args:
        bundle: the bundle the device trained, or its directory.
        update: path of the update.
        to: the format.
            ``peft``: a directory for ``PeftModel.from_pretrained(base, out)``; only for a bundle made of a PeftModel.
            ``torch``: a state dict of what trained, under the model's own names, ``.pt`` or ``.safetensors`` by the
            suffix of ``out``; for ``model.load_state_dict(state, strict=False)``.
            ``onnx``: a model of its own for inference, its LoRA pairs folded into the weights they adapt.
        out: what to write; whole or not at all.
        overwrite: replace what is there, if it is of the same kind.
        announce: told in a sentence what was done.

    Returns:
        ``out``.

    Raises:
        UpdateError: the update is damaged, foreign to the bundle, or stale.
        BundleError: the bundle is damaged.
        MergeError: the format is unknown or does not fit the bundle, or ``out`` exists.
    """
    if to not in _WRITERS:
        raise MergeError(
            "unknown-format", f"There is no format {to!r}.", context=None, hint=f"choose one of {', '.join(_WRITERS)}."
        )
    out = Path(out)
    check_target(out, to, overwrite)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    found = read_update(update)
    check_update(found, bundle)
    # The formats need different libraries of the workstation: import only the one that was asked for.
    done: str = import_module(_WRITERS[to]).write(bundle, found.parameters, out)
    if announce is not None:
        announce(done)
    return out
