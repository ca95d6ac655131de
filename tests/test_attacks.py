"""Attacks on a fleet: each is carried out, refused with its code, and changes nothing; the page says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from edgepeft.sync import Ledger
from edgepeft.sync.collection.facts import HostFacts
from edgepeft.sync.collection.verification import Address, Delivered, Facts, verify
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.device_directory import DeviceDirectory
from edgepeft_runtime.fleet.joining import join
from edgepeft_runtime.fleet.rounds import LatestSignatures
from edgepeft_runtime.fleet.transports.transport import Stream
from edgepeft_runtime.train.update import parse_update, read_update
from tests.attacks import IN_BUNDLE, ON_DEVICE, ON_HOST
from tests.attacks.changes import joined, mutations, split, with_new_digest
from tests.attacks.page import PAGE, page
from tests.attacks.stage import NAME, Stage
from tests.fleet.fleets import NOW, Device, code_of
from tests.support.tiny_bundle import build


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Built once; each attack gets a copy."""
    root = tmp_path_factory.mktemp("attacks")
    return Stage.build(root / "stage", build(root / "bundle"))


@pytest.fixture
def stage(built: Stage, tmp_path: Path) -> Stage:
    return built.copied(tmp_path / "stage")


def _files(stage: Stage) -> dict[Path, bytes]:
    """All files but those in quarantine and the ledger, which records refusals."""
    root, host = stage.fleet.root, stage.fleet.host
    found = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink())
    kept = (path for path in found if host.quarantine not in path.parents and path != host.ledger)
    return {path: path.read_bytes() if path.stat().st_size < 2**24 else b"" for path in kept}


@pytest.mark.parametrize("name", ON_HOST)
def test_the_host_refuses_it_and_nothing_changes(stage: Stage, name: str) -> None:
    """Its code and no other, in quarantine with its reason; what was accepted stays, to the byte; no file appears."""
    attack, before = ON_HOST[name], stage.kept()
    attack.act(stage)
    files = _files(stage)
    found = stage.collect(attack.now)
    assert {refused.code for refused in found.refused} == {attack.code}
    assert found.accepted == () and found.already_there == 2
    assert stage.kept() == before and len(before) == 2
    assert _files(stage) == files
    for refused in found.refused:
        assert (refused.kept / "reason.json").exists()
        assert stage.fleet.host.quarantine in refused.kept.parents
        assert all(line.isprintable() for line in (refused.source, *refused.reason.splitlines()))


@pytest.mark.parametrize("name", ON_DEVICE)
def test_the_device_refuses_it_and_stays_where_it_is(stage: Stage, name: str) -> None:
    """Its code, and the adapter in use is the one it was."""
    attack, current = ON_DEVICE[name], stage.device.directory.current()
    attack.act(stage)
    assert code_of(stage.device.fetch if attack.fetches else stage.device.join, attack.now) == attack.code
    assert stage.device.directory.current() == current


@pytest.mark.parametrize("name", IN_BUNDLE)
def test_a_bundle_with_it_is_not_opened(name: str, tmp_path: Path) -> None:
    """Its code; before the attack the bundle is one that opens."""
    Bundle.open(build(tmp_path / "bundle"))
    IN_BUNDLE[name].act(tmp_path / "bundle")
    assert code_of(Bundle.open, tmp_path / "bundle") == IN_BUNDLE[name].code


def test_the_good_update_of_the_stage_is_good(stage: Stage) -> None:
    """Were it not, every attack with it would be refused for no reason."""
    stage.leave_signed(stage.good)
    found = stage.collect()
    assert [entry.device for entry in found.accepted] == [NAME]
    assert (found.refused, len(stage.kept())) == ((), 3)


def test_a_device_that_equivocated_is_blocked(stage: Stage) -> None:
    """No further update of it is accepted, however good. Accepted ones stay."""
    ON_HOST["equivocation"].act(stage)
    stage.collect()
    device = Device(stage.fleet, DeviceDirectory(stage.fleet.root / "devices" / "pi-1"))
    device.deliver(device.train(seed=77))
    assert "blocked-device" in {refused.code for refused in stage.collect().refused}
    assert len(stage.kept()) == 2


@pytest.mark.slow
def test_random_changes_of_an_update_are_refused(stage: Stage) -> None:
    """Ten thousand changes, each signed by a registered device: the worst it could send."""
    codes = Counter[str]()
    with Ledger(stage.fleet.host.ledger) as ledger:
        facts = HostFacts(stage.fleet.host, ledger, NOW)
        for content in mutations(stage.good, seed=0):
            codes[_judged(facts, stage, content)] += 1
    assert codes[""] == 0, codes
    assert {"wrong-digest", "no-digest", "tensor-file-header", "truncated-tensor-file"} <= set(codes)


@pytest.mark.slow
def test_random_changes_with_a_good_digest_do_no_harm(stage: Stage) -> None:
    """Ten thousand changes of the header with a digest that fits: refused, or the tensors are what they were."""
    codes = Counter[str]()
    original, (header, data) = read_update(stage.update).parameters, split(stage.good)
    with Ledger(stage.fleet.host.ledger) as ledger:
        facts = HostFacts(stage.fleet.host, ledger, NOW)
        for changed in mutations(header, seed=1):
            content = with_new_digest(joined(changed, data))
            code = _judged(facts, stage, content)
            codes[code] += 1
            if code == "":
                found = parse_update(content, "update").parameters
                assert {name: array.tobytes() for name, array in found.items()} == {
                    name: array.tobytes() for name, array in original.items()
                }
    assert codes["wrong-digest"] < sum(codes.values()) / 2, codes
    assert {"not-an-update", "tensor-file-header", "wrong-tensors", "foreign-update"} <= set(codes)


def _judged(facts: Facts, stage: Stage, content: bytes) -> str:
    """The code an update is refused with, ``""`` if it is not; any other error is a failure."""
    digest = signatures.sha256(content)
    sidecar = stage.delivery(content).to_bytes()
    return code_of(verify, Delivered(Address(3, NAME, digest), content, sidecar), facts)


def test_random_changes_of_a_sidecar_are_refused(stage: Stage) -> None:
    """Ten thousand changes, and one good update."""
    sidecar, codes = stage.delivery(stage.good).to_bytes(), Counter[str]()
    digest = signatures.sha256(stage.good)
    with Ledger(stage.fleet.host.ledger) as ledger:
        facts = HostFacts(stage.fleet.host, ledger, NOW)
        for content in mutations(sidecar, seed=2):
            codes[code_of(verify, Delivered(Address(3, NAME, digest), stage.good, content), facts)] += 1
    assert set(codes) <= {"bad-sidecar", "bad-signature", "unknown-device"}, codes


class _Memory:
    """A remote whose files are in memory."""

    def __init__(self, root: Path) -> None:
        names = ("latest.json", "latest.sig", "r000004/round.json", "r000004/adapter.safetensors")
        self.files = {name: (root / name).read_bytes() for name in names}

    @contextmanager
    def open(self, name: str, start: int = 0) -> Iterator[Stream]:
        content = self.files[name]
        yield Stream(BytesIO(content[start:]), start, len(content))

    def put(self, name: str, content: bytes) -> None:
        raise AssertionError(name, content)

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_random_changes_of_a_round_are_refused(stage: Stage) -> None:
    """Ten thousand changes of the three files that lead to an adapter; then the device joins the whole round."""
    stage.fleet.publish(seed=4)
    _drop_the_old_signature(stage.fleet.remote / "latest.sig")
    remote, bundle, device = _Memory(stage.fleet.remote), Bundle.open(stage.fleet.bundle), stage.device.directory
    trusted, codes = device.trusted(), Counter[str]()
    whole = dict(remote.files)
    names = ("latest.json", "latest.sig", "r000004/round.json")
    changes = [mutations(whole[name], seed, 3334) for seed, name in enumerate(names)]
    for name, changed in zip(names, changes, strict=True):
        for content in changed:
            remote.files = {**whole, name: content}
            codes[code_of(join, remote, device, bundle, now=NOW)] += 1
    assert set(codes) <= {"bad-signature", "wrong-hash"}, codes
    assert device.trusted() == trusted
    remote.files = whole
    assert join(remote, device, bundle, now=NOW).switched


def _drop_the_old_signature(path: Path) -> None:
    """A change of the signature of the head before would do no harm, and is rightly not noticed."""
    digest = signatures.sha256(path.with_name("latest.json").read_bytes())
    signed = LatestSignatures.from_bytes(path.read_bytes()).ed25519
    path.write_bytes(LatestSignatures({digest: signed[digest]}).to_bytes())


def test_the_page_is_current() -> None:
    """``python -m tests.attacks`` has nothing to change."""
    assert PAGE.read_text("utf-8") == page()
