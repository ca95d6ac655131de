"""Attacks on a fleet, each carried out and refused; ``python -m tests.attacks`` writes ``docs/ATTACKS.md`` from them.

Who attacks: *anybody* may write to the place where updates are left (a stick, a bucket), and has no key; *a device* is
registered, and signs whatever it likes; *a place* gives devices what it likes, and has no key of the host.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgepeft.sync import Collected, accepted, collect
from edgepeft_runtime.fleet import canonical, signatures
from edgepeft_runtime.fleet.delivery import Delivery
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.rounds import Head
from edgepeft_runtime.fleet.slots import DeviceHome
from edgepeft_runtime.tensorfile import SEAL_LENGTH, write_tensors
from edgepeft_runtime.update import read_update, write_update
from tests.fleet.fleets import DAY, NOW, Device, Fleet

PAGE = Path(__file__).parent.parent / "docs" / "ATTACKS.md"
ANYBODY, DEVICE, PLACE = "anybody", "a device", "a place"
NAME = "mallory"
"""The device whose key the attacker has."""


@dataclass(frozen=True)
class Stage:
    """A fleet at round 3 with two honest updates accepted, and what an attacker can lay hands on."""

    fleet: Fleet
    update: Path
    """A good update of round 3, not delivered yet."""
    old: Path
    """The place as it was at round 2."""

    @classmethod
    def build(cls, root: Path, bundle: Path) -> Stage:
        """Three rounds; two devices deliver to the last."""
        fleet = Fleet.begin(root, bundle)
        devices = [fleet.device(name) for name in ("pi-1", "pi-2", NAME, "ed")]
        fleet.publish(seed=1)
        fleet.publish(seed=2)
        shutil.copytree(fleet.place, root / "old")
        fleet.publish(seed=3, max_update_norm=1.0, norm_action="refuse", max_staleness=1, days=30)
        for device in devices:
            device.join()
        for seed, device in enumerate(devices[:2]):
            device.deliver(device.train(seed=seed))
        assert len(collect([fleet.place], fleet.host, now=NOW).accepted) == 2
        return cls(fleet, devices[2].train(seed=9), root / "old")

    def copied(self, root: Path) -> Stage:
        """A stage of its own to attack."""
        fleet = Fleet(Path(shutil.copytree(self.fleet.root, root)), self.fleet.bundle)
        return Stage(fleet, root / self.update.relative_to(self.fleet.root), root / "old")

    @property
    def device(self) -> Device:
        """The attacker's device; where a place attacks, the victim."""
        return Device(self.fleet, DeviceHome(self.fleet.root / "devices" / NAME))

    @cached_property
    def identity(self) -> Identity:
        """What the attacker's device was given."""
        return Identity.read(self.fleet.root / f"{NAME}.json")

    @property
    def good(self) -> bytes:
        return self.update.read_bytes()

    def collect(self, now: float = NOW + 60) -> Collected:
        """What the host makes of it."""
        return collect([self.fleet.place], self.fleet.host, now=now)

    def kept(self) -> list[tuple[str, bytes]]:
        """What counts for the round, to the byte."""
        return [(entry.device, path.read_bytes()) for entry, path in accepted(self.fleet.host)]

    def folder(self, number: int = 3, device: str = NAME) -> Path:
        path = self.fleet.place / "inbox" / f"r{number:06d}" / device
        path.mkdir(parents=True, exist_ok=True)
        return path

    def delivery(self, content: bytes, **fields: Any) -> Delivery:
        """A sidecar of the attacker's device, signed by its key."""
        digest = signatures.sha256(content)
        bare = Delivery("birds", 3, NAME, 1, digest, len(content), signatures.HMAC)
        return replace(bare, **fields).signed(self.identity.key)

    def leave(self, content: bytes, sidecar: Delivery | bytes, number: int = 3, device: str = NAME) -> Path:
        """Write an update under its hash, and a sidecar beside it."""
        path = self.folder(number, device) / f"{signatures.sha256(content)}.safetensors"
        path.write_bytes(content)
        written = sidecar if isinstance(sidecar, bytes) else sidecar.to_bytes()
        path.with_suffix(".sig").write_bytes(written)
        return path

    def leave_signed(self, content: bytes, **fields: Any) -> Path:
        """Write an update that the attacker's device has signed, at the place it says."""
        sidecar = self.delivery(content, **fields)
        return self.leave(content, sidecar, sidecar.round, sidecar.device)

    def changed(self, **fields: Any) -> bytes:
        """The good update with other fields, sealed again."""
        path = self.fleet.root / "changed"
        write_update(path, replace(read_update(self.update), **fields))
        return path.read_bytes()

    def with_tensors(self, change: Callable[[dict[str, Any]], None]) -> bytes:
        """The good update with other tensors, sealed again."""
        parameters = {name: array.copy() for name, array in read_update(self.update).parameters.items()}
        change(parameters)
        return self.changed(parameters=parameters)


@dataclass(frozen=True)
class Attack:
    """An attack: what it does, who does it, and the code it is refused with."""

    what: str
    who: str
    code: str
    act: Callable[[Stage], object]
    now: float = NOW + 60


ON_HOST: dict[str, Attack] = {}
ON_DEVICE: dict[str, Attack] = {}


def attack(
    what: str, who: str, code: str, **more: Any
) -> Callable[[Callable[[Stage], object]], Callable[[Stage], object]]:
    """Put a function into the table of its victim."""

    def add(act: Callable[[Stage], object]) -> Callable[[Stage], object]:
        table = ON_DEVICE if who == PLACE else ON_HOST
        assert act.__name__ not in table
        table[act.__name__] = Attack(what, who, code, act, **more)
        return act

    return add


# Damage on the way


@attack("truncated: an update loses its end", ANYBODY, "wrong-hash")
def cut(stage: Stage) -> None:
    path = stage.leave_signed(stage.good)
    path.write_bytes(stage.good[:-7])


@attack("truncated and renamed to fit", ANYBODY, "wrong-place")
def cut_and_renamed(stage: Stage) -> None:
    stage.leave(stage.good[:-7], stage.delivery(stage.good))


@attack("truncated, and signed so", DEVICE, "bad-seal")
def cut_and_signed(stage: Stage) -> None:
    stage.leave_signed(stage.good[:-7])


@attack("emptied, and signed so", DEVICE, "truncated-tensor-file")
def emptied(stage: Stage) -> None:
    stage.leave_signed(b"")


@attack("bit-flipped: one bit of an update", ANYBODY, "wrong-hash")
def flipped(stage: Stage) -> None:
    path = stage.leave_signed(stage.good)
    path.write_bytes(stage.good[:-9] + bytes([stage.good[-9] ^ 1]) + stage.good[-8:])


@attack("bit-flipped, and signed so", DEVICE, "bad-seal")
def flipped_and_signed(stage: Stage) -> None:
    stage.leave_signed(stage.good[:-9] + bytes([stage.good[-9] ^ 1]) + stage.good[-8:])


@attack("bit-flipped: one bit of a signature", ANYBODY, "bad-signature")
def flipped_signature(stage: Stage) -> None:
    sidecar = stage.delivery(stage.good)
    digit = "1" if sidecar.signature[5] == "0" else "0"
    stage.leave(stage.good, replace(sidecar, signature=sidecar.signature[:5] + digit + sidecar.signature[6:]))


@attack("a sidecar with white space, or a field too many", ANYBODY, "bad-sidecar")
def loose_sidecar(stage: Stage) -> None:
    stage.leave(stage.good, stage.delivery(stage.good).to_bytes() + b" ")
    fields = json.loads(stage.delivery(stage.good).to_bytes())
    other = stage.changed(num_examples=1)
    stage.leave(other, canonical.dumps({**fields, "admin": True}))


@attack("a sidecar without end", ANYBODY, "too-large")
def endless_sidecar(stage: Stage) -> None:
    stage.leave(stage.good, b"{" * 2**20)


# Forgery


@attack("forged: signed by another key", ANYBODY, "bad-signature")
def forged(stage: Stage) -> None:
    bare = stage.delivery(stage.good)
    stage.leave(stage.good, bare.signed(bytes(32)))


@attack("forged: signed by one device in the name of another", DEVICE, "bad-signature")
def impersonated(stage: Stage) -> None:
    stage.leave_signed(stage.good, device="pi-1", sequence=7)


@attack("forged: the public key of an Ed25519 device used as a shared one", ANYBODY, "bad-signature")
def confused_algorithm(stage: Stage) -> None:
    from edgepeft.sync import Keys

    Keys(stage.fleet.host).add("curve", signatures.ED25519)
    known = Keys(stage.fleet.host).device("curve")
    assert known is not None
    sidecar = replace(stage.delivery(stage.good), device="curve").signed(known.key)
    stage.leave(stage.good, sidecar, device="curve")


@attack("forged: a device nobody registered", ANYBODY, "unknown-device")
def unregistered(stage: Stage) -> None:
    stage.leave_signed(stage.good, device="stranger")


@attack("a device that was revoked", DEVICE, "revoked-device")
def revoked(stage: Stage) -> None:
    from edgepeft.sync import Keys
    from edgepeft.sync.keys import REVOKED

    Keys(stage.fleet.host).set_state(NAME, REVOKED)
    stage.leave_signed(stage.good)


# Replay


def _delivered(stage: Stage) -> tuple[bytes, bytes]:
    """The honest delivery of pi-1: update and sidecar."""
    (update,) = stage.folder(3, "pi-1").glob("*.safetensors")
    return update.read_bytes(), update.with_suffix(".sig").read_bytes()


@attack("replayed: a delivery copied to another device's folder", ANYBODY, "wrong-place")
def replayed_elsewhere(stage: Stage) -> None:
    stage.leave(*_delivered(stage), device="pi-2")


@attack("replayed: a delivery copied to another round's folder", ANYBODY, "wrong-place")
def replayed_in_another_round(stage: Stage) -> None:
    stage.leave(*_delivered(stage), number=2, device="pi-1")


@attack("replayed: somebody's update signed as one's own", DEVICE, "replayed")
def replayed_as_own(stage: Stage) -> None:
    stage.leave_signed(_delivered(stage)[0])


@attack("equivocating: two updates under one number", DEVICE, "equivocation")
def equivocation(stage: Stage) -> None:
    sequence = Delivery.from_bytes(_delivered(stage)[1]).sequence
    pi = Identity.read(stage.fleet.root / "pi-1.json")
    content = stage.changed(num_examples=1)
    sidecar = stage.delivery(content, device="pi-1", sequence=sequence).signed(pi.key)
    stage.leave(content, sidecar, device="pi-1")


# Time


@attack("stale: of a round that is too long ago", DEVICE, "stale-update")
def stale(stage: Stage) -> None:
    first = stage.fleet.host.round(1).adapter.sha256
    stage.leave_signed(stage.changed(adapter_sha256=first), round=1)


@attack("stale, in the folder and with the sidecar of the newest round", DEVICE, "wrong-round")
def stale_in_disguise(stage: Stage) -> None:
    stage.leave_signed(stage.changed(adapter_sha256=stage.fleet.host.round(1).adapter.sha256))


@attack("future: of a round that was not published", DEVICE, "future-update")
def future(stage: Stage) -> None:
    stage.leave_signed(stage.good, round=4)


@attack("late: after the round has expired", DEVICE, "expired-round", now=NOW + 31 * DAY)
def expired(stage: Stage) -> None:
    stage.leave_signed(stage.good)


# Another model


@attack("foreign base: trained on another model", DEVICE, "foreign-update")
def foreign(stage: Stage) -> None:
    stage.leave_signed(stage.changed(base_sha256="00" * 32))


@attack("foreign campaign", DEVICE, "foreign-campaign")
def foreign_campaign(stage: Stage) -> None:
    stage.leave_signed(stage.good, campaign="trees")


@attack("wrong shapes: a tensor turned", DEVICE, "wrong-tensors")
def wrong_shape(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda held: held.update({"head.weight": held["head.weight"].T})))


@attack("wrong shapes: one dimension more, of size 1", DEVICE, "wrong-tensors")
def one_dimension_more(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda held: held.update({"head.bias": held["head.bias"][None]})))


@attack("wrong dtype: double precision", DEVICE, "wrong-tensors")
def wrong_dtype(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda held: held.update({"head.bias": held["head.bias"].astype("float64")})))


@attack("a tensor missing", DEVICE, "wrong-tensors")
def tensor_missing(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda held: held.pop("head.bias")))


@attack("a tensor too many", DEVICE, "wrong-tensors")
def tensor_too_many(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda held: held.update({"../../head": np.zeros(1, np.float32)})))


@attack("an adapter or a checkpoint in the place of an update", DEVICE, "not-an-update")
def no_update(stage: Stage) -> None:
    path = stage.fleet.root / "adapter"
    write_tensors(path, read_update(stage.update).parameters, {"format": "edgepeft-checkpoint"}, seal=True)
    stage.leave_signed(path.read_bytes())


# Values


@attack("NaN in a tensor", DEVICE, "not-finite")
def nan(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda held: held["head.bias"].fill(np.nan)))


@attack("infinity in a tensor", DEVICE, "not-finite")
def infinite(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda held: held["head.bias"].fill(-np.inf)))


@attack("huge norm: finite values that outweigh everybody", DEVICE, "norm-too-large")
def huge(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda held: held["head.weight"].fill(3e38)))


@attack("a norm a little too large", DEVICE, "norm-too-large")
def a_little_too_large(stage: Stage) -> None:
    def change(held: dict[str, Any]) -> None:
        held["head.bias"][0] += 1.1

    stage.leave_signed(stage.with_tensors(change))


@attack("a number of examples with 4,000 digits", DEVICE, "not-an-update")
def countless(stage: Stage) -> None:
    stage.leave_signed(stage.changed(num_examples=10**3999))


@attack("a number of steps beyond 64 bits", DEVICE, "not-an-update")
def many_steps(stage: Stage) -> None:
    stage.leave_signed(stage.changed(steps=2**64))


# Paths and kinds of files


@attack("path traversal: a sidecar that names the device `../../keys`", DEVICE, "bad-sidecar")
def traversal_by_device(stage: Stage) -> None:
    stage.leave(stage.good, stage.delivery(stage.good, device="../../keys"))


@attack("path traversal: folders of devices named `...`, `Pi-1`, `a b`, `-rf`", ANYBODY, "bad-name")
def traversal_by_folder(stage: Stage) -> None:
    for name in ("...", "Pi-1", "a b", "-rf", "x" * 65):
        stage.leave(stage.good, stage.delivery(stage.good), device=name)


@attack("path traversal: folders of rounds named `r3`, `r00000003`, `latest`", ANYBODY, "bad-name")
def traversal_by_round(stage: Stage) -> None:
    for name in ("r3", "r00000003", "latest"):
        (stage.fleet.place / "inbox" / name / NAME).mkdir(parents=True)


@attack(r"path traversal: files named `..\x`, `*`, a hash in capitals", ANYBODY, "bad-name")
def traversal_byjoined(stage: Stage) -> None:
    for name in (r"..\x.safetensors", "*.safetensors", f"{'AB' * 32}.safetensors", "update.pkl", "a\nb"):
        (stage.folder() / name).write_bytes(stage.good)


@attack("a file whose name is no text, and one that would clear a terminal", ANYBODY, "bad-name")
def unprintable_names(stage: Stage) -> None:
    for name in (b"\xff\xfe.safetensors", b"\x1b[2J.safetensors"):
        (stage.folder() / os.fsdecode(name)).write_bytes(stage.good)


@attack("a tensor whose name would clear a terminal", DEVICE, "wrong-tensors")
def unprintable_tensor(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda held: held.update({"\x1b[2J": np.zeros(1, np.float32)})))


@attack("symlink: an update that points to a secret", ANYBODY, "not-a-regular-file")
def symlink(stage: Stage) -> None:
    path = stage.leave_signed(stage.good)
    path.unlink()
    path.symlink_to(stage.fleet.host.keys / "host.json")


@attack("symlink: a sidecar that points to another", ANYBODY, "not-a-regular-file")
def symlinked_sidecar(stage: Stage) -> None:
    path = stage.leave_signed(stage.good).with_suffix(".sig")
    path.rename(stage.fleet.root / "elsewhere")
    path.symlink_to(stage.fleet.root / "elsewhere")


@attack("symlink: a device's folder that points into the host's home", ANYBODY, "stray-file")
def symlinked_folder(stage: Stage) -> None:
    stage.folder().rmdir()
    (stage.fleet.place / "inbox" / "r000003" / NAME).symlink_to(stage.fleet.host.accepted / "r000003" / "pi-1")


@attack("hardlink: an update with a second name", ANYBODY, "not-a-regular-file")
def hardlink(stage: Stage) -> None:
    os.link(stage.leave_signed(stage.good), stage.fleet.root / "second-name")


@attack("a pipe that never answers", ANYBODY, "not-a-regular-file")
def pipe(stage: Stage) -> None:
    path = stage.leave_signed(stage.good)
    path.unlink()
    os.mkfifo(path)


@attack("a folder named like an update", ANYBODY, "stray-file")
def folder(stage: Stage) -> None:
    path = stage.leave_signed(stage.good)
    path.unlink()
    path.with_suffix(".sig").unlink()
    path.mkdir()


# Size


@attack("zip bomb: 50 MB of zeros in a small .npz, named as an update", DEVICE, "tensor-file-header")
def zip_bomb(stage: Stage) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, zeros=np.zeros(50_000_000, np.uint8))
    stage.leave_signed(packed.getvalue())


@attack("2 GB header: eight bytes that claim it", DEVICE, "tensor-file-header")
def huge_header(stage: Stage) -> None:
    stage.leave_signed((2 * 2**30).to_bytes(8, "little") + stage.good[8:])


@attack("a sparse file of 8 GB", ANYBODY, "too-large")
def sparsejoined(stage: Stage) -> None:
    with stage.leave_signed(stage.good).open("r+b") as file:
        file.truncate(2**33)


@attack("a header of 100,000 brackets", DEVICE, "tensor-file-header")
def deep_header(stage: Stage) -> None:
    stage.leave_signed(joined(b'{"a":' + b"[" * 100_000))


@attack("a tensor of 2^62 by 2^62 by 0 elements", DEVICE, "no-seal")
def overflowing_shape(stage: Stage) -> None:
    entry = {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}
    stage.leave_signed(joined(json.dumps({"head.bias": entry}).encode()))


@attack("a tensor of 2^62 by 2^62 by 0 elements, sealed", DEVICE, "tensor-file-header")
def overflowing_shape_sealed(stage: Stage) -> None:
    metadata = dict(_header_of(stage.good)["__metadata__"])
    entry = {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}
    stage.leave_signed(resealed(joined(json.dumps({"__metadata__": metadata, "head.bias": entry}).encode())))


def split(content: bytes) -> tuple[bytes, bytes]:
    """The header and the data of a tensor file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]


def joined(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _header_of(content: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(split(content)[0])
    return header


def resealed(content: bytes) -> bytes:
    """The content with the seal that it should have, if it has a place for one."""
    found = re.search(rb'"seal": ?"', content)
    if found is None or len(content) < found.end() + SEAL_LENGTH:
        return content
    place = found.end()
    bare = content[:place] + b"0" * SEAL_LENGTH + content[place + SEAL_LENGTH :]
    return content[:place] + signatures.sha256(bare).encode() + content[place + SEAL_LENGTH :]


# On devices


def _write(stage: Stage, name: str, content: bytes) -> None:
    (stage.fleet.place / name).write_bytes(content)


@attack("rollback: the place as it was a round ago, with its good signatures", PLACE, "round-goes-back")
def rolled_back(stage: Stage) -> None:
    shutil.rmtree(stage.fleet.place)
    shutil.copytree(stage.old, stage.fleet.place)


@attack("freeze: the newest round, kept as it is for months", PLACE, "expired-head", now=NOW + 90 * DAY)
def frozen(stage: Stage) -> None:
    del stage


@attack("forged: a head that names a higher round", PLACE, "bad-signature")
def forged_head(stage: Stage) -> None:
    head = Head.from_bytes((stage.fleet.place / "HEAD.json").read_bytes())
    _write(stage, "HEAD.json", replace(head, round=4).to_bytes())


@attack("forged: another host's campaign of the same name", PLACE, "bad-signature")
def another_host(stage: Stage) -> None:
    other = Fleet.begin(stage.fleet.root / "other", stage.fleet.bundle)
    for seed in range(4):
        other.publish(seed=seed)
    shutil.rmtree(stage.fleet.place)
    shutil.copytree(other.place, stage.fleet.place)


@attack("a host that rewrites a round the device knows", PLACE, "round-differs")
def rewritten(stage: Stage) -> None:
    shutil.rmtree(stage.fleet.host.published)
    for seed in range(3):
        stage.fleet.publish(seed=7 + seed)


@attack("mix and match: the new head with an old round.json", PLACE, "wrong-hash")
def mixed_round(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    shutil.copy(stage.fleet.place / "r000002" / "round.json", stage.fleet.place / "r000004" / "round.json")


@attack("mix and match: the new round with an old adapter", PLACE, "wrong-hash")
def mixed_adapter(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    name = "adapter.safetensors"
    shutil.copy(stage.fleet.place / "r000002" / name, stage.fleet.place / "r000004" / name)


@attack("an adapter without end", PLACE, "too-large")
def endless_adapter(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    with (stage.fleet.place / "r000004" / "adapter.safetensors").open("r+b") as file:
        file.truncate(2**33)


@attack("symlink: an adapter that points to the device's own key", PLACE, "cannot-read-file")
def symlinked_adapter(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    path = stage.fleet.place / "r000004" / "adapter.safetensors"
    path.unlink()
    path.symlink_to(stage.device.home.path / "device.json")


@attack("a head without end", PLACE, "too-large")
def endless_head(stage: Stage) -> None:
    _write(stage, "HEAD.json", b"{" * 2**20)


MUTATIONS = 10_000
"""How often each file is changed at random; see ``tests/test_attacks.py``."""

MUTATED = {
    "an update, signed by its device after the change": "refused; the seal or the header gives it away",
    "the header of an update, sealed and signed after the change": "refused, or the same tensors to the bit",
    "a sidecar": "refused",
    "`HEAD.json`, `HEAD.sig` and `round.json`, in turn": "refused; the device stays where it is",
}
"""What is changed at random, and what becomes of it."""

_TELLING = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"0", b"9", b"-", b"e9", b"null", b"\x00", b"\xff"]


def mutations(content: bytes, seed: int, count: int = MUTATIONS) -> Iterator[bytes]:
    """Random changes of a file, never the file itself; always the same for a seed."""
    draw = random.Random(seed)
    made = 0
    while made < count:
        changed = _mutated(content, draw)
        if changed != content:
            made += 1
            yield changed


def _mutated(content: bytes, draw: random.Random) -> bytes:
    """One to three changes: a bit flipped, a piece cut out or doubled, JSON's own signs put in, the end cut off."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place, length = draw.randrange(len(changed) + 1), draw.randint(1, 8)
        match draw.randrange(8):
            case 0:
                del changed[place:]
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = changed[place : place + length]
            case 3 | 4:
                changed[place : place + 1] = draw.choice(_TELLING)
            case _ if place < len(changed):
                changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def page() -> str:
    """The text of ``docs/ATTACKS.md``."""
    lines = [
        "# Attacks on a fleet, and the code each is refused with",
        "",
        "Written by `python -m tests.attacks`; `tests/test_attacks.py` carries out every line. Each attack is refused",
        "with this code and no other, it lies in quarantine with its reason, what had been accepted is unchanged to",
        "the byte, and no file is written anywhere else.",
        "",
        "*Anybody* may write to the place where updates are left, and has no key. *A device* is registered and signs",
        "whatever it likes. *A place* gives devices what it likes, without the host's key.",
        "",
        "## On the host",
        "",
        "| attack | by | refused with |",
        "|---|---|---|",
        *(f"| {one.what} | {one.who} | `{one.code}` |" for one in ON_HOST.values()),
        "",
        "The same delivery a second time is no attack: nothing happens. After `equivocation` the device is blocked",
        "until `edgepeft keys restore`.",
        "",
        "## On devices",
        "",
        "| attack | refused with |",
        "|---|---|",
        *(f"| {one.what} | `{one.code}` |" for one in ON_DEVICE.values()),
        "",
        "The device goes on with the adapter it has.",
        "",
        f"## At random, {MUTATIONS:,} times each",
        "",
        "| changed | result |",
        "|---|---|",
        *(f"| {what} | {result} |" for what, result in MUTATED.items()),
        "",
        "## What is not defended against",
        "",
        "A registered device may train on whatever it likes within the norm: that is for the rule of aggregation. Who",
        "has the host's key is the host. A device with several registrations counts several times.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{len(ON_HOST)} attacks on the host, {len(ON_DEVICE)} on devices: {PAGE.name}")


if __name__ == "__main__":
    main()
