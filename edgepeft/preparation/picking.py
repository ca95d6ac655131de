"""Pick the elements that train on the workstation, by proxy data, so that all devices train the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from edgepeft.preparation.errors import NothingToPick
from edgepeft_runtime.bundle.bundle import ADAPTER, Bundle
from edgepeft_runtime.bundle.folder import listed
from edgepeft_runtime.bundle.manifest import MANIFEST
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.files.staging import revised_directory
from edgepeft_runtime.files.tensorfile import Array, write_tensors
from edgepeft_runtime.train.trainer import Trainer


def pick(bundle: str | Path, batches: Iterable[Batch], *, threads: int | None = None) -> Path:
    """Pick elements by the gradient on these batches, and replace the bundle's program ``select`` by their indices.

    Args:
        bundle: Directory of a bundle whose devices would pick for themselves.
        batches: Arrays by name, inputs and labels. As many are read as the method needs.
        threads: Threads inside an operator; ``None`` leaves the choice to onnxruntime.

    Returns:
        ``bundle``, which has a new adapter: updates of the old one are stale.

    Raises:
        BundleError: The bundle has no elements to pick.
        BatchError, TrainingError: see ``edgepeft_runtime.Trainer.pick``; the bundle does not change.
    """
    opened = Bundle.open(bundle)
    with Trainer.open(opened, threads=threads) as trainer:
        if not trainer.must_pick:
            raise NothingToPick(
                f"{bundle} has no elements to pick.",
                context=f"method: {opened.manifest.provenance.get('method', 'unknown')}",
                hint="prepare it with the method sift and the mask gradient or accumulated.",
            )
        trainer.pick(islice(batches, max(spec.batches for spec in opened.manifest.sparse)))
        parameters = trainer.parameters()
    _replace(opened, parameters)
    return Path(bundle)


def _replace(bundle: Bundle, parameters: dict[str, Array]) -> None:
    """Replace the bundle by a copy that has the new adapter."""
    programs = replace(bundle.manifest.programs, select=None)
    unused = set(bundle.manifest.programs.graphs()) - set(programs.graphs())
    kept = [name for name in bundle.manifest.files if name not in (ADAPTER, *unused)]
    with revised_directory(bundle.path, kept) as folder:
        write_tensors(folder / ADAPTER, parameters)
        files = {name: bundle.manifest.files[name] for name in kept} | {ADAPTER: listed(folder / ADAPTER)}
        sparse = tuple(replace(spec, gradient=None) for spec in bundle.manifest.sparse)
        manifest = replace(bundle.manifest, files=files, sparse=sparse, programs=programs)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
