"""The host's server and a device's own client over loopback: whole rounds, broken connections, uninvited guests."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgepeft.sync import Keys, accepted, collect
from edgepeft.sync.keys import REVOKED
from edgepeft.sync.serving.app import MAX_PENDING
from edgepeft.sync.serving.connections import Connection
from edgepeft_runtime.errors import EdgepeftError, RemoteRefused
from edgepeft_runtime.fleet.delivering import deliver
from edgepeft_runtime.fleet.joining import join
from edgepeft_runtime.fleet.transports.over_http import HttpTransport
from edgepeft_runtime.fleet.transports.remote import open_remote
from edgepeft_runtime.fleet.transports.transport import fetch, read
from tests.fleet.fleets import NOW, Device, Fleet, code_of
from tests.fleet.servers import certificate_for, serving


@dataclass(frozen=True)
class Served:
    """A fleet whose host serves, and a device that has joined over HTTP."""

    fleet: Fleet
    port: int
    device: Device

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """A bare request with the device's token; status and body of the answer."""
        token = self.device.directory.identity().token
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, body, {"Authorization": f"Bearer {token}", **headers})
        answer = connection.getresponse()
        try:
            return answer.status, answer.read()
        finally:
            connection.close()

    def files(self) -> list[str]:
        """Return the files of the inbox."""
        return sorted(path.name for path in self.fleet.host.received.rglob("*") if path.is_file())


@pytest.fixture
def served(fleet: Fleet) -> Iterator[Served]:
    device = fleet.device()
    fleet.publish(seed=1)
    with serving(fleet.host) as port:
        found = Served(fleet, port, device)
        join(found.address, device.directory, fleet.bundle, now=NOW)
        yield found


def test_a_round_over_http(served: Served) -> None:
    """Join, train, deliver, deliver again, collect: with nothing between the two but requests."""
    fleet, device = served.fleet, served.device
    update = device.train()
    assert device.directory.current().adapter.read_bytes() == fleet.adapter(1).read_bytes()
    assert not deliver(update, served.address, device.directory).repeated
    assert deliver(update, f"{served.address}/", device.directory).repeated
    found = collect([fleet.host.received], fleet.host, now=NOW)
    assert (len(found.accepted), found.refused, found.waiting) == (1, (), ())
    assert accepted(fleet.host)[0][1].read_bytes() == update.read_bytes()
    fleet.publish(seed=2)
    assert join(served.address, device.directory, fleet.bundle, now=NOW).round.round == 2


def test_over_tls_the_certificate_is_checked(fleet: Fleet, tmp_path: Path) -> None:
    """With the host's certificate it works; the system's do not vouch for it."""
    certificate, key = certificate_for(tmp_path)
    device = fleet.device()
    fleet.publish(seed=1)
    with serving(fleet.host, certificate=certificate, key=key) as port:
        address = f"https://127.0.0.1:{port}"
        with pytest.raises(EdgepeftError, match="certificate verify failed") as caught:
            join(address, device.directory, fleet.bundle, now=NOW)
        assert (caught.value.code, "--ca-file" in str(caught.value.hint)) == ("certificate-not-trusted", True)
        assert join(address, device.directory, fleet.bundle, now=NOW, ca_file=certificate).switched
        assert not deliver(device.train(), address, device.directory, ca_file=certificate).repeated
    assert code_of(join, address, device.directory, fleet.bundle, ca_file=key) == "cannot-read-file"


# Permissions


def test_without_a_good_token_there_is_nothing(served: Served) -> None:
    """No token, a wrong one, and that of a revoked device get nothing, and leave nothing."""
    for token in ("", "x" * 43):
        remote = open_remote(served.address, token=token)
        assert code_of(read, remote, "latest.json", 100) == "not-allowed"
        assert code_of(remote.put, f"inbox/r000001/pi-1/{'ab' * 32}.safetensors", b"x") == "not-allowed"
    update = served.device.train()
    Keys(served.fleet.host).set_state("pi-1", REVOKED)
    assert code_of(deliver, update, served.address, served.device.directory) == "not-allowed"
    assert served.files() == []


def test_a_device_writes_to_its_own_folder_alone(served: Served) -> None:
    """Not even a good update may be put in another one's name."""
    served.fleet.device("pi-2")
    name = f"{'ab' * 32}.safetensors"
    assert served.ask("PUT", f"/inbox/r000001/pi-2/{name}", b"x")[0] == 403
    assert served.ask("GET", f"/inbox/r000001/pi-2/{name}")[0] == 403
    assert served.files() == []


@pytest.mark.parametrize(
    "path",
    [
        "/keys/host.json",
        "/ledger.sqlite",
        "/../keys/host.json",
        "/r000001/../../keys/host.json",
        "/r000001/%2e%2e%2f%2e%2e%2fkeys%2fhost.json",
        "/%2e%2e/keys/host.json",
        "/r000001/..%2f..%2fmanifest.json",
        "/r000001/",
        "/r1/round.json",
        "/inbox/r000001/pi-1/../../../keys/host.json",
        "/inbox/r000001/pi-1/%2e%2e",
        "/",
        "//etc/passwd",
    ],
)
def test_nothing_but_the_published_files_is_served(served: Served, path: str) -> None:
    """No path leads out of the folder, for reading or for writing."""
    assert served.ask("GET", path)[0] == 404
    assert served.ask("PUT", path, b"x")[0] in (404, 405)
    assert served.files() == []


@pytest.mark.parametrize("name", ["x.safetensors", "AB" * 32 + ".safetensors", "ab" * 32, "ab" * 32 + ".pkl", ".sig"])
def test_names_that_are_no_hashes_are_not_accepted(served: Served, name: str) -> None:
    """An inbox contains only updates and sidecars."""
    assert served.ask("PUT", f"/inbox/r000001/pi-1/{name}", b"x")[0] == 404
    assert served.files() == []


def test_what_is_put_must_be_what_it_says(served: Served) -> None:
    """Wrong content, a sidecar before its update or of another one, a round that is not open: all say why."""
    update = served.device.train()
    remote = open_remote(served.address, token=served.device.directory.identity().token)
    folder, digest = "inbox/r000001/pi-1", "ab" * 32
    with pytest.raises(RemoteRefused, match="not what its name says") as caught:
        remote.put(f"{folder}/{digest}.safetensors", b"x")
    assert caught.value.code == "remote-refused"
    with pytest.raises(RemoteRefused, match="409"):
        remote.put(f"{folder}/{digest}.sig", b"{}")
    delivered = deliver(update, served.address, served.device.directory).delivery
    with pytest.raises(RemoteRefused, match="422"):
        remote.put(f"{folder}/{delivered.sha256}.sig", b"{}")
    assert served.ask("PUT", f"/inbox/r000002/pi-1/{digest}.safetensors", b"x")[0] == 409
    assert served.files() == sorted([f"{delivered.sha256}.sig", f"{delivered.sha256}.safetensors"])


def test_too_much_is_not_accepted(served: Served) -> None:
    """By the declared length, and by the received bytes without one. The number is limited too."""
    path, most = f"/inbox/r000001/pi-1/{'ab' * 32}", served.fleet.host.round(1).limits.update_bytes
    assert served.ask("PUT", f"{path}.safetensors", b"x", **{"Content-Length": str(most + 1)})[0] == 413
    assert served.ask("PUT", f"{path}.sig", bytes(5000))[0] == 413
    assert _chunked(served, f"{path}.safetensors", [bytes(2**16)] * (most // 2**16 + 2)) == 413
    assert served.files() == []
    for seed in range(MAX_PENDING):
        deliver(served.device.train(steps=1, seed=seed), served.address, served.device.directory)
    late = served.device.train(steps=1, seed=MAX_PENDING)
    with pytest.raises(RemoteRefused, match="429"):
        deliver(late, served.address, served.device.directory)
    collect([served.fleet.host.received], served.fleet.host, now=NOW, remove=True)
    assert not deliver(late, served.address, served.device.directory).repeated


def _chunked(served: Served, path: str, pieces: list[bytes]) -> int:
    """The status of a PUT whose length is not announced."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    token = served.device.directory.identity().token
    connection.putrequest("PUT", path)
    connection.putheader("Authorization", f"Bearer {token}")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    try:
        for piece in pieces:
            connection.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    except OSError:
        pass  # the server has had enough
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_connection_that_breaks_leaves_nothing(served: Served) -> None:
    """Half an update is forgotten; the whole one is taken afterwards."""
    update = served.device.train()
    content, token = update.read_bytes(), served.device.directory.identity().token
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        head = (
            f"PUT /inbox/r000001/pi-1/{'ab' * 32}.safetensors HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        )
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:100])
        time.sleep(0.2)
    deliver(update, served.address, served.device.directory)
    for _ in range(100):
        if len(served.files()) == 2:
            break
        time.sleep(0.05)
    assert len(served.files()) == 2


def test_many_devices_at_once(served: Served) -> None:
    """Sixteen devices deliver together; each update arrives whole, once."""
    devices = [served.fleet.device(f"many-{number}") for number in range(16)]
    for device in devices:
        shutil.copytree(served.device.directory.path / "slot-a", device.directory.path / "slot-a")
        shutil.copy(served.device.directory.path / "trusted.json", device.directory.path)
    updates = [device.train(steps=1, seed=seed) for seed, device in enumerate(devices)]
    failures: list[Exception] = []

    def send(device: Device, update: Path) -> None:
        try:
            for _ in range(3):
                deliver(update, served.address, device.directory)
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=send, args=pair) for pair in zip(devices, updates, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = collect([served.fleet.host.received], served.fleet.host, now=NOW)
    assert (len(found.accepted), found.refused, found.waiting) == (16, (), ())


# A device and faulty servers


class _Handler(BaseHTTPRequestHandler):
    """Answers GET by a function of the handler, and records the requests."""

    answer: Callable[[_Handler], None]
    asked: list[dict[str, str]]

    def do_GET(self) -> None:
        type(self).asked.append(dict(self.headers))
        type(self).answer(self)

    def log_message(self, *_arguments: object) -> None:
        pass

    def reply(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        """An answer that may claim another length than it has."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def answering(answer: Callable[[_Handler], None]) -> Iterator[tuple[HttpTransport, list[dict[str, str]]]]:
    """A remote whose server answers with ``responses``, and the headers of the requests it got."""
    handler = type("Handler", (_Handler,), {"answer": answer, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield HttpTransport(f"http://127.0.0.1:{server.server_port}", "secret"), handler.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


CONTENT = bytes(range(256)) * 40


def test_a_download_resumes_where_the_connection_broke(tmp_path: Path) -> None:
    """A server that drops each connection after 3,000 bytes is asked for the rest, again and again."""

    def answer(handler: _Handler) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        piece = CONTENT[start : start + 3000]
        handler.reply(206 if start else 200, piece, len(CONTENT) - start)

    with answering(answer) as (remote, asked):
        fetch(remote, "adapter", tmp_path / "partial", len(CONTENT))
    assert (tmp_path / "partial").read_bytes() == CONTENT
    assert [headers.get("Range") for headers in asked] == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


def test_a_server_without_ranges_sends_the_whole_again(tmp_path: Path) -> None:
    """The bytes of an earlier attempt are then overwritten, not appended to."""
    (tmp_path / "partial").write_bytes(b"x" * 100)
    with answering(lambda handler: handler.reply(200, CONTENT)) as (remote, asked):
        fetch(remote, "adapter", tmp_path / "partial", len(CONTENT))
    assert (tmp_path / "partial").read_bytes() == CONTENT
    assert asked[0]["Range"] == "bytes=100-"


def test_a_download_that_gets_no_further_ends(tmp_path: Path) -> None:
    """No endless loop with a server that sends nothing, and what has arrived stays."""

    def answer(handler: _Handler) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        handler.reply(206 if start else 200, b"" if start else CONTENT[:500], len(CONTENT) - start)

    with answering(answer) as (remote, asked):
        assert code_of(fetch, remote, "adapter", tmp_path / "partial", len(CONTENT)) == "incomplete-file"
    assert (tmp_path / "partial").read_bytes() == CONTENT[:500]
    assert len(asked) == 2


def test_a_server_that_sends_without_end_is_cut_off(tmp_path: Path) -> None:
    """No more than the requested bytes reach the disk or memory."""
    with answering(lambda handler: handler.reply(200, CONTENT)) as (remote, _):
        assert code_of(fetch, remote, "adapter", tmp_path / "partial", 1000) == "too-large"
        assert (tmp_path / "partial").stat().st_size <= 1000
        assert code_of(read, remote, "latest.json", 1000) == "too-large"


def test_a_redirect_does_not_get_the_token(tmp_path: Path) -> None:
    """A device talks to the configured server, and to no other."""
    with answering(lambda handler: handler.reply(200, CONTENT)) as (other, asked):
        where = f"{other}/latest.json"
        with answering(lambda handler: handler.reply(302, b"", Location=where)) as (remote, _):
            assert code_of(read, remote, "latest.json", 10**6) == "remote-refused"
            assert code_of(fetch, remote, "latest.json", tmp_path / "partial", 100) == "remote-refused"
    assert asked == []


def test_a_server_that_is_not_there_or_talks_nonsense(tmp_path: Path) -> None:
    """Each ends in an error that says so."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    assert code_of(read, open_remote(f"http://127.0.0.1:{port}"), "latest.json", 10) == "remote-unreachable"
    with answering(lambda handler: handler.wfile.write(b"nonsense\r\n\r\n") and None) as (remote, _):
        assert code_of(read, remote, "latest.json", 10) == "remote-unreachable"
    with answering(lambda handler: handler.reply(404, b"")) as (remote, _):
        assert code_of(read, remote, "latest.json", 10) == "no-such-file"
        assert code_of(fetch, remote, "adapter", tmp_path / "partial", 10) == "no-such-file"
    broken = answering(lambda handler: handler.reply(500, b"out of order"))
    with broken as (remote, _), pytest.raises(RemoteRefused, match="out of order"):
        read(remote, "latest.json", 10)


def test_a_full_disk_is_not_mistaken_for_a_bad_remote(tmp_path: Path) -> None:
    """Neither of a folder nor of a server; otherwise the device would fetch for ever."""
    (tmp_path / "adapter").write_bytes(CONTENT)
    full = Path("/dev/full")
    assert code_of(fetch, open_remote(tmp_path), "adapter", full, len(CONTENT)) == "cannot-write-file"
    with answering(lambda handler: handler.reply(200, CONTENT)) as (remote, asked):
        assert code_of(fetch, remote, "adapter", full, len(CONTENT)) == "cannot-write-file"
    assert len(asked) == 1


def test_answers_say_nothing_about_the_host(served: Served) -> None:
    """No version of a server, no path; a reason in words."""
    status, body = served.ask("PUT", f"/inbox/r000009/pi-1/{'ab' * 32}.safetensors", b"x")
    assert (status, body) == (409, b"updates of this round are not accepted; the newest is 1")
    assert str(served.fleet.root).encode() not in body


def test_answers_are_not_delayed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small packets go out at once on every connection: head and body of an answer are two of them."""
    options, original = [], Connection.connection_made

    def connection_made(self: Connection, transport: asyncio.Transport) -> None:
        original(self, transport)
        options.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    fleet.publish()
    with serving(fleet.host) as port:
        assert code_of(read, open_remote(f"http://127.0.0.1:{port}"), "latest.json", 100) == "not-allowed"
    assert options and all(options)
