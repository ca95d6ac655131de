"""Checks an update against its bundle and hands it to the format asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from edgepeft.aggregation.stacked import is_stack, read_stack
from edgepeft.errors import Contradiction
from edgepeft.merging.errors import MergeError, StackDoesNotFit, UnknownFormat
from edgepeft.merging.target import check_target
from edgepeft_runtime.bundle.adapter_source import AdapterSource, load_adapter
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.update import changed_nothing, check_update, notice_unchanged, read_update

_WRITERS = {
    "peft": "edgepeft.merging.to_peft",
    "torch": "edgepeft.merging.to_torch",
    "onnx": "edgepeft.merging.to_onnx",
    "onnx-adapter": "edgepeft.merging.to_onnx_adapter",
}
PACKED = ("keep", "unpack", "requantize")

_TAKE_STACKS = ("peft", "onnx")

__all__ = ["MergeError", "merge"]


def merge(
    bundle: str | Path | Bundle,
    update: str | Path,
    *,
    to: str,
    out: str | Path,
    adapter: AdapterSource | None = None,
    packed: str = "keep",
    calibration: Sequence[Batch] | None = None,
    base: str | Path | None = None,
    overwrite: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Turn what a device sent back into what the workstation's tools read.

    Args:
        bundle: the bundle the device trained, or its directory.
        update: path of the update, or of an aggregate of many.
        to: the format.
            ``peft``: a directory for ``PeftModel.from_pretrained(base, out)``; only for a bundle made of a PeftModel.
            ``torch``: a state dict of what trained, under the model's own names, ``.pt`` or ``.safetensors`` by the
            suffix of ``out``; for ``model.load_state_dict(state, strict=False)``.
            ``onnx``: a model of its own for inference, its LoRA pairs folded into the weights they adapt.
            ``onnx-adapter``: an ``.onnx_adapter`` for ``onnxruntime.LoraAdapter``, put on ``infer.onnx`` per call.
        out: what to write; whole or not at all.
        adapter: what the device started from, where that is not the bundle's own adapter: an earlier aggregate.
        packed: of ``onnx``, what becomes of pairs beside packed weights. ``keep``: they stay, with the device's outputs
            exactly. ``unpack``: weights become fp32, and pairs are folded. ``requantize``: weights with the pairs in
            them are rounded again as they were.
        calibration: of ``unpack`` and ``requantize``, batches of inputs by which both are compared with the device.
        base: of ``onnx-adapter``, where to write the inference graph with defaults too. The Python package of ONNX
            Runtime needs it: there, inputs that an adapter gives have to be optional.
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
        raise UnknownFormat(f"There is no format {to!r}.", context=None, hint=f"choose one of {', '.join(_WRITERS)}.")
    out = Path(out)
    _check_options(to, packed, base)
    check_target(out, to, overwrite)
    if base is not None:
        check_target(Path(base), "onnx", overwrite)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    parameters = _parameters(bundle, Path(update), to, adapter)
    done = _write(bundle, parameters, to, out, packed, calibration)
    if base is not None:
        import_module(_WRITERS[to]).write_base(bundle, Path(base))
    if announce is not None:
        announce(done)
    return out


def _check_options(to: str, packed: str, base: str | Path | None) -> None:
    if packed not in PACKED:
        raise BadSetting("packed", packed, " or ".join(PACKED))
    if (packed != "keep" and to != "onnx") or (base is not None and to != "onnx-adapter"):
        option, fits = ("base", "onnx-adapter") if base is not None else (packed, "onnx")
        raise Contradiction(
            f"{option} does not go with the format {to!r}.",
            context=None,
            hint=f"it belongs to the format {fits!r}.",
        )


def _write(
    bundle: Bundle,
    parameters: dict[str, Array],
    to: str,
    out: Path,
    packed: str,
    calibration: Sequence[Batch] | None,
) -> str:
    # The formats need different libraries of the workstation: import only the one that was asked for.
    if packed != "keep":
        writer = import_module("edgepeft.merging.to_quantized_onnx")
        return str(writer.write(bundle, parameters, out, packed, calibration))
    return str(import_module(_WRITERS[to]).write(bundle, parameters, out))


def _parameters(bundle: Bundle, update: Path, to: str, adapter: AdapterSource | None) -> dict[str, Array]:
    """What a device or an aggregate holds, checked against the bundle."""
    if is_stack(update):
        if to not in _TAKE_STACKS:
            raise StackDoesNotFit(
                f"A stack cannot be written as {to}.",
                context="its pairs are of a higher rank than the model has.",
                hint=f"merge it to {' or '.join(_TAKE_STACKS)}, or aggregate by another rule.",
            )
        return read_stack(update, bundle)
    found = read_update(update)
    start, digest = load_adapter(bundle, adapter)
    check_update(found, bundle, adapter_sha256=digest)
    if changed_nothing(found.parameters, start):
        notice_unchanged(f"The update {update}")
    return found.parameters
