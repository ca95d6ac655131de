"""The bundle travels with a round: fetched once, verified by hash, tried, and switched to with the adapter."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

import edgepeft_runtime.fleet.health as health
from edgepeft.sync import mirror, publish, rollback
from edgepeft.sync.transports import HostFolder
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.folder import listed
from edgepeft_runtime.errors import RemoteRefused
from edgepeft_runtime.files.hashing import PART
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet.fetching import fetch_verified
from edgepeft_runtime.fleet.joining import join
from edgepeft_runtime.fleet.transports.folder import FolderTransport
from edgepeft_runtime.fleet.transports.over_http import HttpTransport
from edgepeft_runtime.fleet.transports.transport import Stream, read
from edgepeft_runtime.train.trainer import Trainer
from tests.fleet.fleets import NOW, Device, Fleet, code_of
from tests.fleet.servers import serving
from tests.support.tiny_bundle import build, examples


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same base and parameters with another optimizer: its other files are the same."""
    return build(tmp_path_factory.mktemp("other") / "bundle", optimizer="sgd")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Names of blobs that devices open at a folder, and from which byte on."""
    names: list[tuple[str, int]] = []
    original = FolderTransport.open

    def open_(remote: FolderTransport, name: str, start: int = 0) -> AbstractContextManager[Stream]:
        if name.startswith("blobs/"):
            names.append((name.removeprefix("blobs/"), start))
        return original(remote, name, start)

    monkeypatch.setattr(FolderTransport, "open", open_)
    return names


def same(one: Path, two: Path) -> bool:
    """Whether two folders have the same files, to the byte."""
    first, second = ({p.relative_to(root): sha256_of(p) for p in root.rglob("*") if p.is_file()} for root in (one, two))
    return first == second and len(first) > 5


def bundle_of(device: Device) -> Path:
    bundle = device.directory.current().bundle
    assert bundle is not None
    return bundle


def test_a_device_without_a_bundle_gets_it_and_trains(fleet: Fleet) -> None:
    """Nothing but its identity is there before; then it trains, and joins the next round without fetching it again."""
    device = fleet.device()
    fleet.publish(seed=1, with_bundle=True)
    joined = device.fetch()
    assert joined.switched and joined.bundle == bundle_of(device) and same(joined.bundle, fleet.bundle)
    with Trainer.open(joined.bundle, adapter=joined.adapter) as trainer:
        trainer.step(examples(8), lr=0.01)
    assert sorted(path.name for path in device.directory.bundles.iterdir()) == [joined.bundle.name]


def test_what_is_there_is_not_fetched_again(fleet: Fleet, other: Path, opened: list[tuple[str, int]]) -> None:
    """The same bundle costs nothing, another one only the files that differ. The old one stays as a fallback."""
    device = fleet.device()
    fleet.publish(seed=1, with_bundle=True)
    device.fetch()
    files = Bundle.open(fleet.bundle).manifest.files.values()
    assert len(opened) == 1 + len({entry.sha256 for entry in files})
    opened.clear()
    fleet.publish(seed=2)  # later rounds name the same bundle
    assert device.fetch().round.round == 2 and not device.fetch().switched
    assert opened == []
    publish(other, fleet.host, [fleet.remote], with_bundle=True, now=NOW)
    joined = device.fetch()
    assert joined.bundle is not None and same(joined.bundle, other)
    differ = {entry.sha256 for entry in Bundle.open(other).manifest.files.values()} - {e.sha256 for e in files}
    assert {name for name, _ in opened} == differ | {joined.bundle.name} and len(differ) == 1
    assert len(list(device.directory.bundles.iterdir())) == 2
    fleet.publish(seed=3, with_bundle=False)
    device.fetch()  # both slots have the other one now
    assert [path.name for path in device.directory.bundles.iterdir()] == [joined.bundle.name]


def test_unchanged_files_are_sent_once(fleet: Fleet, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing again sends new files, ``mirror`` repairs a damaged copy, and the host keeps each named file."""
    sent: list[str] = []
    original = HostFolder.upload

    def upload(remote: HostFolder, name: str, path: Path) -> None:
        sent.append(name)
        original(remote, name, path)

    monkeypatch.setattr(HostFolder, "upload", upload)
    made = fleet.publish(seed=1, with_bundle=True)
    assert made.bundle is not None
    first, count = len(sent), len({entry.sha256 for entry in Bundle.open(fleet.bundle).manifest.files.values()})
    assert first == 1 + count and sent[-1] == f"blobs/{made.bundle.sha256}"
    assert fleet.publish(seed=2, with_bundle=True).bundle == made.bundle and len(sent) == first
    weights = fleet.remote / "blobs" / Bundle.open(fleet.bundle).manifest.files["weights.bin"].sha256
    weights.write_bytes(bytes(weights.stat().st_size))
    mirror(fleet.host, [fleet.remote])
    assert sha256_of(weights) == weights.name and len(sent) == 2 * first
    del sent[first:]
    changed = publish(other, fleet.host, [fleet.remote], with_bundle=True, now=NOW)
    assert changed.bundle != made.bundle and len(sent) == first + 2
    back = rollback(fleet.host, 1, [fleet.remote], now=NOW)
    assert (back.bundle, back.adapter) == (made.bundle, made.adapter) and len(sent) == first + 2
    assert len(list((fleet.host.published / "blobs").iterdir())) == first + 2


def test_a_fetch_of_a_bundle_resumes(fleet: Fleet, opened: list[tuple[str, int]]) -> None:
    """Files that have arrived, and parts of them, are kept under their hash and used by the next attempt."""
    device = fleet.device()
    made = fleet.publish(seed=1, with_bundle=True)
    assert made.bundle is not None
    files = Bundle.open(fleet.bundle).manifest.files
    weights, graph = files["weights.bin"], files["train.onnx"]
    incoming = device.directory.bundles / "incoming"
    incoming.mkdir(parents=True)
    shutil.copy(fleet.bundle / "train.onnx", incoming / graph.sha256)
    (incoming / weights.sha256).write_bytes((fleet.bundle / "weights.bin").read_bytes()[:17])
    (incoming / made.bundle.sha256).write_bytes(b"{" * 20)  # no good: it is fetched from its beginning
    assert device.fetch().switched and same(bundle_of(device), fleet.bundle)
    assert graph.sha256 not in dict(opened)
    assert dict(opened)[weights.sha256] == 17
    assert [start for name, start in opened if name == made.bundle.sha256] == [20, 0]


def test_a_blob_that_changes_between_ranges_is_fetched_again(fleet: Fleet) -> None:
    """The bytes of two versions are no version; once the remote has the correct one, the device gets it."""
    device = fleet.device()
    fleet.publish(seed=1, with_bundle=True)
    digest = Bundle.open(fleet.bundle).manifest.files["weights.bin"].sha256
    blob, incoming = fleet.remote / "blobs" / digest, device.directory.bundles / "incoming"
    whole = blob.read_bytes()
    blob.write_bytes(bytes(len(whole)))
    incoming.mkdir(parents=True)
    (incoming / digest).write_bytes(whole[:9])
    assert code_of(device.fetch) == "wrong-hash" and not (incoming / digest).exists()
    blob.write_bytes(whole)
    assert device.fetch().switched


def test_the_good_parts_of_a_large_file_are_kept(tmp_path: Path, opened: list[tuple[str, int]]) -> None:
    """If an earlier attempt left a wrong byte in the second part, the file is fetched from there on."""
    whole = bytes(2 * PART) + b"the end"
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "large").write_bytes(whole)
    entry = listed(tmp_path / "blobs" / "large")
    (tmp_path / "into").write_bytes(whole[:PART] + b"x" + whole[PART + 1 :])
    fetch_verified(FolderTransport(tmp_path), "blobs/large", tmp_path / "into", entry)
    assert (tmp_path / "into").read_bytes() == whole
    assert opened == [("large", PART)]


def test_a_damaged_bundle_is_fetched_again(fleet: Fleet, opened: list[tuple[str, int]]) -> None:
    """Of a bundle that has lost a file or a bit, only damaged files are fetched."""
    device = fleet.device()
    fleet.publish(seed=1, with_bundle=True)
    bundle = device.fetch().bundle
    assert bundle is not None
    opened.clear()
    graph = bundle / "train.onnx"
    content = bytearray(graph.read_bytes())
    content[50] ^= 1
    graph.write_bytes(content)
    (bundle / "eval.onnx").unlink()
    assert code_of(device.directory.current) == "no-whole-slot"
    assert device.fetch().switched and same(bundle_of(device), fleet.bundle)
    files = Bundle.open(fleet.bundle).manifest.files
    assert {name for name, _ in opened} <= {files[n].sha256 for n in ("train.onnx", "eval.onnx")} | {bundle.name}
    assert same(bundle, fleet.bundle)


def test_a_device_falls_back_to_the_bundle_it_had(fleet: Fleet, other: Path) -> None:
    """Where the new bundle is lost, or training with it fails twice, adapter and bundle before are in use again."""
    device = fleet.device()
    fleet.publish(seed=1, with_bundle=True)
    old = device.fetch()
    publish(other, fleet.host, [fleet.remote], with_bundle=True, now=NOW)
    device.fetch()
    for _ in range(3):
        current = device.directory.start()
    assert (current.round.round, current.bundle) == (1, old.bundle)
    fleet.publish(seed=4, with_bundle=True)
    device.fetch()
    publish(other, fleet.host, [fleet.remote], with_bundle=True, now=NOW)
    new = device.fetch().bundle
    assert new is not None
    shutil.rmtree(new)
    assert device.directory.current().bundle == old.bundle


def test_a_bundle_that_does_not_work_is_not_used(fleet: Fleet, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that are not finite are found before the switch, also with the bundle's own adapter."""
    device = fleet.device()
    fleet.publish(seed=1, with_bundle=True)
    device.fetch()
    before = device.directory.current()
    publish(other, fleet.host, [fleet.remote], with_bundle=True, now=NOW)
    monkeypatch.setattr(health, "probe", lambda _: {"x": np.full((1, 4), np.inf, np.float32)})
    assert code_of(device.fetch) == "unhealthy-bundle"
    assert device.directory.current() == before
    assert device.fetch(batch={"x": np.zeros((1, 4), np.float32)}).switched


def test_a_round_without_a_bundle_needs_one(fleet: Fleet) -> None:
    """A device that has none says so; one that was given it keeps using it, and fetches it when a round names it."""
    device = fleet.device()
    fleet.publish(seed=1)
    assert code_of(device.fetch) == "no-bundle"
    assert device.join().bundle is None and device.fetch().bundle is None
    fleet.publish(seed=2, with_bundle=True)
    assert device.join().bundle is None
    assert device.fetch().bundle == bundle_of(device)


def test_a_bundle_of_another_base_is_not_fetched(fleet: Fleet, tmp_path: Path, opened: list[tuple[str, int]]) -> None:
    """The manifest is enough to see it; no large file is fetched."""
    device = fleet.device()
    fleet.publish(seed=1, with_bundle=True)
    foreign = Fleet.begin(tmp_path / "foreign", build(tmp_path / "foreign-bundle", seed=9))
    entry = foreign.publish(with_bundle=True).bundle
    assert entry is not None
    shutil.copytree(foreign.remote / "blobs", fleet.remote / "blobs", dirs_exist_ok=True)
    fleet.sign(bundle=entry)
    assert code_of(device.fetch) == "foreign-round"
    assert {name for name, _ in opened} == {entry.sha256}


def test_the_server_gives_blobs_to_devices_alone(fleet: Fleet) -> None:
    """With a token, by name of a hash, to read; a device fetches all it needs over HTTP."""
    device = fleet.device()
    made = fleet.publish(seed=1, with_bundle=True)
    assert made.bundle is not None
    with serving(fleet.host) as port:
        address = f"http://127.0.0.1:{port}"
        name = f"blobs/{made.bundle.sha256}"
        assert code_of(read, HttpTransport(address), name, 2**20) == "not-allowed"
        remote = HttpTransport(address, device.directory.identity().token)
        assert read(remote, name, 2**20) == (fleet.bundle / "manifest.json").read_bytes()
        assert code_of(read, remote, "blobs/manifest.json", 2**20) == "no-such-file"
        with pytest.raises(RemoteRefused, match="405"):
            remote.put(name, b"x")
        remote.close()
        joined = join(address, device.directory, now=NOW)
    assert joined.bundle is not None and same(joined.bundle, fleet.bundle)
