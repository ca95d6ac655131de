"""The rules for deliveries as functions of bytes and facts: without a workspace, a ledger or a remote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from edgepeft.intake.checks import check_norm, checked, parsed
from edgepeft.sync import Device, Entry
from edgepeft.sync.collection.verification import Address, Delivered, change_norm, verify
from edgepeft.sync.keys import REVOKED
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import FileEntry
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.files.tensorfile import Array, tensor_chunks
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivery import Delivery
from edgepeft_runtime.fleet.rounds import CLIP, REFUSE, Round, RoundLimits
from edgepeft_runtime.train.update import FORMAT, VERSION

GOLDEN = Path(__file__).parents[1] / "golden" / "bundle"
MANIFEST = Manifest.from_json((GOLDEN / "manifest.json").read_bytes())
START = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in MANIFEST.parameters}
KEY, ADAPTER, OTHER = bytes(32), "a" * 64, "b" * 64


def _round(**fields: object) -> Round:
    bare = Round(
        campaign="birds",
        round=5,
        previous=OTHER,
        restores=None,
        created=1000,
        expires=2000,
        base_sha256=MANIFEST.base_sha256,
        adapter=FileEntry(ADAPTER, 1),
        bundle=None,
        tensors=MANIFEST.parameters,
        max_update_norm=None,
        norm_action=REFUSE,
        max_staleness=1,
        min_devices=1,
        limits=RoundLimits(2**20),
    )
    return replace(bare, **fields)


def _content(change: float = 0.5, drop: str = "", **metadata: str) -> bytes:
    """An update in which the first value of the first tensor has changed."""
    tensors = {name: array.copy() for name, array in START.items() if name != drop}
    next(iter(tensors.values())).flat[0] = change
    about = {"format": FORMAT, "version": VERSION, "base_sha256": MANIFEST.base_sha256, "adapter_sha256": ADAPTER}
    about |= {"provenance": json.dumps({}), "num_examples": "8", "steps": "2", "loss_before": "", "loss_after": "1.0"}
    chunks, _ = tensor_chunks(tensors, {**about, "runtime": "test", **metadata}, digest=True)
    return b"".join(bytes(chunk) for chunk in chunks)


@dataclass
class Case:
    """A delivery and what the host knows; implements the protocol ``Facts``."""

    now: float = 1500.0
    newest: Round = field(default_factory=_round)
    manifest: Manifest = MANIFEST
    content: bytes = field(default_factory=_content)
    name: str | None = None
    size: int | None = None
    known: Device | None = field(default_factory=lambda: Device("pi-1", signatures.HMAC, KEY, OTHER))
    block: str | None = None
    own: Round = field(default_factory=_round)
    held: str | None = None
    entry: Entry | None = None

    def device(self, name: str) -> Device | None:
        return self.known if name == "pi-1" else None

    def blocked(self, device: str) -> str | None:
        return self.block if device == "pi-1" else None

    def round(self, number: int) -> Round:
        assert number == 5
        return self.own

    def start(self, number: int) -> Mapping[str, Array]:
        assert number == 5
        return START

    def accepted(self, sha256: str) -> Entry | None:
        assert sha256 == signatures.sha256(self.content)
        return self.entry

    def signed(self, device: str, sequence: int) -> str | None:
        return self.held if (device, sequence) == ("pi-1", 3) else None

    def verify(self) -> Entry:
        digest = signatures.sha256(self.content)
        size = len(self.content) if self.size is None else self.size
        sidecar = Delivery("birds", 5, "pi-1", 3, digest, size, signatures.HMAC).signed(KEY).to_bytes()
        return verify(Delivered(Address(5, "pi-1", self.name or digest), self.content, sidecar), self)

    def code(self) -> str:
        """The code that it is refused with, ``""`` if it is accepted."""
        try:
            self.verify()
        except EdgepeftError as error:
            return error.code
        return ""


def _device(**fields: object) -> Device:
    return replace(Device("pi-1", signatures.HMAC, KEY, OTHER), **fields)


_ACCEPTED = Entry(OTHER, 5, "pi-2", 1, 1, 0.0, 1.0, 0, 8, 2, None, None, 1100)
RULES: list[tuple[str, dict[str, object]]] = [  # in order
    ("wrong-hash", {"name": OTHER}),
    ("unknown-device", {"known": None}),
    ("bad-signature", {"known": _device(key=b"k" * 32)}),
    ("revoked-device", {"known": _device(state=REVOKED)}),
    ("blocked-device", {"block": "it has signed two updates under one number"}),
    ("wrong-address", {"size": 7}),
    ("foreign-campaign", {"newest": _round(campaign="bees")}),
    ("future-update", {"newest": _round(round=4)}),
    ("tensor-file-header", {"content": (2**20 + 1).to_bytes(8, "little") + bytes(64)}),
    ("wrong-digest", {"content": _content()[:-1] + b"\1"}),
    ("not-an-update", {"content": _content(format="adapter")}),
    ("foreign-update", {"content": _content(base_sha256=OTHER)}),
    ("stale-update", {"content": _content(adapter_sha256=OTHER)}),
    ("wrong-tensors", {"content": _content(drop=MANIFEST.parameters[1].name)}),
    ("not-finite", {"content": _content(change=float("nan"))}),
    ("norm-too-large", {"own": _round(max_update_norm=0.4)}),
    ("equivocation", {"held": OTHER}),
    ("replayed", {"entry": _ACCEPTED}),
    ("stale-update", {"newest": _round(round=7)}),
    ("expired-round", {"now": 2000.0}),
]


def test_a_good_delivery_becomes_an_entry() -> None:
    """The entry records the device, the update, its norm and the time."""
    case = Case()
    expected = (signatures.sha256(case.content), 5, "pi-1", 3, len(case.content), 0.5, 1.0, 0, 8, 2, None, 1.0, 1500)
    assert case.verify() == Entry(*expected)


@pytest.mark.parametrize(("code", "fields"), RULES, ids=[f"{i}-{code}" for i, (code, _) in enumerate(RULES)])
def test_each_rule_refuses_with_its_code(code: str, fields: dict[str, object]) -> None:
    """One fact is changed, and nothing else is wrong."""
    assert Case(**fields).code() == code


def test_the_first_rule_that_fails_decides() -> None:
    """Every two faults at once are refused with the code of the earlier rule."""
    pairs = list(combinations(RULES, 2))
    found = [Case(**{**later, **earlier}).code() for (_, earlier), (_, later) in pairs]
    assert found == [code for (code, _), _ in pairs]


def test_one_round_late_is_accepted_and_marked() -> None:
    """``max_staleness`` is that of the newest round."""
    assert Case(newest=_round(round=6)).verify().staleness == 1
    assert Case(newest=_round(round=6, max_staleness=0)).code() == "stale-update"


def test_a_large_change_is_clipped_where_the_round_clips() -> None:
    """The factor brings the norm to the limit; an unbounded one cannot be clipped."""
    clipping = _round(max_update_norm=0.25, norm_action=CLIP)
    assert Case(own=clipping).verify().scale == 0.5
    assert Case(own=clipping, content=_content(change=0.0)).verify().scale == 1.0


def test_a_norm_that_overflows_is_too_large() -> None:
    """In float64, also where the round has no limit; a NaN is too large, too."""
    huge = {"x": np.array([1e200, 1e200])}
    norm = change_norm(huge, {"x": np.zeros(2)})
    assert norm == float("inf")
    for bad in (norm, float("nan")):
        with pytest.raises(EdgepeftError, match="changes too much"):
            check_norm(bad, float("inf"))


def test_bytes_that_are_too_few_are_no_update() -> None:
    """Nothing is read past the end, for any header."""
    for content in (b"", b"\0" * 7, (9).to_bytes(8, "little"), _content()[:-1]):
        with pytest.raises(EdgepeftError) as caught:
            parsed(content, "update")
        assert caught.value.code in {"truncated-tensor-file", "wrong-digest", "tensor-file-layout"}
    assert checked(_content(), "update", MANIFEST, ADAPTER).num_examples == 8
