"""A place behind HTTP or HTTPS: downloads go on where they broke off."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

from edgepeft_runtime.errors import FleetError
from edgepeft_runtime.fleet.http_connection import Connections, unreachable
from edgepeft_runtime.fleet.places import PIECE, keep, missing, open_partial, too_large

_OK, _PARTIAL, _LAST_OK, _WRONG_RANGE, _NOT_FOUND = 200, 206, 299, 416, 404


class HttpPlace:
    """A server such as ``edgepeft serve``. Redirects are not followed: the token must not go elsewhere.

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

    def read(self, name: str, most: int) -> bytes | None:
        """See :class:`~edgepeft_runtime.fleet.places.Place`."""
        try:
            with self._send(name) as response:
                content = response.read(most + 1)
                if response.length and len(content) <= most:
                    raise unreachable(str(self), f"{name} ended {response.length} bytes too early")
        except _NotFound:
            return None
        if len(content) > most:
            raise too_large(f"{self}/{name}", most)
        return content

    def fetch(self, name: str, into: Path, size: int) -> None:
        """See :class:`~edgepeft_runtime.fleet.places.Place`. Each try that gets further is followed by another."""
        before = -1
        while (start := _size(into)) < size:
            if start <= before:
                raise unreachable(str(self), f"{name} ended after {start} of {size} bytes")
            before = start
            try:
                self._fetch_from(start, name, into, size)
            except FleetError as failure:
                if failure.reference != "place-unreachable" or _size(into) <= start:
                    raise

    def put(self, name: str, content: bytes) -> None:
        """See :class:`~edgepeft_runtime.fleet.places.Place`."""
        try:
            with self._send(name, method="PUT", data=content) as response:
                response.read(PIECE)
        except _NotFound:
            raise missing(name, str(self)) from None

    def _fetch_from(self, start: int, name: str, into: Path, size: int) -> None:
        try:
            with self._send(name, {"Range": f"bytes={start}-"} if start else {}) as response:
                # A server that does not know ranges sends the whole file.
                goes_on = response.status == _PARTIAL
                with open_partial(into, "ab" if goes_on else "wb") as partial:
                    _copy(response, partial, size - (start if goes_on else 0), f"{self}/{name}")
        except _NotFound:
            raise missing(name, str(self)) from None

    def close(self) -> None:
        """See :class:`~edgepeft_runtime.fleet.places.Place`."""
        self._connections.close()

    @contextmanager
    def _send(
        self, name: str, headers: dict[str, str] | None = None, *, method: str = "GET", data: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The response to a request, as it arrives; raises :class:`FleetError` for any that failed."""
        kind = {"Content-Type": "application/octet-stream"} if data is not None else {}
        asked = {**self._headers, **kind, **(headers or {})}
        with self._connections.send(method, quote(name), asked, data) as response:
            if not _OK <= response.status <= _LAST_OK:
                raise self._refused(name, response)
            yield response

    def _refused(self, name: str, response: http.client.HTTPResponse) -> Exception:
        told = response.read(500).decode("utf-8", "replace").strip()
        if response.status == _NOT_FOUND:
            return _NotFound()
        allowed = response.status not in (401, 403)
        return FleetError(
            "place-refused" if allowed else "not-allowed",
            f"{self} refuses {name}.",
            context=f"{response.status} {response.reason}{': ' if told else ''}{told}",
            hint="try again later." if allowed else "check that the device is registered and its token is current.",
        )


class _NotFound(Exception):
    """The server has no such file."""


def _copy(response: IO[bytes], partial: IO[bytes], size: int, name: str) -> None:
    left = size
    while piece := response.read(min(PIECE, left + 1)):
        left -= len(piece)
        if left < 0:
            raise too_large(name, size)
        keep(partial, piece)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
