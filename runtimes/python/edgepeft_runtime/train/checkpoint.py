"""State directory of a run: the newest checkpoint and the one before, each with a digest (section 6 of the SPEC)."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.bundle.bundle import Bundle, checked_parameters, checked_tensors
from edgepeft_runtime.bundle.folder import is_bundle
from edgepeft_runtime.errors import (
    CannotWriteState,
    DamagedState,
    FileError,
    ForeignState,
    StateInUse,
    UnknownCheckpoint,
)
from edgepeft_runtime.files.durable import hint_for, make_folder, move, writing
from edgepeft_runtime.files.lock import lock_file, remove_unused
from edgepeft_runtime.files.tensorfile import Array, TensorFile, read_tensors, write_tensors

NEWEST = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
ACTIVATIONS = "activations.bin"
LOCK = "lock"
_FORMAT, _VERSION = "edgepeft-checkpoint", "2"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A saved run.

    Attributes:
        parameters: arrays by name.
        optimizer: state of the optimizer by name.
        best: parameters with the best held-out loss; ``None`` without held-out data.
        run: everything else, as JSON.
    """

    parameters: Mapping[str, Array]
    optimizer: Mapping[str, Array]
    best: Mapping[str, Array] | None
    run: str


class StateDirectory:
    """A state directory, locked for one process until ``close``.

    Args:
        path: the directory; created if it is missing, and removed again by ``close`` if nothing was saved in it.
        bundle: the bundle that is trained.
        adapter_sha256: the hash of the adapter the run starts from.

    Raises:
        StateError: it cannot be created, or another process uses it.
    """

    def __init__(self, path: str | Path, bundle: Bundle, adapter_sha256: str) -> None:
        self.path = Path(path)
        self._bundle = bundle
        self._owner = {"graphs_sha256": bundle.graphs_sha256, "adapter_sha256": adapter_sha256}
        self._keep_newest = True
        if is_bundle(self.path):  # a bundle with other files in it cannot be opened again
            message = f"Cannot use the state directory {self.path}."
            raise CannotWriteState(message, context="it is a bundle.", hint="choose another directory.")
        try:
            self._missing = make_folder(self.path)
            self._lock = lock_file(self.path / LOCK)
        except OSError as failure:
            message = f"Cannot use the state directory {self.path}."
            if isinstance(failure, BlockingIOError):
                hint = "end that process, or use another directory."
                raise StateInUse(message, context="another process trains in it.", hint=hint) from failure
            raise CannotWriteState(message, context=str(failure), hint=hint_for(failure)) from failure

    def close(self) -> None:
        """Release the lock, and remove a new directory without a checkpoint; calling this again does nothing."""
        remove_unused(self.path, self._missing, (LOCK, ACTIVATIONS))
        self._missing = []
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and keep the one before it as the previous one. There is a whole checkpoint at all times.

        Raises:
            StateError: it cannot be written (``cannot-write-file``); the previous one remains.
        """
        groups = {"parameter": checkpoint.parameters, "state": checkpoint.optimizer, "best": checkpoint.best or {}}
        tensors = {f"{group}:{name}": array for group, arrays in groups.items() for name, array in arrays.items()}
        metadata = {"format": _FORMAT, "version": _VERSION, **self._owner, "run": checkpoint.run}
        newest, staged = self.path / NEWEST, self.path / f"{NEWEST}.next"
        write_tensors(staged, tensors, metadata, digest=True)
        with writing(newest):
            # A damaged newest checkpoint must not replace a whole previous one.
            if self._keep_newest and newest.exists():
                newest.replace(self.path / PREVIOUS)
            move(staged, newest)
        self._keep_newest = True

    def load(self) -> Checkpoint | None:
        """Return the newest whole checkpoint; ``None`` in a new directory.

        Raises:
            StateError: all checkpoints are damaged, or the newest belongs to another bundle or adapter.
        """
        failures = []
        for name in (NEWEST, PREVIOUS):
            path = self.path / name
            if not path.exists():
                continue
            try:
                file = read_tensors(path, require_digest=True)
            except FileError as failure:
                failures.append(failure)
                continue
            if failures:
                self._keep_newest = False
                _LOG.warning("%s is damaged; resuming from %s", self.path / NEWEST, path)
            return self._checked(path, file)
        if failures:
            raise DamagedState(
                f"No checkpoint in {self.path} is intact.",
                context="\n".join(str(failure.context) for failure in failures),
                hint="use another state directory; the run has to restart.",
            )
        return None

    def _checked(self, path: Path, file: TensorFile) -> Checkpoint:
        kind = (file.metadata.get("format"), file.metadata.get("version"))
        if kind != (_FORMAT, _VERSION) or "run" not in file.metadata:
            raise UnknownCheckpoint(
                f"{path} is not a checkpoint that this runtime can read.",
                context=f"expected {_FORMAT} {_VERSION}, found {kind[0]} {kind[1]}",
                hint="use another state directory.",
            )
        for key, expected in self._owner.items():
            actual = file.metadata.get(key)
            if actual != expected:
                what = "adapter" if key == "adapter_sha256" else "bundle"
                raise ForeignState(
                    f"The state in {self.path} belongs to another {what}.",
                    context=f"{key}: this run {expected}, the state {actual}",
                    hint="use the bundle and adapter that the run was started with, or another state directory.",
                )
        manifest = self._bundle.manifest
        groups = {group: _group(file.tensors, group) for group in ("parameter", "state", "best")}
        source = f"The checkpoint {path}"
        best = checked_parameters(groups["best"], manifest, source) if groups["best"] else None
        return Checkpoint(
            checked_parameters(groups["parameter"], manifest, source),
            checked_tensors(groups["state"], manifest.optimizer.state, source),
            best,
            file.metadata["run"],
        )


def remove_state(path: Path) -> bool:
    """Remove a state directory that no process uses; return whether it is gone."""
    try:
        lock = lock_file(path / LOCK)
    except OSError:  # another process uses it, or it cannot be written
        return False
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)
    return not path.exists()


def _group(tensors: Mapping[str, Array], group: str) -> dict[str, Array]:
    prefix = f"{group}:"
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
