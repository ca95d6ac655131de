"""A device in TypeScript in a fleet: it joins, delivers and refuses as one in Python does, over the host's server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgepeft.sync import Keys, accepted, collect
from edgepeft.sync.keys import REVOKED
from edgepeft.sync.links import link_of
from edgepeft_runtime import write_tensors
from edgepeft_runtime.bundle.specs import FileEntry
from edgepeft_runtime.fleet.joining import join
from tests.fleet.fleets import DAY, NOW, Device, Fleet, code_of
from tests.fleet.servers import serving
from tests.support.tiny_bundle import build, examples
from tests.web.toolchain import run, runtime

PAGE = "http://localhost:8080/"


@dataclass(frozen=True)
class Phone:
    """A device that knows its link, beside one in Python of the same fleet."""

    fleet: Fleet
    pi: Device
    address: str
    link: str

    def plan(self, *actions: str, link: str | None = None) -> dict[str, Any]:
        """What ``runtimes/web/test/deliver.ts`` should do."""
        root = self.fleet.root
        write_tensors(root / "data.safetensors", examples(8, 0))
        plan = {"bundle": self.fleet.bundle, "data": root / "data.safetensors", "link": link or self.link}
        return plan | {"memory": root / "memory.json", "update": self.update, "actions": actions}

    def does(self, *actions: str) -> list[Any]:
        """What each action returned."""
        (found,) = _done([self.plan(*actions)], self.fleet.root)
        results: list[Any] = found
        return results

    @property
    def update(self) -> Path:
        return self.fleet.root / "update.safetensors"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The campaign's bundle; not to be changed."""
    return build(tmp_path_factory.mktemp("bundles") / "fleet")


def _done(plans: list[dict[str, Any]], folder: Path) -> list[Any]:
    (folder / "plans.json").write_text(json.dumps(plans, default=str), "utf-8")
    found: list[Any] = json.loads(run("node", runtime() / "build" / "test" / "deliver.js", folder / "plans.json"))
    return found


@contextmanager
def _fleet(root: Path, bundle: Path) -> Iterator[Phone]:
    """A fleet whose host has published round 1 and serves it."""
    fleet = Fleet.begin(root, bundle)
    pi = fleet.device()
    identity = Keys(fleet.host).add("phone-1", root / "phone-1.json")
    fleet.publish(max_update_norm=5.0)
    with serving(fleet.host) as port:
        address = f"http://127.0.0.1:{port}"
        yield Phone(fleet, pi, address, link_of(identity, PAGE, f"{address}/"))


@pytest.fixture
def phone(bundle: Path, tmp_path: Path) -> Iterator[Phone]:
    with _fleet(tmp_path, bundle) as phone:
        yield phone


def test_it_delivers_what_the_host_accepts(phone: Phone) -> None:
    """Round 1, trained before it was joined and delivered twice; then round 2, from another adapter."""
    fleet = phone.fleet
    _, unknown, joined, first, again = phone.does("train", "deliver", "join", "deliver", "deliver")
    assert unknown["code"] == "unknown-round" and joined == {"round": 1, "changed": True}
    assert (first["round"], first["sequence"], first["repeated"]) == (1, 1, False) and again["repeated"]
    found = collect([fleet.host.received], fleet.host, now=NOW)
    assert (len(found.accepted), found.refused, found.waiting) == (1, (), ())
    assert accepted(fleet.host)[0][1].read_bytes() == phone.update.read_bytes()
    fleet.publish(seed=2)
    second, _, delivered = phone.does("join", "train", "deliver")
    assert second == {"round": 2, "changed": True} and (delivered["round"], delivered["sequence"]) == (2, 2)
    (entry,) = collect([fleet.host.received], fleet.host, now=NOW).accepted
    assert (entry.device, entry.round, entry.staleness) == ("phone-1", 2, 0)


def _damage(name: str) -> Callable[[Phone], None]:
    """Change the last byte but one of a published file."""

    def damage(phone: Phone) -> None:
        path = phone.fleet.host.published / name
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)

    return damage


def _go_back(phone: Phone) -> None:
    published = phone.fleet.host.published
    old = {name: (published / name).read_bytes() for name in ("latest.json", "latest.sig")}
    phone.fleet.publish(seed=2)
    phone.does("join")
    phone.pi.join()
    for name, content in old.items():
        (published / name).write_bytes(content)


REFUSED: dict[str, tuple[str, Callable[[Phone], object]]] = {
    "signature": ("bad-signature", _damage("latest.sig")),
    "latest": ("bad-signature", _damage("latest.json")),
    "round": ("wrong-hash", _damage("r000001/round.json")),
    "adapter": ("wrong-hash", _damage("r000001/adapter.safetensors")),
    "older": ("round-goes-back", _go_back),
    "expired": ("expired-latest", lambda phone: phone.fleet.publish(seed=2, now=time.time() - 40 * DAY)),
    "base": ("foreign-round", lambda phone: phone.fleet.sign(base_sha256="ab" * 32)),
    "size": ("too-large", lambda phone: phone.fleet.sign(adapter=FileEntry("ab" * 32, 2**30))),
    "missing": ("no-such-file", lambda phone: (phone.fleet.host.published / "latest.json").unlink()),
    "revoked": (
        "not-allowed",
        lambda phone: [Keys(phone.fleet.host).set_state(name, REVOKED) for name in ("pi-1", "phone-1")],
    ),
}


def test_it_refuses_what_python_refuses(bundle: Path, tmp_path: Path) -> None:
    """The same code, for each way in which a round may not be trusted."""
    with ExitStack() as stack:
        phones = {}
        for case, (code, change) in REFUSED.items():
            (tmp_path / case).mkdir()
            phones[case] = phone = stack.enter_context(_fleet(tmp_path / case, bundle))
            change(phone)
            assert code_of(join, phone.address, phone.pi.directory, bundle) == code, case
        found = _done([phone.plan("join") for phone in phones.values()], tmp_path)
    assert {case: result[0]["code"] for case, result in zip(phones, found, strict=True)} == {
        case: code for case, (code, _) in REFUSED.items()
    }


LINKS = [
    (("key=", "key=A"), "bad-identity"),
    (("edgepeft=2", "edgepeft=3"), "bad-identity"),
    (("server=http", "server=ftp"), "bad-identity"),
    (("host_key=", "host_key=AAAA"), "bad-identity"),
    (("campaign=birds", "campaign=fish"), "foreign-campaign"),
    (("token=", "token=x"), "not-allowed"),
    ((":", ":"), None),
]


def test_a_damaged_link_or_an_absent_server_is_named(phone: Phone) -> None:
    """Each part of a link that is wrong, and a port where nothing listens."""
    plans = [phone.plan("join", link=phone.link.replace(*change, 1)) for change, _ in LINKS]
    plans.append(phone.plan("join", link=phone.link.replace(phone.address, "http://127.0.0.1:9")))
    *found, (away,) = _done(plans, phone.fleet.root)
    results = [result if isinstance(result, dict) else result[0] for result in found]
    assert [result.get("code") for result in results] == [code for _, code in LINKS]
    assert away["code"] == "remote-unreachable" and "http://127.0.0.1:9" in away["message"]
