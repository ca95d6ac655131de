"""Connections to an HTTP server that stay open between requests; errors have hints."""

from __future__ import annotations

import http.client
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib import request
from urllib.parse import SplitResult, unquote, urlsplit

from edgepeft_runtime.errors import (
    CannotReadFile,
    CertificateNotTrusted,
    NoSuchRemote,
    NoTls,
    RemoteError,
    RemoteUnreachable,
)

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""

_PORTS = {"http": 80, "https": 443}
_BROKEN = (OSError, http.client.HTTPException, ValueError)
_CAUSES: tuple[tuple[type[Exception], type[RemoteError], str], ...] = (
    (
        ssl.SSLCertVerificationError,
        CertificateNotTrusted,
        "give the host's certificate with --ca-file; check the name in the address, and this device's clock.",
    ),
    (
        ssl.SSLError,
        NoTls,
        "check the port, and that the host serves with a certificate; without one, the address starts with http://.",
    ),
    (socket.gaierror, RemoteUnreachable, "check the name in the address, and this device's network."),
    (ConnectionRefusedError, RemoteUnreachable, "check the address and the port, and that the host is serving."),
    (Exception, RemoteUnreachable, "try again; the received part is kept."),
)


class Connections:
    """Connections to one server. One that has answered in full is used again for the next request.

    Args:
        address: ``http://host:port/folder``, or ``https://``; a proxy of the environment is used as urllib does.
        ca_file: certificates to trust instead of the system's.
    """

    def __init__(self, address: str, ca_file: str | Path | None) -> None:
        self._address, self._parts = address, _parts(address)
        self._trusted = _certificates(ca_file) if self._parts.scheme == "https" else None
        self._proxy = _proxy(self._parts)
        self._seen_by_proxy = self._proxy is not None and self._parts.scheme == "http"
        self._idle: list[http.client.HTTPConnection] = []

    @contextmanager
    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The response to a request; raises ``FleetError`` where the connection fails, now or while it is read."""
        try:
            connection, response = self._answer(method, path, headers, body)
            with self._kept(connection, response):
                yield response
        except _BROKEN as failure:
            raise _unreachable(self._address, failure) from failure

    def close(self) -> None:
        """Close the connection."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _kept(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> Iterator[None]:
        """Keep a connection for the next request once its response has been read to the end; close it otherwise."""
        try:
            yield
        finally:
            if response.isclosed() and not response.will_close and not response.length:
                self._idle.append(connection)
            else:
                connection.close()

    def _answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The answer, over a connection that is open already if the server has not closed it meanwhile."""
        target, all_headers = self._target(path), dict(headers)
        if self._proxy is not None and self._seen_by_proxy:
            all_headers |= _credentials(self._proxy)
        while True:
            used = bool(self._idle)
            connection = self._idle.pop() if used else self._open()
            try:
                connection.request(method, target, body, all_headers)
                return connection, connection.getresponse()
            except _BROKEN:
                connection.close()
                if not used:
                    raise

    def _target(self, path: str) -> str:
        """Return the target of a request, which is the whole address for a proxy that sees it."""
        target = f"{self._parts.path.rstrip('/')}/{path}"
        return f"http://{self._parts.netloc}{target}" if self._seen_by_proxy else target

    def _open(self) -> http.client.HTTPConnection:
        to = self._proxy or self._parts
        host, port = str(to.hostname), to.port or _PORTS[to.scheme]
        if self._parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        made = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=_context(self._trusted))
        if self._proxy is not None:
            made.set_tunnel(str(self._parts.hostname), self._parts.port, _credentials(self._proxy))
        return made


def _unreachable(address: str, failure: Exception) -> RemoteError:
    """Return the error of a connection that failed; what to do depends on how it failed."""
    _, cause, hint = next(row for row in _CAUSES if isinstance(failure, row[0]))
    context = f"{type(failure).__name__}: {failure}"
    return cause(f"The connection to {address} failed.", context=context, hint=hint)


def _parts(address: str) -> SplitResult:
    reason = "it names no host"
    try:
        parts = urlsplit(address)
        if parts.hostname and parts.port != 0:
            return parts
    except ValueError as failure:  # of a port that is no number
        reason = str(failure)
    raise NoSuchRemote(f"{address} is no address.", context=reason, hint="write it as https://host:port.")


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for a server, if it does."""
    proxy = request.getproxies().get(parts.scheme)
    if not proxy or request.proxy_bypass(parts.netloc):
        return None
    return _parts(proxy if "://" in proxy else f"http://{proxy}")


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    text = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(text.encode()).decode()}"}


def _certificates(ca_file: str | Path | None) -> str | None:
    """The certificates in a file; ``None``: the system's."""
    if ca_file is None:
        return None
    try:
        text = Path(ca_file).read_text("ascii", "ignore")
        _context(text)
    except OSError as failure:  # of which ssl.SSLError is one
        raise CannotReadFile(
            f"Cannot read certificates from {ca_file}.",
            context=str(failure),
            hint="give a file of certificates (PEM).",
        ) from failure
    return text


@lru_cache(maxsize=4)
def _context(trusted: str | None) -> ssl.SSLContext:
    """Return the TLS context. Creating one takes 19 ms, so it is created once."""
    return ssl.create_default_context(cadata=trusted)
