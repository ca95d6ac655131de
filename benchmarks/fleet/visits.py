"""Devices that do over HTTP all that a real device does except training, over bare sockets or with our client."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.errors import NoSuchFile
from edgepeft_runtime.fleet import rounds, signatures
from edgepeft_runtime.fleet.delivery import MAX_SIDECAR_BYTES, SIDECAR_SUFFIX, UPDATE_SUFFIX, Delivery
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.rounds import Round
from edgepeft_runtime.fleet.transports.remote import connected
from edgepeft_runtime.fleet.transports.transport import Transport, fetch, read

REQUESTS = 7
_ROUND = f"{rounds.folder(1)}/{rounds.ROUND_FILE}"
_ADAPTER = f"{rounds.folder(1)}/{rounds.ADAPTER_FILE}"


@dataclass(frozen=True)
class Visitor:
    """A device with an update to deliver."""

    identity: Identity
    round: Round
    update: bytes

    def sidecar(self) -> Delivery:
        """Of its update."""
        who, digest = self.identity, signatures.sha256(self.update)
        bare = Delivery(who.campaign, 1, who.device, 1, digest, len(self.update), who.algorithm)
        return bare.signed(who.key)

    def visit(self, address: str, folder: Path) -> None:
        """Visit by our client, like ``join`` and ``deliver``, with one connection each."""
        with connected(address, self.identity.token, None) as remote:
            for name in (rounds.LATEST_FILE, rounds.LATEST_SIGNATURES, _ROUND):
                assert read(remote, name, rounds.MAX_ROUND_BYTES)
            partial = folder / f"{self.identity.device}.partial"
            fetch(remote, _ADAPTER, partial, self.round.adapter.bytes)
            partial.unlink()
        with connected(address, self.identity.token, None) as remote:
            self.deliver(remote)

    def deliver(self, remote: Transport) -> None:
        """The update, then its sidecar."""
        sidecar = self.sidecar()
        name = f"{sidecar.folder}/{sidecar.sha256}"
        with suppress(NoSuchFile):  # like a device that checks for an earlier delivery
            read(remote, f"{name}{SIDECAR_SUFFIX}", MAX_SIDECAR_BYTES)
        remote.put(f"{name}{UPDATE_SUFFIX}", self.update)
        remote.put(f"{name}{SIDECAR_SUFFIX}", sidecar.to_bytes())

    def visit_bare(self, port: int) -> None:
        """The same requests, written by hand to one socket."""
        sidecar = self.sidecar()
        name = f"{sidecar.folder}/{sidecar.sha256}"
        with _connected(port) as connection:
            for path in (rounds.LATEST_FILE, rounds.LATEST_SIGNATURES, _ROUND, _ADAPTER):
                assert self._ask(connection, "GET", path) == 200
            assert self._ask(connection, "GET", f"{name}{SIDECAR_SUFFIX}") == 404
            assert self._ask(connection, "PUT", f"{name}{UPDATE_SUFFIX}", self.update) == 201
            assert self._ask(connection, "PUT", f"{name}{SIDECAR_SUFFIX}", sidecar.to_bytes()) == 201

    def _ask(self, connection: socket.socket, method: str, path: str, body: bytes = b"") -> int:
        head = f"{method} /{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.identity.token}\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += _received(connection)
        head_bytes, _, rest = answer.partition(b"\r\n\r\n")
        lines = head_bytes.lower().split(b"\r\n")
        left = int(next(line for line in lines if line.startswith(b"content-length:")).split(b":")[1]) - len(rest)
        while left > 0:
            left -= len(_received(connection))
        return int(lines[0].split()[1])


def _received(connection: socket.socket) -> bytes:
    piece = connection.recv(2**18)
    assert piece, "the server has closed the connection"
    return piece


@contextmanager
def _connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection
