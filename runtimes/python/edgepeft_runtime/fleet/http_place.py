"""A place behind HTTP or HTTPS, by the standard library: downloads go on where they broke off."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib import error, request
from urllib.parse import quote

from edgepeft_runtime.errors import FleetError
from edgepeft_runtime.fleet.places import PIECE, keep, missing, too_large

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""

_PARTIAL, _WRONG_RANGE, _NOT_FOUND = 206, 416, 404


class _NoRedirect(request.HTTPRedirectHandler):
    """Where a server sends a device elsewhere, the token must not go along."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


class HttpPlace:
    """A server such as ``edgepeft serve``.

    Args:
        address: where its files are, ``https://host:port/folder``.
        token: sent as ``Authorization: Bearer``; none if empty.
        ca_file: certificates to trust instead of the system's.
    """

    def __init__(self, address: str, token: str = "", ca_file: str | Path | None = None) -> None:
        self._address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        except OSError as failure:
            raise FleetError(
                "cannot-read-file", f"Cannot read certificates from {ca_file}.", context=str(failure), hint=None
            ) from failure
        self._opener = request.build_opener(_NoRedirect, request.HTTPSHandler(context=context))

    def __str__(self) -> str:
        return self._address

    def read(self, name: str, most: int) -> bytes | None:
        """See :class:`~edgepeft_runtime.fleet.places.Place`."""
        try:
            with self._send(name) as response:
                content = response.read(most + 1)
        except _NotFound:
            return None
        if len(content) > most:
            raise too_large(f"{self}/{name}", most)
        return bytes(content)

    def fetch(self, name: str, into: Path, size: int) -> None:
        """See :class:`~edgepeft_runtime.fleet.places.Place`. Each try that gets further is followed by another."""
        before = -1
        while (start := _size(into)) < size:
            if start <= before:
                raise _unreachable(str(self), f"{name} ended after {start} of {size} bytes")
            before = start
            try:
                self._fetch_from(start, name, into, size)
            except FleetError as failure:
                if failure.reference != "place-unreachable" or _size(into) <= start:
                    raise

    def put(self, name: str, content: bytes) -> None:
        """See :class:`~edgepeft_runtime.fleet.places.Place`."""
        try:
            with self._send(name, method="PUT", data=content):
                pass
        except _NotFound:
            raise missing(name, str(self)) from None

    def _fetch_from(self, start: int, name: str, into: Path, size: int) -> None:
        try:
            with self._send(name, {"Range": f"bytes={start}-"} if start else {}) as response:
                # A server that does not know ranges sends the whole file.
                goes_on = response.status == _PARTIAL
                with into.open("ab" if goes_on else "wb") as partial:
                    _copy(response, partial, size - (start if goes_on else 0), f"{self}/{name}")
        except _NotFound:
            raise missing(name, str(self)) from None

    @contextmanager
    def _send(
        self, name: str, headers: dict[str, str] | None = None, *, method: str = "GET", data: bytes | None = None
    ) -> Iterator[Any]:
        """The response to a request, as it arrives; raises :class:`FleetError` for any that failed."""
        kind = {"Content-Type": "application/octet-stream"} if data is not None else {}
        asked = request.Request(
            f"{self._address}/{quote(name)}", data, {**self._headers, **kind, **(headers or {})}, method=method
        )
        try:
            with self._opener.open(asked, timeout=TIMEOUT) as response:
                yield response
        except error.HTTPError as failure:
            with failure:
                raise self._refused(name, failure) from failure
        except (OSError, http.client.HTTPException, ValueError) as failure:
            raise _unreachable(str(self), f"{type(failure).__name__}: {failure}") from failure

    def _refused(self, name: str, failure: error.HTTPError) -> Exception:
        if failure.code == _NOT_FOUND:
            return _NotFound()
        allowed = failure.code not in (401, 403)
        told = failure.read(500).decode("utf-8", "replace").strip()
        return FleetError(
            "place-refused" if allowed else "not-allowed",
            f"{self} refuses {name}.",
            context=f"{failure.code} {failure.reason}{': ' if told else ''}{told}",
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


def _unreachable(address: str, what: str) -> FleetError:
    hint = "try again; what has arrived is kept."
    return FleetError("place-unreachable", f"The connection to {address} failed.", context=what, hint=hint)
