"""Open a bundle: a directory that is checked against its manifest before any of its files is used."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import onnxruntime

from edgepeft_runtime.bundle.folder import FETCH_AGAIN, check_directory, check_hashes, some_of
from edgepeft_runtime.bundle.graphfile import GraphFacts, checked_graph
from edgepeft_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from edgepeft_runtime.bundle.plan import plan
from edgepeft_runtime.bundle.program_checks import WEIGHTS
from edgepeft_runtime.bundle.programs import EVAL, TRAIN
from edgepeft_runtime.bundle.specs import TensorSpec
from edgepeft_runtime.errors import (
    BadManifest,
    CannotReadFile,
    MissingFile,
    NoBundle,
    NotFinite,
    OnnxruntimeTooOld,
    PathEscape,
    WrongIndices,
    WrongTensors,
)
from edgepeft_runtime.figures import size
from edgepeft_runtime.files import canonical
from edgepeft_runtime.files.finite import first_not_finite
from edgepeft_runtime.files.regular import open_regular, read_regular
from edgepeft_runtime.files.staging import recover_directory
from edgepeft_runtime.files.tensorfile import MAX_HEADER, Array, read_tensors
from edgepeft_runtime.names import path_hint
from edgepeft_runtime.tables import html_facts

_LOG = logging.getLogger(__name__)

ADAPTER, OPTIMIZER = "adapter.safetensors", "optimizer.onnx"
_REQUIRED = (OPTIMIZER, WEIGHTS, ADAPTER)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were checked against its manifest; create one with ``open``."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Read the manifest and check the directory against it.

        Args:
            path: the directory.
            verify: also check the hash of every file, that the graphs read no file but ``weights.bin``, and that the
                programs fit them. If false, only names, types and sizes are checked, for a bundle that this machine has
                verified before.

        Raises:
            BundleError: a file is missing, damaged or not allowed, or the manifest is wrong.
        """
        path = Path(path)
        with suppress(OSError):  # unreadable files are reported below
            recover_directory(path)
        manifest = Manifest.from_json(_read_manifest(path))
        _check_runtime(manifest.min_onnxruntime)
        check_declared(manifest)
        check_directory(path, manifest)
        if verify:
            check_hashes(path, manifest)
            _check_graphs(path, manifest)
        _LOG.debug("opened %s: %d files, %d parameters", path, len(manifest.files), len(manifest.parameters))
        return cls(path, manifest)

    def _repr_html_(self) -> str:
        """The path and the main facts."""
        total = size(sum(entry.bytes for entry in self.manifest.files.values()))
        return html_facts(f"bundle {self.path} ({total})", self.manifest.facts())

    @property
    def base_sha256(self) -> str:
        """The hash of the source's frozen tensors, to which adapters and updates belong (section 2 of the SPEC)."""
        return self.manifest.base_sha256

    @property
    def graphs_sha256(self) -> str:
        """The hash of the graphs, programs and frozen weights of a run, to which a checkpoint belongs."""
        programs = self.manifest.programs
        names = (*programs.graphs(TRAIN, EVAL), OPTIMIZER, WEIGHTS)
        hashes = "".join(f"{self.manifest.files[name].sha256}\n" for name in names)
        return hashlib.sha256(hashes.encode() + canonical.dumps(programs.of_a_run())).hexdigest()

    @property
    def adapter_sha256(self) -> str:
        """The hash of the bundle's own adapter, which identifies the round."""
        return self.manifest.files[ADAPTER].sha256

    @property
    def adapter_bytes(self) -> int:
        """The largest size of an adapter or an update of the bundle, in bytes."""
        return self.manifest.files[ADAPTER].bytes + MAX_HEADER

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise MissingFile(
                f"The bundle {self.path} has no file {name}.",
                context="the manifest does not list it.",
                hint=FETCH_AGAIN,
            )
        return self.path / name

    def adapter(self) -> dict[str, Array]:
        """Return the initial parameters in the manifest's order, checked against it."""
        tensors = read_tensors(self.file(ADAPTER)).tensors
        return checked_parameters(tensors, self.manifest, f"The file {ADAPTER}")


def checked_parameters(tensors: Mapping[str, Array], manifest: Manifest, source: str) -> dict[str, Array]:
    """Return ``checked_tensors`` of the parameters; indices lie in their tensor or are all -1 (not picked yet)."""
    checked = checked_tensors(tensors, manifest.parameters, source)
    for spec in manifest.sparse:
        indices = checked[spec.indices]
        picked = bool((indices >= 0).all() and (indices < spec.size).all() and (np.diff(indices) > 0).all())
        if not picked and (spec.gradient is None or bool((indices != -1).any())):
            raise WrongIndices(
                f"{source} contains indices that are not ascending positions in their tensor.",
                context=f"tensor {spec.indices!r}, of {spec.size} elements of {spec.tensor}",
                hint="the file is damaged, or written by something else; use another one.",
            )
    return checked


def checked_tensors(tensors: Mapping[str, Array], specs: Sequence[TensorSpec], source: str) -> dict[str, Array]:
    """Return the tensors in the order of ``specs``, which give their names, dtypes and shapes; values are finite.

    Args:
        tensors: arrays by name.
        specs: their names, dtypes and shapes.
        source: origin of the tensors, as the subject of messages.
    """
    hint = "it belongs to another bundle, or to another preparation of this one."
    wanted = {spec.name for spec in specs}
    if wanted != set(tensors):
        facts = f"missing: {some_of(wanted - set(tensors))}; unknown: {some_of(set(tensors) - wanted)}"
        raise WrongTensors(f"{source} does not contain the bundle's parameters.", context=facts, hint=hint)
    for spec in specs:
        array = tensors[spec.name]
        if (array.dtype.name, array.shape) != (spec.dtype, spec.shape):
            facts = f"expected {spec.dtype} {list(spec.shape)}, found {array.dtype.name} {list(array.shape)}"
            message = f"{source} contains a tensor {spec.name!r} that does not fit the bundle."
            raise WrongTensors(message, context=facts, hint=hint)
        index = first_not_finite(array)
        if index is not None:
            raise NotFinite(
                f"{source} contains a value that is not finite.",
                context=f"tensor {spec.name!r} at {list(index)}: {array[index]}",
                hint="the training that wrote it diverged; use an earlier one.",
            )
    return {spec.name: tensors[spec.name] for spec in specs}


def _read_manifest(path: Path) -> bytes:
    file = path / MANIFEST
    if not path.is_dir():
        hint = path_hint(path, _instead_of_a_directory(path))
        raise NoBundle(f"There is no bundle at {path}.", context="a bundle is a directory.", hint=hint)
    if file.is_symlink() or not file.is_file():
        raise NoBundle(
            f"{path} is not a bundle.", context=f"it has no regular file {MANIFEST}.", hint=_instead_of_a_bundle(path)
        )
    try:
        return read_regular(file, MAX_MANIFEST_BYTES, follow=False)
    except OSError as failure:
        raise CannotReadFile(f"Cannot read {file}.", context=str(failure), hint="check the permissions.") from failure


def _instead_of_a_directory(path: Path) -> str:
    """Return what to do about a file; the arguments may be in another order."""
    if path.suffix in (".onnx", ".gguf"):
        return f"it is a model: edgepeft prepare {path} --out BUNDLE makes a bundle of it."
    if path.suffix == ".safetensors":
        return "it is an update, an adapter or weights: give the directory of the bundle."
    return "check the path; `edgepeft prepare` makes a bundle of a model."


def _instead_of_a_bundle(path: Path) -> str:
    """Return what to do about a directory that is none; a model or a run is often given instead."""
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return f"it is a model: edgepeft prepare {path} --out BUNDLE makes a bundle of it."
    inner = [entry.name for entry in path.iterdir() if (entry / MANIFEST).is_file()] if os.access(path, os.R_OK) else []
    return f"check the path; there is one in it: {path / min(inner)}." if inner else "check the path."


def _check_runtime(needed: str) -> None:
    installed = onnxruntime.__version__
    if _version(installed) < _version(needed):
        raise OnnxruntimeTooOld(
            f"The bundle needs onnxruntime {needed} or later; this machine has {installed}.",
            context="manifest.json: min_onnxruntime",
            hint=f"pip install 'onnxruntime>={needed}', or prepare the bundle for an older onnxruntime.",
        )


def _version(text: str) -> tuple[int, ...]:
    """Parse ``1.19.2.dev3`` as (1, 19, 2)."""
    match = re.match(r"\d{1,9}(\.\d{1,9})*", text)
    if match is None:
        raise BadManifest("The version of onnxruntime is malformed.", f"found {text!r}")
    return tuple(int(part) for part in match[0].split("."))[:3]


def check_declared(manifest: Manifest) -> None:
    """Check that the names in ``files`` stay inside the bundle and include the required ones."""
    for name in manifest.files:
        plain = PurePosixPath(name)
        if str(plain) != name or plain.is_absolute() or {"..", "."} & set(plain.parts) or re.search(r"[\\:\0]", name):
            raise PathEscape(
                "The manifest lists a file outside the bundle.", context=f"files: {name!r}", hint=FETCH_AGAIN
            )
    for name in _REQUIRED:
        if name not in manifest.files:
            raise MissingFile(
                f"The manifest does not list {name}.", context="every bundle needs this file.", hint=FETCH_AGAIN
            )


def _check_graphs(path: Path, manifest: Manifest) -> None:
    interfaces = {}
    for name in (name for name in manifest.files if name.endswith(".onnx")):
        facts = graph_facts(path / name)
        interfaces[name] = facts.interface
        others = set(facts.locations) - {WEIGHTS}
        if others:
            message = f"The graph {name} reads a file other than {WEIGHTS}."
            raise PathEscape(message, context=f"it names {some_of(others)}", hint="do not use this bundle.")
    for program in manifest.programs.by_name():
        plan(manifest, program, interfaces.__getitem__)


def graph_facts(path: Path) -> GraphFacts:
    """Check a graph and return the facts about it: see ``checked_graph``; raises BundleError."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return checked_graph(b"")
            # Mapped, since those of ``ort_training`` contain the weights; not closed, since errors quote parts of it.
            return checked_graph(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as failure:
        raise CannotReadFile(f"Cannot read {path}.", context=str(failure), hint=FETCH_AGAIN) from failure
