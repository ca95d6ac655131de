"""Bodies of requests and responses: in pieces, of a bounded size, and at no less than a minimum rate."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgepeft.sync.serving.connections import CONNECTION

GRACE_SECONDS = 20.0
"""Seconds by which a transfer may lag the minimum rate. An earlier lead does not count."""

MINIMUM_RATE = 2**12
"""Bytes per second."""

_PIECE = 2**16
_RANGE = re.compile(r"bytes=([0-9]{1,15})-")


class Pace:
    """A deadline that is extended by each byte of a transfer, and never further away than the grace period."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self._scope = scope

    def moved(self, count: int) -> None:
        """Count bytes that were transferred."""
        furthest = anyio.current_time() + GRACE_SECONDS
        self._scope.deadline = min(self._scope.deadline + count / MINIMUM_RATE, furthest)


@contextmanager
def paced() -> Iterator[Pace]:
    """Limit the time of a transfer; raises ``TimeoutError`` if it is too slow."""
    with anyio.fail_after(GRACE_SECONDS) as scope:
        yield Pace(scope)


async def pieces(request: Request, most: int, pace: Pace) -> AsyncIterator[bytes]:
    """Yield the body; raises 413 if it has more than ``most`` bytes, whatever length the client claims."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most:
            raise HTTPException(413, f"at most {most} bytes are accepted")
        pace.moved(len(piece))
        yield piece


class FileBody(Response):
    """A file, from the byte that ``Range: bytes=N-`` asks for.

    It is read between requests, not in threads: reading a piece from the system's cache takes microseconds, and
    handing it to a thread many times that.
    """

    def __init__(self, path: Path, request: Request) -> None:
        self._path, size = path, path.stat().st_size
        requested = _RANGE.fullmatch(request.headers.get("range", ""))
        self._start = int(requested[1]) if requested is not None else 0
        if requested is not None and self._start >= size:
            raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"})
        self._size = size
        headers = {"content-length": str(size - self._start), "accept-ranges": "bytes"}
        if requested is not None:
            headers["content-range"] = f"bytes {self._start}-{size - 1}/{size}"
        super().__init__(status_code=200 if requested is None else 206, media_type="application/octet-stream")
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI's signature
        """Send the file, and drop a client that reads too slowly."""
        try:
            with paced() as pace:
                await self._send(send, pace)
        except TimeoutError:
            scope["state"][CONNECTION].drop()
            for _ in range(2):  # until uvicorn has seen that it is gone
                await anyio.lowlevel.checkpoint()

    async def _send(self, send: Send, pace: Pace) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left = self._size - self._start
        with self._path.open("rb") as file:
            file.seek(self._start)
            while left and (piece := file.read(min(_PIECE, left))):
                left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                pace.moved(len(piece))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
