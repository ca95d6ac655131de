"""``edgepeft serve`` with clocks around its parts: ``python -m benchmarks.fleet.server WORKSPACE OUT``.

Each part counts the thread's CPU time, except ``fsync``, which counts wall-clock time. Nested parts are not counted
twice. All other code (asyncio, routing, request objects) is the rest of the process's CPU time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from edgepeft.sync import Workspace
from edgepeft.sync.serving import app as serving
from edgepeft.sync.serving import connections, http_bodies

PARTS = ("parse", "auth", "receive and store", "hash", "rename", "fsync (clock)", "read files", "respond")


class Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._local, self._lock = threading.local(), threading.Lock()

    @contextmanager
    def part(self, name: str, now: Callable[[], float] = time.thread_time) -> Iterator[None]:
        """Count the time inside, without that of nested parts."""
        stack = self._local.__dict__.setdefault("stack", [])
        stack.append(0.0)
        start = now()
        try:
            yield
        finally:
            spent, inside = now() - start, stack.pop()
            if stack:
                stack[-1] += spent if now is time.thread_time else 0.0
            with self._lock:
                self.seconds[name] += spent - inside


CLOCK = Clock()


def timed(name: str, function: Callable[..., Any], now: Callable[[], float] = time.thread_time) -> Callable[..., Any]:
    """A function whose calls are counted."""

    @functools.wraps(function)
    def call(*arguments: Any, **more: Any) -> Any:
        with CLOCK.part(name, now):
            return function(*arguments, **more)

    return call


class _Steps:
    """A coroutine whose own steps are counted, without others in between."""

    def __init__(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._name, self._coroutine = name, coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = functools.partial(self._coroutine.send, None)
        while True:
            try:
                with CLOCK.part(self._name):
                    waits_for = step()
            except StopIteration as done:
                return done.value
            try:
                step = functools.partial(self._coroutine.send, (yield waits_for))
            except BaseException as error:
                step = functools.partial(self._coroutine.throw, error)


def timed_steps(name: str, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """A coroutine function whose steps are counted."""

    @functools.wraps(function)
    async def call(*arguments: Any, **more: Any) -> Any:
        return await _Steps(name, function(*arguments, **more))

    return call


class _Hash:
    """SHA-256 whose updates are counted."""

    def __init__(self, content: bytes = b"") -> None:
        self._digest = hashlib.sha256(content)
        self.update = timed("hash", self._digest.update)
        self.hexdigest = self._digest.hexdigest


def instrument() -> None:
    """Put clocks around the parts of the server."""
    for owner, name, part in (
        (connections.Connection, "data_received", "parse"),
        (serving._Tokens, "device", "auth"),
        (serving, "_commit", "rename"),
    ):
        setattr(owner, name, timed(part, getattr(owner, name)))
    for owner, name, part in (
        (serving._Inbox, "put", "receive and store"),
        (http_bodies.FileBody, "_send", "read files"),
        (RequestResponseCycle, "send", "respond"),
    ):
        setattr(owner, name, timed_steps(part, getattr(owner, name)))
    setattr(serving, "hashlib", SimpleNamespace(sha256=_Hash))  # noqa: B010  # a module has no such type
    os.fsync = timed("fsync (clock)", os.fsync, time.perf_counter)


def main() -> None:
    workspace, out = Workspace(sys.argv[1]), Path(sys.argv[2])
    instrument()
    # Ctrl-C ends it; uvicorn raises that once more at its end.
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening, suppress(KeyboardInterrupt):
        before = time.process_time()
        print(listening.getsockname()[1], flush=True)
        connections.server(serving.app(workspace), connections.ConnectionLimits()).run(sockets=[listening])
    cpu = time.process_time() - before
    out.write_text(json.dumps({"cpu": cpu, "parts": {part: CLOCK.seconds[part] for part in PARTS}}))


if __name__ == "__main__":
    main()
