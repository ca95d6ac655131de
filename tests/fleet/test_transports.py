"""The behaviour of every transport; and connections to a server: kept, lost, and through a proxy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgepeft.sync.transports import FsspecTransport, HostFolder
from edgepeft_runtime.errors import RemoteError
from edgepeft_runtime.fleet.transports import http_connection
from edgepeft_runtime.fleet.transports.folder import FolderTransport
from edgepeft_runtime.fleet.transports.over_http import HttpTransport
from edgepeft_runtime.fleet.transports.remote import connected, open_remote
from edgepeft_runtime.fleet.transports.transport import Transport, fetch, read
from tests.fleet.fleets import code_of

REMOTES: dict[str, Callable[[Path], Transport]] = {
    "folder": FolderTransport,
    "host-folder": HostFolder,
    "fsspec": lambda folder: FsspecTransport(f"memory://{folder}"),
}
"""Each makes the transport to an empty remote, which may use a folder of its own."""


@pytest.mark.parametrize("name", REMOTES)
def test_transports_keep_what_the_protocol_says(name: str, tmp_path: Path) -> None:
    """Files are written whole, read from a position, resumed where a copy ended, and missing or too large by a code."""
    transport = REMOTES[name](tmp_path)
    for content in (b"older", b"0123456789"):
        transport.put("inbox/file", content)
    assert read(transport, "inbox/file", 10) == b"0123456789"
    with transport.open("inbox/file", 4) as stream:
        assert (stream.file.read(), stream.size) == (b"0123456789"[stream.start :], 10)
    (tmp_path / "copy").write_bytes(b"0123")
    fetch(transport, "inbox/file", tmp_path / "copy", 10)
    assert (tmp_path / "copy").read_bytes() == b"0123456789"
    assert code_of(read, transport, "inbox/file", 9) == "too-large"
    assert code_of(read, transport, "missing", 9) == "no-such-file"
    transport.close()


# A server


class _Server(ThreadingHTTPServer):
    """Counts connections; ``hang_up_after`` is how many requests one of them lasts, without a word about it."""

    hang_up_after = 10**6

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.connections = 0
        self.asked: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1
        self.requests = 0

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests += 1
        self.server.asked.append((self.command, self.path))
        self.send_response(404 if "missing" in self.path else 200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")
        self.close_connection |= self.requests >= self.server.hang_up_after

    do_PUT = do_GET

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@contextmanager
def _remote(address: str) -> Iterator[HttpTransport]:
    with connected(address, "secret", None) as remote:
        assert isinstance(remote, HttpTransport)
        yield remote


def test_one_connection_serves_all_requests(server: _Server) -> None:
    """Also after an answer that there is no such file, and after a file was put."""
    with _remote(server.address) as remote:
        for _ in range(3):
            assert read(remote, "latest.json", 10) == b"hello"
            assert code_of(read, remote, "missing", 10) == "no-such-file"
            remote.put("inbox/x", b"content")
    assert (server.connections, len(server.asked)) == (1, 9)


def test_a_connection_with_an_unread_answer_is_left(server: _Server) -> None:
    """An oversized body is not read to its end, and the next request is not mistaken for it."""
    with _remote(server.address) as remote:
        assert code_of(read, remote, "latest.json", 2) == "too-large"
        assert read(remote, "latest.json", 5) == b"hello"
    assert server.connections == 2


def test_a_request_is_sent_again_where_the_server_hung_up(server: _Server) -> None:
    """A server may close idle connections at any time. A device is not affected."""
    server.hang_up_after = 2
    with _remote(server.address) as remote:
        for _ in range(5):
            assert read(remote, "latest.json", 10) == b"hello"
    assert (server.connections, len(server.asked)) == (3, 5)


def test_an_answer_that_ends_early_is_a_lost_connection() -> None:
    """Half a file is not taken for a file."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf")

        thread = threading.Thread(target=answer)
        thread.start()
        with _remote(f"http://127.0.0.1:{listening.getsockname()[1]}") as remote:
            assert code_of(read, remote, "latest.json", 100) == "incomplete-file"
        thread.join()


def test_the_environments_proxy_is_asked(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like urllib: the proxy gets the whole address, and excepted hosts are contacted directly."""
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("no_proxy", "localhost")
    with _remote("http://host.invalid:81/fleet") as remote:
        assert read(remote, "latest.json", 10) == b"hello"
    with _remote(f"http://localhost:{server.server_port}") as remote:
        assert read(remote, "latest.sig", 10) == b"hello"
    assert server.asked == [("GET", "http://host.invalid:81/fleet/latest.json"), ("GET", "/latest.sig")]


def test_plain_http_makes_no_tls_context(server: _Server) -> None:
    """It is read from the system's files for https alone, and once."""
    http_connection._context.cache_clear()
    for _ in range(3):
        with _remote(server.address) as remote:
            read(remote, "latest.json", 10)
    assert http_connection._context.cache_info().misses == 0
    for _ in range(3):
        with _remote(f"https://127.0.0.1:{server.server_port}") as remote:
            assert code_of(read, remote, "latest.json", 10) == "no-tls"
    assert http_connection._context.cache_info().misses == 1


def test_failures_say_what_to_look_at(server: _Server, tmp_path: Path) -> None:
    """TLS leads to certificates and ports, names to the address; only a lost connection is to be tried again."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    for address, expected in (
        (f"https://127.0.0.1:{server.server_port}", "serves with a certificate"),
        (f"http://127.0.0.1:{port}", "that the host is serving"),
        ("http://host.invalid", "the name in the address"),
    ):
        with _remote(address) as remote, pytest.raises(RemoteError) as caught:
            read(remote, "latest.json", 10)
        assert expected in str(caught.value.hint)
    for address in ("http://host:port", "https://", "http://host:0"):
        assert code_of(open_remote, address) == "no-such-remote"
    (tmp_path / "empty.pem").write_text("no certificate")
    assert code_of(open_remote, "https://host", ca_file=tmp_path / "empty.pem") == "cannot-read-file"
