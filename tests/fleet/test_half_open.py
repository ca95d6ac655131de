"""Connections that send no request, or never finish one, are limited, and devices are still served."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from edgepeft.sync.serving import http_bodies
from edgepeft.sync.serving.app import MAX_PENDING
from edgepeft.sync.serving.connections import ConnectionLimits
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivering import deliver
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.joining import join
from tests.fleet.fleets import NOW, Fleet
from tests.fleet.servers import certificate_for, serving
from tests.support.processes import CALL, start

HALVES = {
    "idle": b"",
    "head": b"GET /latest.json HTTP/1.1\r\nHost: x\r\nX-Long: ",
    "body": b"PUT /inbox/r000001/pi-1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf",
}


@contextmanager
def _open(port: int, begin: bytes, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0)) as connection:
        connection.sendall(begin)
        yield connection


def _head(fleet: Fleet, name: str, length: int, digest: str = "ab" * 32, device: str = "pi-1") -> bytes:
    """The head of an update's PUT with the token of a device."""
    token = Identity.read(fleet.root / f"{device}.json").token
    path = f"/inbox/r000001/{device}/{digest}.safetensors"
    lines = f"{name} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", f"Content-Length: {length}", "", ""
    return "\r\n".join(lines).encode()


def _status(connection: socket.socket) -> int:
    """Of the next answer, which is read to its end."""
    with http.client.HTTPResponse(connection) as response:
        response.begin()
        response.read()
        return response.status


def _last_status(connection: socket.socket, asked: bytes, first: int) -> int:
    """Repeat a request while its status is ``first``, until another request has finished; return the last status."""
    for _ in range(200):
        connection.sendall(asked)
        status = _status(connection)
        if status != first:
            break
        time.sleep(0.05)
    return status


def _is_closed(connection: socket.socket) -> bool:
    """Wait until the server has closed it, and ignore its answer."""
    try:
        while connection.recv(2**16):
            pass
    except ConnectionError:
        pass
    return True


def _is_open(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    return not readable


def test_devices_are_served_next_to_600_half_open_ones(fleet: Fleet) -> None:
    """A third is idle, a third has sent half a head, a third half a body; a device joins, trains and delivers."""
    device = fleet.device()
    fleet.publish(seed=1)
    process = start(CALL, "serve", "--workspace", fleet.host.path, "--port", 0)
    try:
        assert process.stderr is not None
        port = int(process.stderr.readline().rsplit(":", 1)[1])
        with ExitStack() as stack:
            for number in range(600):
                stack.enter_context(_open(port, list(HALVES.values())[number % 3]))
            address = f"http://127.0.0.1:{port}"
            assert join(address, device.directory, fleet.bundle, now=NOW).switched
            update = device.train()
            assert not deliver(update, address, device.directory).repeated
            assert deliver(update, address, device.directory).repeated
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.parametrize("half", HALVES)
def test_who_waits_too_long_is_closed(fleet: Fleet, half: str) -> None:
    """Whatever it has sent and keeps sending, also after a refused request."""
    fleet.publish()
    with serving(fleet.host, limits=ConnectionLimits(seconds=0.2)) as port, _open(port, HALVES[half]) as connection:
        connection.settimeout(0.05)
        for _ in range(400):
            try:
                connection.sendall(b"x" if half != "idle" else b"")
                if not connection.recv(2**16):
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("it was never closed")


def test_the_oldest_goes_where_too_many_wait(fleet: Fleet) -> None:
    """Clients that send at once are always served. Connections being answered do not count."""
    fleet.device()
    fleet.publish()
    with serving(fleet.host, limits=ConnectionLimits(waiting=8)) as port, ExitStack() as stack:
        busy = stack.enter_context(_open(port, _head(fleet, "PUT", 1000) + b"half"))
        waiting = [stack.enter_context(_open(port, HALVES["head"])) for _ in range(12)]
        assert all(_is_closed(connection) for connection in waiting[:4])
        assert all(_is_open(connection) for connection in [busy, *waiting[4:]])


def test_an_address_with_many_does_not_displace_others(fleet: Fleet) -> None:
    """A connection that is alone at its address may be slow, however old it is."""
    fleet.publish()
    with serving(fleet.host, limits=ConnectionLimits(waiting=4)) as port, ExitStack() as stack:
        alone = stack.enter_context(_open(port, HALVES["head"], "127.0.0.2"))
        waiting = [stack.enter_context(_open(port, HALVES["head"])) for _ in range(6)]
        assert all(_is_closed(connection) for connection in waiting[:3])
        assert all(_is_open(connection) for connection in [alone, *waiting[3:]])


def test_a_device_uses_no_more_than_its_part(fleet: Fleet) -> None:
    """Half-sent updates of one device leave room for another; where there is none for anybody, that is said."""
    for name in ("pi-1", "pi-2", "pi-3"):
        fleet.device(name)
    fleet.publish()
    limits = ConnectionLimits(of_a_device=2, answering=3)
    with serving(fleet.host, limits=limits) as port, ExitStack() as stack:
        for digest in ("ab", "cd"):
            stack.enter_context(_open(port, _head(fleet, "PUT", 1000, digest * 32) + b"half"))
        assert _status(stack.enter_context(_open(port, _head(fleet, "GET", 0)))) == 429
        other = stack.enter_context(_open(port, _head(fleet, "GET", 0, device="pi-2")))
        assert _status(other) == 404
        other.sendall(_head(fleet, "PUT", 1000, device="pi-2") + b"half")
        last = stack.enter_context(_open(port, b""))
        assert _last_status(last, _head(fleet, "GET", 0, device="pi-3"), 404) == 503


def test_only_so_many_updates_arrive_at_once(fleet: Fleet) -> None:
    """Registrations in progress count: of 20 that start together, 16 succeed."""
    fleet.device()
    fleet.publish()
    contents = [bytes([number]) * 100 for number in range(MAX_PENDING + 4)]
    with serving(fleet.host, limits=ConnectionLimits(of_a_device=99)) as port, ExitStack() as stack:
        connections = []
        for content in contents:
            digest = signatures.sha256(content)
            connections.append(stack.enter_context(_open(port, _head(fleet, "PUT", 100, digest) + content[:50])))
        for content, connection in zip(contents, connections, strict=True):
            connection.sendall(content[50:])
        statuses = [_status(connection) for connection in connections]
    assert sorted(statuses) == [201] * MAX_PENDING + [429] * 4
    assert len(list(fleet.host.received.rglob("*.safetensors"))) == MAX_PENDING


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bodies, "GRACE_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
def test_a_body_that_comes_too_slowly_is_given_up(fleet: Fleet) -> None:
    """Also with a good token, a slow upload ends, and nothing remains of it."""
    fleet.device()
    fleet.publish()
    with serving(fleet.host) as port, _open(port, _head(fleet, "PUT", 1000) + b"half") as connection:
        assert _status(connection) == 408
    assert not [path for path in fleet.host.received.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("impatient")
def test_a_client_that_does_not_read_is_dropped(fleet: Fleet) -> None:
    """A stalled download does not occupy a slot for ever."""
    fleet.device()
    fleet.publish()
    size = 2**25
    (fleet.host.published / "r000001" / "adapter.safetensors").write_bytes(bytes(size))
    asked = _head(fleet, "GET", 0).replace(b"/inbox/r000001/pi-1/" + b"ab" * 32 + b".safetensors", _ADAPTER)
    with serving(fleet.host, limits=ConnectionLimits(of_a_device=1)) as port, ExitStack() as stack:
        stuck = stack.enter_context(_open(port, asked))
        poll = stack.enter_context(_open(port, b""))
        assert _last_status(poll, _head(fleet, "GET", 0), 429) == 404  # the stalled one has lost its slot
        received = _drained(stuck)
        assert received < size


_ADAPTER = b"/r000001/adapter.safetensors"


def _drained(connection: socket.socket) -> int:
    total = 0
    try:
        while piece := connection.recv(2**20):
            total += len(piece)
    except ConnectionError:
        pass
    return total


def test_handshakes_that_never_end_count_too(fleet: Fleet, tmp_path: Path) -> None:
    """Over TLS the time limit starts with a connection's first packet, and devices are still served."""
    certificate, key = certificate_for(tmp_path)
    device = fleet.device()
    fleet.publish(seed=1)
    limits = ConnectionLimits(waiting=8, seconds=60)
    with serving(fleet.host, limits=limits, certificate=certificate, key=key) as port, ExitStack() as stack:
        silent = [stack.enter_context(_open(port, b"")) for _ in range(10)]
        address = f"https://127.0.0.1:{port}"
        assert join(address, device.directory, fleet.bundle, now=NOW, ca_file=certificate).switched
        assert not deliver(device.train(), address, device.directory, ca_file=certificate).repeated
        assert all(_is_closed(connection) for connection in silent[:2])
        nonsense = stack.enter_context(_open(port, b"GET / HTTP/1.1\r\n\r\n"))
        assert _is_closed(nonsense)


def test_what_comes_with_the_end_of_a_handshake_is_read(fleet: Fleet, tmp_path: Path) -> None:
    """Many clients that ask in the very packet that ends their handshake are all answered."""
    certificate, key = certificate_for(tmp_path)
    fleet.publish()
    context = ssl.create_default_context(cafile=certificate)
    with serving(fleet.host, certificate=certificate, key=key) as port:
        for _ in range(20):
            raw = socket.create_connection(("127.0.0.1", port), timeout=20)
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
                connection.sendall(b"GET /latest.json HTTP/1.1\r\nHost: x\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 401")
