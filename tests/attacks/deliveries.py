"""Attacks on the host by deliveries: damaged, forged, replayed, late, of another model, with bad values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from edgepeft.sync import Keys
from edgepeft.sync.keys import REVOKED
from edgepeft_runtime.files import canonical
from edgepeft_runtime.files.tensorfile import write_tensors
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivery import Delivery
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.train.update import read_update
from tests.attacks.stage import NAME, Stage
from tests.attacks.table import ANYBODY, DEVICE, attack
from tests.fleet.fleets import DAY, NOW

# Damage on the way


@attack("truncated: an update loses its end", ANYBODY, "wrong-hash")
def cut(stage: Stage) -> None:
    path = stage.leave_signed(stage.good)
    path.write_bytes(stage.good[:-7])


@attack("truncated and renamed to fit", ANYBODY, "wrong-address")
def cut_and_renamed(stage: Stage) -> None:
    stage.leave(stage.good[:-7], stage.delivery(stage.good))


@attack("truncated, and signed so", DEVICE, "wrong-digest")
def cut_and_signed(stage: Stage) -> None:
    stage.leave_signed(stage.good[:-7])


@attack("emptied, and signed so", DEVICE, "truncated-tensor-file")
def emptied(stage: Stage) -> None:
    stage.leave_signed(b"")


@attack("bit-flipped: one bit of an update", ANYBODY, "wrong-hash")
def flipped(stage: Stage) -> None:
    path = stage.leave_signed(stage.good)
    path.write_bytes(stage.good[:-9] + bytes([stage.good[-9] ^ 1]) + stage.good[-8:])


@attack("bit-flipped, and signed so", DEVICE, "wrong-digest")
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
    Keys(stage.fleet.host).add("curve", stage.fleet.root / "curve.json", signatures.ED25519)
    known = Keys(stage.fleet.host).device("curve")
    assert known is not None
    sidecar = replace(stage.delivery(stage.good), device="curve").signed(known.key)
    stage.leave(stage.good, sidecar, device="curve")


@attack("forged: a device nobody registered", ANYBODY, "unknown-device")
def unregistered(stage: Stage) -> None:
    stage.leave_signed(stage.good, device="stranger")


@attack("a device that was revoked", DEVICE, "revoked-device")
def revoked(stage: Stage) -> None:
    Keys(stage.fleet.host).set_state(NAME, REVOKED)
    stage.leave_signed(stage.good)


# Replay


def _delivered(stage: Stage) -> tuple[bytes, bytes]:
    """The honest delivery of pi-1: update and sidecar."""
    (update,) = stage.folder(3, "pi-1").glob("*.safetensors")
    return update.read_bytes(), update.with_suffix(".sig").read_bytes()


@attack("replayed: a delivery copied to another device's folder", ANYBODY, "wrong-address")
def replayed_elsewhere(stage: Stage) -> None:
    stage.leave(*_delivered(stage), device="pi-2")


@attack("replayed: a delivery copied to another round's folder", ANYBODY, "wrong-address")
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


@attack("stale, in the folder and with the sidecar of the newest round", DEVICE, "stale-update")
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


@attack("wrong shapes: a transposed tensor", DEVICE, "wrong-tensors")
def wrong_shape(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda tensors: tensors.update({"head.weight": tensors["head.weight"].T})))


@attack("wrong shapes: one dimension more, of size 1", DEVICE, "wrong-tensors")
def one_dimension_more(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda tensors: tensors.update({"head.bias": tensors["head.bias"][None]})))


@attack("wrong dtype: double precision", DEVICE, "wrong-tensors")
def wrong_dtype(stage: Stage) -> None:
    stage.leave_signed(
        stage.with_tensors(lambda tensors: tensors.update({"head.bias": tensors["head.bias"].astype("float64")}))
    )


@attack("a tensor missing", DEVICE, "wrong-tensors")
def tensor_missing(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda tensors: tensors.pop("head.bias")))


@attack("a tensor too many", DEVICE, "wrong-tensors")
def tensor_too_many(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda tensors: tensors.update({"../../head": np.zeros(1, np.float32)})))


@attack("an adapter or a checkpoint instead of an update", DEVICE, "not-an-update")
def no_update(stage: Stage) -> None:
    path = stage.fleet.root / "adapter"
    write_tensors(path, read_update(stage.update).parameters, {"format": "edgepeft-checkpoint"}, digest=True)
    stage.leave_signed(path.read_bytes())


# Values


@attack("NaN in a tensor", DEVICE, "not-finite")
def nan(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda tensors: tensors["head.bias"].fill(np.nan)))


@attack("infinity in a tensor", DEVICE, "not-finite")
def infinite(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda tensors: tensors["head.bias"].fill(-np.inf)))


@attack("huge norm: finite values that outweigh everybody", DEVICE, "norm-too-large")
def huge(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda tensors: tensors["head.weight"].fill(3e38)))


@attack("a norm a little too large", DEVICE, "norm-too-large")
def a_little_too_large(stage: Stage) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["head.bias"][0] += 1.1

    stage.leave_signed(stage.with_tensors(change))


@attack("a number of examples with 4,000 digits", DEVICE, "not-an-update")
def countless(stage: Stage) -> None:
    stage.leave_signed(stage.changed(num_examples=10**3999))


@attack("a number of steps beyond 64 bits", DEVICE, "not-an-update")
def many_steps(stage: Stage) -> None:
    stage.leave_signed(stage.changed(steps=2**64))


# Delta-coded indices


@attack("delta-coded indices, the last one cut short", DEVICE, "bad-delta-indices")
def code_cut(stage: Stage) -> None:
    stage.leave_signed(stage.with_coded(b"\x05\x80"))


@attack("indices coded in more bytes than they need, for a second hash of one update", DEVICE, "bad-delta-indices")
def code_padded(stage: Stage) -> None:
    stage.leave_signed(stage.with_coded(b"\x05\x80\x00"))


@attack("a coded index of 300,000 bytes", DEVICE, "bad-delta-indices")
def gap_without_end(stage: Stage) -> None:
    stage.leave_signed(stage.with_coded(b"\xff" * 299_999 + b"\x01"))


@attack("indices coded beyond 2^31", DEVICE, "bad-delta-indices")
def code_beyond(stage: Stage) -> None:
    stage.leave_signed(stage.with_coded(b"\xff\xff\xff\xff\x07" * 3))


@attack("coded indices of a tensor that is missing, and whose name would clear a terminal", DEVICE, "bad-delta-indices")
def code_of_nothing(stage: Stage) -> None:
    stage.leave_signed(stage.with_coded(b"\x05", r'["\u001b[2J"]'))


@attack("coded indices, it says, and they are floats", DEVICE, "bad-delta-indices")
def code_of_floats(stage: Stage) -> None:
    stage.leave_signed(stage.with_coded(b"\x05", '["head.weight"]'))


@attack("100,000 brackets instead of names of coded tensors", DEVICE, "bad-delta-indices")
def deep_names(stage: Stage) -> None:
    stage.leave_signed(stage.with_coded(b"\x05", "[" * 100_000))


@attack("indices, well coded, instead of floats", DEVICE, "wrong-tensors")
def code_for_floats(stage: Stage) -> None:
    stage.leave_signed(stage.with_coded(b"\x05\x00\x00"))
