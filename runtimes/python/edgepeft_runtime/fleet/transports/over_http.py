"""A server such as ``edgepeft serve`` as a remote; downloads resume where they broke off."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from edgepeft_runtime.errors import NotAllowed, RemoteError, RemoteRefused
from edgepeft_runtime.fleet.transports.http_connection import Connections
from edgepeft_runtime.fleet.transports.transport import PIECE, Stream, missing

_OK, _PARTIAL, _LAST_OK, _NOT_FOUND = 200, 206, 299, 404
_FORBIDDEN = (401, 403)


class HttpTransport:
    """Implements ``Transport`` by GET and PUT.

    Redirects are not followed: the token must not go elsewhere.

    Args:
        address: where its files are, ``https://host:port/folder``.
        token: sent as ``Authorization: Bearer``; none if empty.
        ca_file: certificates to trust instead of the system's.
    """

    def __init__(self, address: str, token: str = "", ca_file: str | Path | None = None) -> None:
        self._address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._connections = Connections(self._address, ca_file)

    def __str__(self) -> str:
        return self._address

    @contextmanager
    def open(self, name: str, start: int = 0) -> Iterator[Stream]:
        """Implement the protocol. A server that does not know ranges sends the whole file."""
        with self._send("GET", name, {"Range": f"bytes={start}-"} if start else {}) as response:
            first = start if response.status == _PARTIAL else 0
            yield Stream(response, first, None if response.length is None else first + response.length)

    def put(self, name: str, content: bytes) -> None:
        """Implement the protocol."""
        with self._send("PUT", name, {"Content-Type": "application/octet-stream"}, content) as response:
            response.read(PIECE)

    def close(self) -> None:
        """Implement the protocol."""
        self._connections.close()

    @contextmanager
    def _send(
        self, method: str, name: str, headers: dict[str, str], body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Give the response to a request; raises ``RemoteError`` for any that failed."""
        with self._connections.send(method, quote(name), {**self._headers, **headers}, body) as response:
            if not _OK <= response.status <= _LAST_OK:
                raise self._refused(name, response)
            yield response

    def _refused(self, name: str, response: http.client.HTTPResponse) -> RemoteError:
        text = response.read(500).decode("utf-8", "replace").strip()
        if response.status == _NOT_FOUND:
            return missing(name, self)
        context = f"{response.status} {response.reason}{': ' if text else ''}{text}"
        if response.status in _FORBIDDEN:
            hint = "check that the device is registered and its token is current."
            return NotAllowed(f"{self} refuses {name}.", context=context, hint=hint)
        return RemoteRefused(f"{self} refuses {name}.", context=context, hint="try again later.")
