"""The files of a round and the sidecar round-trip, and are refused if they contain anything else."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepeft_runtime.bundle.specs import FileEntry, ParameterSpec
from edgepeft_runtime.errors import EdgepeftError, FleetError, MissingExtra
from edgepeft_runtime.files import canonical
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivery import Delivery, digest_of
from edgepeft_runtime.fleet.reading import is_name
from edgepeft_runtime.fleet.rounds import Latest, LatestSignatures, Round, RoundLimits, folder, number_of
from tests.support.processes import environment

SEED = bytes(range(32))
DIGEST = "ab" * 32

ROUND = Round(
    campaign="birds",
    round=12,
    previous="cd" * 32,
    restores=None,
    created=1_800_000_000,
    expires=1_800_600_000,
    base_sha256=DIGEST,
    adapter=FileEntry("ef" * 32, 1234),
    bundle=FileEntry("01" * 32, 2345),
    tensors=(
        ParameterSpec("größe.lora_A", "float32", (8, 16), "lora_A"),
        ParameterSpec("scale", "float32", (), "other"),
    ),
    max_update_norm=2.5,
    norm_action="clip",
    max_staleness=2,
    min_devices=3,
    limits=RoundLimits(1 << 20, 500),
)
LATEST = Latest("birds", 12, ROUND.sha256, 1_800_000_000, 1_800_600_000)
DELIVERY = Delivery("birds", 12, "pi-07", 3, DIGEST, 1234, signatures.HMAC).signed(SEED)


@pytest.mark.parametrize(
    "value", [ROUND, LATEST, DELIVERY, replace(ROUND, round=1, previous=None, max_update_norm=None)]
)
def test_a_file_is_read_as_it_was_written(value: Any) -> None:
    """Reading returns an equal value, and writing that returns the same bytes."""
    content = value.to_bytes()
    assert type(value).from_bytes(content) == value
    assert type(value).from_bytes(content).to_bytes() == content


@pytest.mark.parametrize("value", [ROUND, LATEST, DELIVERY])
def test_a_field_too_many_too_few_or_of_another_kind_is_refused(value: Any) -> None:
    """Every field is needed, none is ignored, and no kind is taken for another."""
    fields = json.loads(value.to_bytes())
    wrong = [{**fields, "extra": 1}]
    wrong += [{name: item for name, item in fields.items() if name != left_out} for left_out in fields]
    wrong += [{**fields, name: item} for name in fields for item in ([], {}, True, -1, "\u0000", -1.5)]
    for changed in wrong:
        with pytest.raises(FleetError, match="hint"):
            type(value).from_bytes(canonical.dumps(changed))


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 0},
        {"round": 10**6},
        {"round": 1},
        {"previous": None},
        {"campaign": "../birds"},
        {"campaign": "Birds"},
        {"max_update_norm": 0.0},
        {"norm_action": "ignore"},
        {"restores": 12},
        {"restores": 0},
        {"tensors": []},
    ],
)
def test_a_round_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    """Numbers out of range, names that lead out of a folder, a chain without its link."""
    content = canonical.dumps({**json.loads(ROUND.to_bytes()), **changes})
    with pytest.raises(FleetError) as caught:
        Round.from_bytes(content)
    assert caught.value.code == "bad-round"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{" * 100_000,
        b'{"a":1,"a":1}\n',
        b'{"a":NaN}\n',
        b'{"a":1e999}\n',
        b'{"a":' + b"9" * 5000 + b"}\n",
        b'{"a":9007199254740992}\n',
        b'{"a":"\\ud800"}\n',
        LATEST.to_bytes() + b"\n",
        LATEST.to_bytes().rstrip(b"\n"),
        b" " + LATEST.to_bytes(),
        json.dumps(json.loads(LATEST.to_bytes())).encode(),
    ],
)
def test_what_is_not_canonical_is_refused(content: bytes) -> None:
    """A value has one form: no white space, no other order, no key twice, no number that a reader would round."""
    for kind in (Latest, Round, Delivery, LatestSignatures):
        with pytest.raises(FleetError):
            kind.from_bytes(content)


@settings(deadline=None, database=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-canonical.LARGEST, canonical.LARGEST) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_canonical_json_has_one_form(value: Any) -> None:
    """Written values are read back, and written identically."""
    try:
        content = canonical.dumps(value)
    except UnicodeEncodeError:  # half a surrogate pair is no text
        return
    assert canonical.loads_canonical(content) == value


def test_every_byte_of_a_signed_file_counts() -> None:
    """A change of any bit of a latest or a sidecar is refused, by its form or by its signature."""
    host = signatures.public_key(SEED)
    latest = LATEST.to_bytes()
    signed = LatestSignatures({signatures.sha256(latest): _signature(latest)})
    signed.check(latest, host)
    for offset in range(len(latest)):
        with pytest.raises(FleetError):
            signed.check(_flipped(latest, offset), host)
    sidecar = DELIVERY.to_bytes()
    for offset in range(len(sidecar)):
        with pytest.raises(FleetError):
            Delivery.from_bytes(_flipped(sidecar, offset)).check(signatures.HMAC, SEED)


def _flipped(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 0x04]) + content[offset + 1 :]


def _signature(latest: bytes) -> str:
    return signatures.sign(signatures.LATEST, signatures.sha256(latest), signatures.ED25519, SEED).hex()


def test_the_signatures_file_serves_both_latest_files() -> None:
    """A reader during the replacement of the latest round finds the signature of the file it has."""
    old, new = (replace(LATEST, round=number).to_bytes() for number in (12, 13))
    both = LatestSignatures({signatures.sha256(latest): _signature(latest) for latest in (old, new)})
    for latest in (old, new):
        LatestSignatures.from_bytes(both.to_bytes()).check(latest, signatures.public_key(SEED))
    with pytest.raises(FleetError, match="not signed"):
        both.check(replace(LATEST, round=14).to_bytes(), signatures.public_key(SEED))


@pytest.mark.parametrize("algorithm", signatures.ALGORITHMS)
def test_a_signature_is_bound_to_purpose_and_key(algorithm: str) -> None:
    """That of an update is none of a latest; nor is it one under another key, or by another algorithm."""
    key = SEED if algorithm == signatures.HMAC else signatures.public_key(SEED)
    signature = signatures.sign(signatures.UPDATE, DIGEST, algorithm, SEED)
    assert signatures.is_signed(signatures.UPDATE, DIGEST, algorithm, key, signature)
    assert not signatures.is_signed(signatures.LATEST, DIGEST, algorithm, key, signature)
    assert not signatures.is_signed(signatures.UPDATE, "cd" * 32, algorithm, key, signature)
    assert not signatures.is_signed(signatures.UPDATE, DIGEST, algorithm, bytes(32), signature)
    delivery = replace(DELIVERY, algorithm=algorithm).signed(SEED)
    delivery.check(algorithm, key)
    (other,) = set(signatures.ALGORITHMS) - {algorithm}
    with pytest.raises(FleetError, match="not signed"):
        delivery.check(other, key)


def test_without_the_library_a_device_verifies_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification falls back to plain Python; signing names the package and the way around it."""
    host, signature = signatures.public_key(SEED), _signature(LATEST.to_bytes())
    monkeypatch.setattr(signatures, "find_spec", lambda _: None)
    signed = LatestSignatures({signatures.sha256(LATEST.to_bytes()): signature})
    signed.check(LATEST.to_bytes(), host)
    with pytest.raises(FleetError, match="not signed"):
        signed.check(LATEST.to_bytes(), bytes(32))
    with pytest.raises(MissingExtra, match="cryptography") as caught:
        replace(DELIVERY, algorithm=signatures.ED25519).signed(SEED)
    assert "hmac-sha256" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["a", "pi-07", "a_b", "x" * 64])
def test_plain_names_are_names(name: str) -> None:
    """Letters, digits, hyphens and underscores, up to 64."""
    assert is_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "A", "a.b", "-a", "a-", "a\n", "ä", "x" * 65, "a\0"])
def test_names_that_lead_elsewhere_are_no_names(name: str) -> None:
    """Nothing that means a path, another case of the same file, or an option of a command."""
    assert not is_name(name)


def test_only_exact_names_are_those_of_rounds_and_updates() -> None:
    """A folder or file with a name of its own is not taken for one."""
    assert [number_of(name) for name in (folder(12), "r999999")] == [12, 999_999]
    assert not any(
        map(number_of, ("r000000", "r12", "r0000012", "r00001a", "r00000\u0661", "R000012", "r000012\n", ".."))
    )
    assert digest_of(f"{DIGEST}.safetensors") == DIGEST
    for name in (f"{DIGEST}.SAFETENSORS", f"{DIGEST.upper()}.safetensors", f"../{DIGEST}.safetensors", DIGEST, ""):
        assert digest_of(name) is None


def test_random_changes_never_crash_a_reader() -> None:
    """Two thousand changes of each file: refused, or read as changed; no other error."""
    draw = random.Random(0)
    for value in (ROUND, LATEST, DELIVERY):
        for _ in range(2000):
            content = bytearray(value.to_bytes())
            for _ in range(draw.randrange(1, 4)):
                offset = draw.randrange(len(content))
                content[offset : offset + draw.randrange(3)] = draw.choice(
                    [b"", b'"', b"9", b"null", b"{", bytes([offset % 256])]
                )
            try:
                found = type(value).from_bytes(bytes(content))
            except EdgepeftError:
                continue
            assert found.to_bytes() == content


def test_the_data_and_the_transport_need_numpy_alone() -> None:
    """Reading, signing, fetching and storing a round loads neither onnxruntime nor cryptography."""
    code = """
import sys
import numpy
before = {name.partition(".")[0] for name in sys.modules}
from edgepeft_runtime.fleet import delivery, device_directory, identity, rounds, signatures
from edgepeft_runtime.fleet.transports import remote
signatures.is_signed("x", "y", signatures.HMAC, bytes(32), bytes(32))
print(sorted({name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "['edgepeft_runtime']\n"
