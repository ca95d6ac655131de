"""The connections of ``edgepeft serve``: half-open ones never displace a device that is being answered.

A connection is *waiting* until a request on it has shown a valid token, and again after each answer. Waiting is limited
in time and in number. If there are too many, the oldest connection of the address with the most is closed. No address
is refused, since devices may share one. A connection whose request has shown a token is *answering*. These are limited
for each device, and transfers have a minimum rate (``edgepeft.sync.serving.http_bodies``).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTION = "connection"
"""The key of a request's connection in the state of its scope."""

_SETTLE_SECONDS = 0.1


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of a server's connections.

    Args:
        waiting: Connections without a token. Twice as many are allowed briefly, while their first data is read.
        seconds: Longest wait for a TLS handshake, the head of a request, the rest of a request that was refused, or the
            next request.
        answering: Requests with a token at a time.
        of_a_device: Requests of one device at a time.
    """

    waiting: int = 192
    seconds: float = 15.0
    answering: int = 256
    of_a_device: int = 4

    @classmethod
    def of_files(cls, count: int) -> ConnectionLimits:
        """Return the limits of a process that can open ``count`` files: a connection uses one, an update another."""
        return cls(waiting=min(1024, count * 3 // 16), answering=min(1024, count // 4))


class Connections:
    """All connections of a server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._waiting: dict[Connection, asyncio.TimerHandle] = {}
        self._by_address: dict[str, dict[Connection, None]] = {}
        self._answering: dict[Connection, str] = {}
        self._devices: Counter[str] = Counter()
        self._trimming: asyncio.TimerHandle | None = None

    def wait(self, connection: Connection) -> None:
        """Count a connection that is new, or that was answered. If there are too many, close some."""
        self.leave(connection)
        self._waiting[connection] = connection.loop.call_later(self._limits.seconds, connection.drop)
        self._by_address.setdefault(connection.address, {})[connection] = None
        if len(self._waiting) > 2 * self._limits.waiting:
            self._drop_one()
        elif len(self._waiting) > self._limits.waiting and self._trimming is None:
            # Not at once: of many that connect together, those that send a request should be read first.
            self._trimming = connection.loop.call_later(_SETTLE_SECONDS, self._trim)

    def _trim(self) -> None:
        self._trimming = None
        while len(self._waiting) > self._limits.waiting:
            self._drop_one()

    def _drop_one(self) -> None:
        crowd = max(self._by_address.values(), key=len)
        next(iter(crowd)).drop()

    def answer(self, connection: Connection, device: str) -> None:
        """Count a request that has shown a device's token; raises 429 or 503 if too many are being answered."""
        if self._devices[device] >= self._limits.of_a_device:
            raise HTTPException(429, f"{self._limits.of_a_device} requests of this device are being answered already")
        if len(self._answering) >= self._limits.answering:
            raise HTTPException(503, "too many requests at once; try again later")
        self.leave(connection)
        self._answering[connection] = device
        self._devices[device] += 1

    def leave(self, connection: Connection) -> None:
        """Forget a connection that is closed, or about to change its state."""
        timer = self._waiting.pop(connection, None)
        if timer is not None:
            timer.cancel()
            neighbours = self._by_address[connection.address]
            del neighbours[connection]
            if not neighbours:
                del self._by_address[connection.address]
        device = self._answering.pop(connection, None)
        if device is not None:
            self._devices[device] -= 1
            if not self._devices[device]:
                del self._devices[device]


class Connection(H11Protocol):
    """A connection of uvicorn that counts from its first packet on, before any TLS handshake."""

    def __init__(self, *, connections: Connections, tls: ssl.SSLContext | None, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.app_state = {**self.app_state, CONNECTION: self}
        self.address = ""
        self._connections, self._tls = connections, tls
        self._raw: asyncio.Transport | None = None
        self._early = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Handle a client that has connected."""
        self._raw = transport
        # asyncio sets it only on its own sockets. Without TCP_NODELAY each answer waits 40 ms for the client's ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _buffer_nothing(transport)
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        self._connections.wait(self)
        if self._tls is None:
            super().connection_made(transport)
        else:
            transport.pause_reading()
            self._handshake = self.loop.create_task(self._secure(transport, self._tls))

    async def _secure(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        try:
            secured = await self.loop.start_tls(transport, self, tls, server_side=True)
        except OSError:  # of which ssl.SSLError is one
            secured = None
        if secured is None or secured.is_closing():
            self.drop()
            return
        super().connection_made(secured)
        _buffer_nothing(secured)
        if self._early:
            super().data_received(self._early)

    def data_received(self, data: bytes) -> None:
        """Handle data, some of which may arrive with the end of the handshake."""
        if self.transport is None:
            self._early += data
        else:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle a client that has disconnected."""
        self._connections.leave(self)
        if self.transport is not None:
            super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Handle a request that was answered."""
        self._connections.wait(self)
        super().on_response_complete()

    def answer(self, device: str) -> None:
        """See ``Connections.answer``."""
        self._connections.answer(self, device)

    def drop(self) -> None:
        """Close at once, and discard unsent data."""
        self._connections.leave(self)
        if self._raw is not None:
            self._raw.abort()


def _buffer_nothing(transport: asyncio.WriteTransport) -> None:
    """Let a response count as sent only when the system has all of it, so that no deadline cuts off its end."""
    transport.set_write_buffer_limits(high=1, low=0)


def server(app: ASGIApp, limits: ConnectionLimits, tls: ssl.SSLContext | None = None) -> uvicorn.Server:
    """Return a server of an application; ``run(sockets=[...])`` serves until a signal ends it."""
    protocol: Any = partial(Connection, connections=Connections(limits), tls=tls)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(limits.seconds) + 1,
        timeout_graceful_shutdown=10,
    )
    return uvicorn.Server(config)
