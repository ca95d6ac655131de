"""Check an update against its bundle and write it in the requested format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgepeft.aggregation.stacked import is_stack, stack_in
from edgepeft.errors import Contradiction
from edgepeft.merging.errors import StackDoesNotFit
from edgepeft.merging.registry import TARGETS
from edgepeft.merging.target import Merging, Target
from edgepeft_runtime.bundle.adapter_source import AdapterSource, load_adapter
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.files.tensorfile import Array, read_tensors
from edgepeft_runtime.train.update import changed_nothing, check_update, naming, notice_unchanged, update_in


def merge(
    bundle: str | Path | Bundle,
    update: str | Path,
    *,
    to: str | Target,
    out: str | Path,
    adapter: AdapterSource | None = None,
    calibration: Sequence[Batch] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the update of a device, or the aggregate of many, in a format that other tools read.

    Args:
        bundle: The bundle the device trained, or its directory.
        update: Path of the update, or of an aggregate of many.
        to: The name of a format, such as ``peft`` or ``onnx``, or one of ``edgepeft.merging.targets`` with settings.
        out: File or directory to write, atomically.
        adapter: The adapter that the device started from, such as an earlier aggregate; by default the bundle's own.
        calibration: Batches of inputs by which a format that changes outputs is compared with the device.
        overwrite: Replace an existing output of the same kind.
        on_progress: Called with a summary of the result.

    Returns:
        ``out``.

    Raises:
        UpdateError: The update is damaged, foreign to the bundle, or stale.
        BundleError: The bundle is damaged.
        UnknownName: There is no such format.
        MergeError: The format does not fit the bundle, or ``out`` exists.
    """
    target, out = TARGETS.make(to) if isinstance(to, str) else to, Path(out)
    if calibration is not None and not target.changes_outputs:
        raise Contradiction(
            f"Calibration data does not go with the format {target.name!r}.",
            context="the merged model reproduces the device's outputs exactly.",
            hint="omit the data, or dequantize or requantize the weights.",
        )
    target.check(out, overwrite)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    parameters = _parameters(bundle, Path(update), target, adapter)
    summary = target.write(Merging(bundle, parameters, calibration), out)
    if on_progress is not None:
        on_progress(summary)
    return out


def _parameters(bundle: Bundle, path: Path, target: Target, adapter: AdapterSource | None) -> dict[str, Array]:
    """Return the parameters of an update or an aggregate, checked against the bundle."""
    file = read_tensors(path, require_digest=True)
    if is_stack(file):
        if not target.accepts_stacks:
            stacks = [name for name, cls in TARGETS.items() if cls.accepts_stacks]
            raise StackDoesNotFit(
                f"A stack cannot be written as {target.name}.",
                context="its pairs have a higher rank than the model's.",
                hint=f"merge it to {' or '.join(stacks)}, or aggregate by another rule.",
            )
        return stack_in(file, path, bundle)
    update = update_in(file, path)
    start, digest = load_adapter(bundle, adapter)
    with naming(path):
        check_update(update, bundle, adapter_sha256=digest)
    if changed_nothing(update.parameters, start):
        notice_unchanged(f"The update {path}")
    return update.parameters
