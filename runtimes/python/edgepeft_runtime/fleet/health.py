"""Whether a bundle computes finite outputs with an adapter on this device (SPEC, section 8.4, rule 1.13)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import TensorSpec
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.errors import EdgepeftError, UnhealthyAdapter, UnhealthyBundle
from edgepeft_runtime.files.finite import first_not_finite
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.trainer import Trainer


def check_health(bundle: Bundle, adapter: Path, batch: Batch | None = None, *, is_new: bool = False) -> None:
    """Refuse an adapter that the bundle does not accept, or with which a prediction is not finite.

    Args:
        bundle: the bundle, opened.
        adapter: the file to try.
        batch: inputs to try it with. Without them zeros are fed, and an adapter is refused only if the bundle's own
            one does better on those.
        is_new: whether the bundle has not been in use on this device: then zeros must give finite outputs, too.

    Raises:
        FleetError: the adapter does not work (``unhealthy-adapter``), or not even the bundle's own one
            (``unhealthy-bundle``).
    """
    with Trainer.open(bundle) as trainer:
        inputs = probe(bundle.manifest) if batch is None else batch
        failure = _failure(trainer, inputs, adapter)
        if failure is None:
            return
        bundle_works = _failure(trainer, inputs, None) is None
    if batch is None and not bundle_works and not is_new:
        return
    error, part = (UnhealthyAdapter, "adapter") if bundle_works or not is_new else (UnhealthyBundle, "bundle")
    raise error(
        f"The round's {part} does not work on this device.",
        context=failure,
        hint="the device keeps its current round; pass --probe inputs that the model understands, or inform the host.",
    )


def probe(manifest: Manifest) -> dict[str, Array]:
    """Return the smallest inputs: zeros, and ones for an attention mask."""
    kinds = manifest.text.fields if manifest.text is not None else {}
    return {spec.name: _smallest(spec, manifest, kinds.get(spec.name) == "attention_mask") for spec in manifest.inputs}


def _failure(trainer: Trainer, inputs: Batch, adapter: Path | None) -> str | None:
    """Return what goes wrong in a prediction, ``None`` for nothing."""
    try:
        outputs = trainer.predict(inputs, adapter=adapter)
    except EdgepeftError as failure:
        return f"{failure.message} {failure.context or ''}".strip()
    except Exception as failure:  # onnxruntime's errors have no class of their own
        return str(failure)
    positions = {name: first_not_finite(array) for name, array in outputs.items()}
    return next(
        (f"output {name!r} at {list(at)} is not finite" for name, at in positions.items() if at is not None), None
    )


def _smallest(spec: TensorSpec, manifest: Manifest, is_mask: bool) -> Array:
    shape = [max(1, manifest.dimensions[dim].min) if isinstance(dim, str) else dim for dim in spec.shape]
    return np.full(shape, 1 if is_mask else 0, spec.dtype)
