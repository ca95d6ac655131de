"""The readers, each with files that the project's own writers made."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from PIL import Image

from edgepeft.data.pictures.decoding import FORMATS, decoded
from edgepeft.data.records import read_records
from edgepeft.data.table import read_table
from edgepeft.data.tokenizer import read_tokenizer
from edgepeft.sync import Ledger
from edgepeft.sync.keys import Keys
from edgepeft.sync.ledger import Entry
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.bundle.bundle import Bundle, checked_parameters
from edgepeft_runtime.bundle.graphfile import checked_graph
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import FileEntry
from edgepeft_runtime.data.datasets import read_npz
from edgepeft_runtime.engine.engine import TrainState
from edgepeft_runtime.engine.ort_training.checkpoint import OrtCheckpoint, read_checkpoint, write_checkpoint
from edgepeft_runtime.files.tensorfile import read_tensors, write_tensors
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivery import Delivery
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.rounds import Latest, LatestSignatures, Round, RoundLimits
from edgepeft_runtime.fleet.trust import Slot, Trusted, check_bundle
from edgepeft_runtime.shown import printable
from edgepeft_runtime.train.checkpoint import NEWEST, Checkpoint, StateDirectory
from edgepeft_runtime.train.records import EpochRecord
from edgepeft_runtime.train.run import FitState, Run
from edgepeft_runtime.train.update import Update, read_update, write_update
from tests.fuzz import mutations
from tests.fuzz.mutations import Mutator
from tests.support.bundles import write_tokenizer
from tests.support.tiny_bundle import build

GOLDEN = Path(__file__).parents[1] / "golden" / "bundle"


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        what: what it reads, as the page calls it.
        corpus: files that it takes.
        read: called with a changed file.
        mutate: changes a file.
    """

    what: str
    corpus: tuple[bytes, ...]
    read: Callable[[bytes], object]
    mutate: Mutator


@dataclass(frozen=True)
class Scene:
    """A folder to work in, a tiny bundle, and the parameters of its adapter."""

    folder: Path
    bundle: Bundle
    parameters: dict[str, Any]

    @classmethod
    def set_up(cls, folder: Path) -> Scene:
        bundle = Bundle.open(build(folder / "bundle"))
        return cls(folder, bundle, bundle.adapter())

    def by_path(self, name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        """A reader of bytes out of a reader of a file."""
        path = self.folder / name

        def from_bytes(content: bytes) -> object:
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            return read(path)

        return from_bytes

    def written(self, write: Callable[[Path], object]) -> bytes:
        """What a writer writes to a path."""
        path = self.folder / "written"
        path.unlink(missing_ok=True)
        write(path)
        return path.read_bytes()


Maker = Callable[[Scene], Target]
TARGETS: dict[str, Maker] = {}


def target(maker: Maker) -> Maker:
    """Put a target into the table, under its function's name."""
    assert maker.__name__ not in TARGETS
    TARGETS[maker.__name__] = maker
    return maker


def _target(what: str, corpus: list[bytes], read: Callable[[bytes], object], structured: Mutator | None) -> Target:
    return Target(what, tuple(corpus), read, mutations.mixed(structured))


@target
def tensor_file(scene: Scene) -> Target:
    tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.asarray(True), "c": np.zeros((0, 4), np.float16)}
    corpus = [scene.written(partial(write_tensors, tensors=tensors, digest=digest)) for digest in (False, True)]
    return _target("tensor file", corpus, scene.by_path("t", read_tensors), mutations.of_tensors)


@target
def update(scene: Scene) -> Target:
    indices = {"w.indices": np.array([3, 4, 300, 70_000], np.int32)}
    whole = Update(scene.parameters, "0" * 64, "1" * 64, {"method": "lora", "r": 8}, 12, 3, 0.5, 0.25, "edgepeft")
    coded = replace(whole, parameters={**scene.parameters, **indices})
    corpus = [scene.written(partial(write_update, update=one)) for one in (whole, coded)]

    def read(path: Path) -> None:
        found = {name: array for name, array in read_update(path).parameters.items() if name not in indices}
        checked_parameters(found, scene.bundle.manifest, "The update")

    return _target("update, with delta-coded indices", corpus, scene.by_path("u", read), mutations.of_tensors)


@target
def checkpoint(scene: Scene) -> Target:
    state = StateDirectory(scene.folder / "state", scene.bundle, scene.bundle.adapter_sha256)
    moments = {spec.name: np.zeros(spec.sizes, np.float32) for spec in scene.bundle.manifest.optimizer.state}
    fit = FitState({"epochs": 2, "lr": 0.1}, 4, 8, 1, 2, 0.5, 8.0, 0, 0, None, (EpochRecord(0, 0, None, 0.5, 0.25),))
    run = Run(TrainState({}, {}), 7, None, 4, 8, 0.5, 0.25, None, None, (fit,)).to_json()
    state.save(Checkpoint(scene.parameters, moments, scene.parameters, run))
    corpus = [(scene.folder / "state" / NEWEST).read_bytes()]

    def read(_: Path) -> None:
        found = state.load()
        if found is not None:
            Run.from_json(found.run, TrainState({}, {}), None)

    return _target("checkpoint of a run", corpus, scene.by_path(f"state/{NEWEST}", read), mutations.of_tensors)


@target
def manifest(scene: Scene) -> Target:
    corpus = [(folder / "manifest.json").read_bytes() for folder in (scene.bundle.path, GOLDEN)]
    return _target("`manifest.json`", corpus, Manifest.from_json, mutations.of_json)


@target
def graph(scene: Scene) -> Target:
    corpus = [(scene.bundle.path / name).read_bytes() for name in ("infer.onnx", "eval.onnx")]
    return _target("ONNX graph", corpus, _same_locations, mutations.of_protobuf)


def _same_locations(content: bytes) -> None:
    """An accepted graph names the files that Google's parser finds in it, if that parser accepts it too."""
    found = checked_graph(content).locations
    try:
        parsed = onnx.load_model_from_string(content)
    except DecodeError:
        return
    tensors = [*parsed.graph.initializer]
    tensors += [attribute.t for node in parsed.graph.node for attribute in node.attribute]
    entries = [entry for tensor in tensors for entry in tensor.external_data if entry.key == "location"]
    # A text that is not UTF-8 comes as bytes.
    texts = {
        value.decode("utf-8", "replace") if isinstance(value := entry.value, bytes) else value for entry in entries
    }
    assert {printable(text, keep="") for text in texts} <= found, "the parser finds another file"


@target
def head(scene: Scene) -> Target:
    del scene
    corpus = [Latest("birds", 3, "ab" * 32, 1_700_000_000, 1_800_000_000).to_bytes()]
    return _target("`latest.json`", corpus, Latest.from_bytes, mutations.of_canonical)


@target
def head_signatures(scene: Scene) -> Target:
    del scene
    signed = LatestSignatures({"ab" * 32: "cd" * 64, signatures.sha256(b"head"): "ef" * 64}).to_bytes()

    def read(content: bytes) -> None:
        LatestSignatures.from_bytes(content)

    return _target("`latest.sig`", [signed], read, mutations.of_canonical)


@target
def round_(scene: Scene) -> Target:
    manifest = scene.bundle.manifest
    entry, limits = FileEntry("ef" * 32, 1234), RoundLimits(2**20, 100)
    base, parameters = manifest.base_sha256, manifest.parameters
    made = Round("birds", 3, "ab" * 32, None, 1, None, base, entry, entry, parameters, 1.5, "clip", 1, 2, limits)

    def read(content: bytes) -> None:
        check_bundle(Round.from_bytes(content), manifest)

    return _target("`round.json`", [made.to_bytes()], read, mutations.of_canonical)


@target
def sidecar(scene: Scene) -> Target:
    del scene
    keys = {signatures.HMAC: bytes(32), signatures.ED25519: signatures.public_key(bytes(32))}
    signed = [Delivery("birds", 3, "pi-1", 7, "ab" * 32, 1234, algorithm).signed(bytes(32)) for algorithm in keys]

    def read(content: bytes) -> None:
        found = Delivery.from_bytes(content)
        found.check(found.algorithm, keys[found.algorithm])

    return _target("sidecar of an update", [one.to_bytes() for one in signed], read, mutations.of_canonical)


@target
def trusted(scene: Scene) -> Target:
    del scene
    slots = Slot("slot-a", 3, "ab" * 32), Slot("slot-b", 2, "cd" * 32)
    corpus = [Trusted("birds", 3, "ab" * 32, *slots, 1, "ef" * 32).to_bytes()]
    return _target("`trusted.json` of a device", corpus, Trusted.from_bytes, mutations.of_canonical)


@target
def identity(scene: Scene) -> Target:
    one = Identity("birds", "pi-1", bytes(32), signatures.HMAC, bytes(range(32)), "token")
    read = scene.by_path("device.json", Identity.read)
    return _target("`device.json`", [scene.written(one.write)], read, mutations.of_canonical)


@target
def keys(scene: Scene) -> Target:
    keys = Keys(Workspace(scene.folder / "host"))
    keys.create("birds")
    keys.add("pi-1", scene.folder / "pi-1.json")
    name = "host/keys/devices/pi-1.json"
    read = scene.by_path(name, lambda _: keys.device("pi-1"))
    return _target("a device's key on the host", [(scene.folder / name).read_bytes()], read, mutations.of_canonical)


@target
def ledger(scene: Scene) -> Target:
    with Ledger(scene.folder / "ledger") as written:
        for i in range(3):
            written.add(Entry(f"{i:064x}", 1, f"pi-{i}", 1, 100, 0.5, 1.0, 0, 8, 2, 0.5, None, 1_700_000_000))
        written.block("pi-2", "reason")
        written.refuse("key", "wrong-digest", "reason", "source", 1)
        written.commit()
    corpus = [(scene.folder / "ledger").read_bytes()]

    def read(path: Path) -> None:
        for rest in path.parent.glob(f"{path.name}-*"):
            rest.unlink()
        with Ledger(path) as found:
            found.find(f"{1:064x}")
            list(found.counting(1, 1))
            _ = found.counts(), found.last("pi-1"), found.blocked(), found.refusals()

    return _target("ledger of the host", corpus, scene.by_path("l", read), None)


@target
def ort_checkpoint(scene: Scene) -> Target:
    whole = OrtCheckpoint(scene.parameters, {"base_sha256": "ab" * 32, "adapter_sha256": "cd" * 32})
    corpus = [scene.written(partial(write_checkpoint, checkpoint=whole))]
    return _target("checkpoint of ONNX Runtime Training", corpus, scene.by_path("o", read_checkpoint), None)


@target
def archive(scene: Scene) -> Target:
    arrays = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "labels": np.array([0, 1, 2])}
    corpus = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]
        corpus.append(file.getvalue())
    return _target("`.npz` data", corpus, scene.by_path("a.npz", read_npz), mutations.of_archive)


def _table(path: Path) -> None:
    read_table(read_records(path), "text", "label")


@target
def csv(scene: Scene) -> Target:
    corpus = ['text,label,more\n"a good, ""long"" film",yes,\nschön,no,3\n'.encode()]
    return _target("`.csv` data", corpus, scene.by_path("d.csv", _table), None)


@target
def json_lines(scene: Scene) -> Target:
    corpus = ['{"text": "good \\ud83d\\ude00", "label": "yes"}\n{"text": "schön", "label": 1}\n'.encode()]
    return _target("`.jsonl` data", corpus, scene.by_path("d.jsonl", _table), mutations.of_lines)


@cache
def _images() -> tuple[bytes, ...]:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10, 3)).astype(np.uint8)
    corpus = []
    for kind in FORMATS:
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(file, format=kind)
            corpus.append(file.getvalue())
    return tuple(corpus)


@target
def image(scene: Scene) -> Target:
    read = scene.by_path("i", lambda path: decoded(path, "RGB"))
    return _target(f"images ({', '.join(FORMATS)})", list(_images()), read, None)


@target
def tokenizer(scene: Scene) -> Target:
    corpus = [scene.written(write_tokenizer)]
    read = scene.by_path("tokenizer.json", read_tokenizer)
    return _target("`tokenizer.json`", corpus, read, mutations.of_json)
