"""Read, write and check updates: the trained parameters that a device returns (section 5 of the SPEC)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgepeft_runtime.bundle.bundle import Bundle, checked_parameters
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import ForeignUpdate, NotAnUpdate, StaleUpdate, UpdateError
from edgepeft_runtime.files import index_coding, strict_json
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.files.tensorfile import Array, TensorFile, parse_tensors, read_tensors, write_tensors
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted

FORMAT = "edgepeft-update"
VERSION = "2"


@dataclass(frozen=True)
class Update:
    """The parameters after training, and where they come from.

    Attributes:
        parameters: arrays by name, with the bundle's shapes and dtypes.
        base_sha256: the bundle's.
        adapter_sha256: hash of the adapter file the run started from.
        provenance: the manifest's.
        num_examples: examples trained on, repeats counted.
        steps: optimizer steps.
        loss_before: held-out loss before training, or else the first training loss; ``None`` if unknown.
        loss_after: likewise after training.
        runtime: names and versions of the software that trained.
    """

    parameters: dict[str, Array]
    base_sha256: str
    adapter_sha256: str
    provenance: Json = field(default_factory=dict)
    num_examples: int = 0
    steps: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    runtime: str = ""


def write_update(path: str | Path, update: Update) -> Path:
    """Write an update with its digest, indices delta-coded; raises ``UpdateError`` where that is impossible."""
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "base_sha256": update.base_sha256,
        "adapter_sha256": update.adapter_sha256,
        "provenance": json.dumps(update.provenance, ensure_ascii=False),
        "num_examples": str(update.num_examples),
        "steps": str(update.steps),
        "loss_before": _loss_text(update.loss_before),
        "loss_after": _loss_text(update.loss_after),
        "runtime": update.runtime,
    }
    write_tensors(path, *index_coding.delta_coded(update.parameters, metadata), digest=True)
    return Path(path)


def read_update(path: str | Path, *, most: int | None = None) -> Update:
    """Read an update of at most ``most`` bytes, checked to be whole; ``check_update`` says if it fits a bundle.

    Raises:
        UpdateError: it is damaged, carries no digest, or is not an update.
    """
    return update_in(read_tensors(path, require_digest=True, most=most), path)


def parse_update(content: bytes, name: object) -> Update:
    """Check and return the update in ``content``; ``name`` is what errors call it. See ``read_update``."""
    return update_in(parse_tensors(content, name, require_digest=True), name)


def update_in(file: TensorFile, name: object) -> Update:
    """Return the update in a tensor file; ``name`` is what errors call it. See ``read_update``."""
    metadata = file.metadata
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        found = f"{quoted(metadata.get('format'))} {quoted(metadata.get('version'))}"
        raise _not_an_update(name, f"expected {FORMAT} {VERSION}, found {found}")
    try:
        return Update(
            parameters=file.tensors,
            base_sha256=metadata["base_sha256"],
            adapter_sha256=metadata["adapter_sha256"],
            provenance=_provenance(metadata["provenance"]),
            num_examples=_natural(metadata["num_examples"]),
            steps=_natural(metadata["steps"]),
            loss_before=_loss(metadata["loss_before"]),
            loss_after=_loss(metadata["loss_after"]),
            runtime=metadata["runtime"],
        )
    except KeyError as missing:
        raise _not_an_update(name, f"it lacks {missing}") from None
    except ValueError as failure:
        raise _not_an_update(name, str(failure)) from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let the errors of the block name the file of the update."""
    try:
        yield
    except UpdateError as error:
        raise error.reworded(f"{path}: {error.message}", error.context) from None


def check_update(update: Update, bundle: Bundle, *, adapter_sha256: str | None = None) -> None:
    """Check that an update belongs to a bundle.

    Args:
        update: The update.
        bundle: The bundle that it should belong to.
        adapter_sha256: Hash of the adapter file that the round started from, where that is not the bundle's own.

    Raises:
        UpdateError: See ``check_origin``; both sides are named.
    """
    check_origin(update, bundle.manifest, adapter_sha256 or bundle.adapter_sha256)


def check_origin(update: Update, manifest: Manifest, adapter_sha256: str) -> None:
    """Check the base, the adapter and the tensors of an update, in this order.

    Raises:
        UpdateError: It was trained on another base (``foreign-update``), started from another adapter
            (``stale-update``), or its tensors are not those of the manifest, or not finite.
    """
    if update.base_sha256 != manifest.base_sha256:
        raise ForeignUpdate(
            "The update was trained on another base.",
            context=f"base of the update {update.base_sha256}\nbase of the bundle {manifest.base_sha256}",
            hint="use the bundle that the update was trained on.",
        )
    if update.adapter_sha256 != adapter_sha256:
        raise StaleUpdate(
            "The update started from another adapter: it is of another round.",
            context=f"adapter of the update {update.adapter_sha256}\nadapter of this round {adapter_sha256}",
            hint="leave it out, or let the device train again from this round's adapter.",
        )
    checked_parameters(update.parameters, manifest, "The update")


def changed_nothing(parameters: Mapping[str, Array], start: Mapping[str, Array]) -> bool:
    """Return whether all floats equal those that training started from; a tensor missing there started at 0."""
    floats = {name: array for name, array in parameters.items() if array.dtype.kind == "f"}
    return all(
        np.array_equal(array, start[name]) if name in start else not array.any() for name, array in floats.items()
    )


def notice_unchanged(what: str) -> None:
    """Warn that an update learned nothing; it is accepted like any other."""
    notice(
        f"{what} changed nothing: every tensor is the one it started from (learning rate, labels, number of steps?)."
    )


def _not_an_update(name: object, context: str) -> UpdateError:
    hint = "pass a file that save_update wrote, by a version of edgepeft that fits this one."
    return NotAnUpdate(f"{name} is not an update.", context=context, hint=hint)


def _loss_text(loss: float | None) -> str:
    return "" if loss is None or not math.isfinite(loss) else repr(float(loss))


def _loss(text: str) -> float | None:
    if text == "":
        return None
    if len(text) > 64:
        raise ValueError(f"a loss is {quoted(text)}")
    loss = float(text)
    if not math.isfinite(loss):
        raise ValueError(f"a loss is {quoted(text)}")
    return loss


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise ValueError(f"expected a count, found {quoted(text)}")
    return int(text)


def _provenance(text: str) -> Json:
    provenance = strict_json.loads(text)
    if not isinstance(provenance, dict):
        raise ValueError(f"the provenance is not a JSON object: {text[:80]}")
    return provenance
