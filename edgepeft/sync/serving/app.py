"""The server of ``edgepeft serve``: the published rounds, and an inbox for the updates of devices.

The server stores a limited number of files, each complete and under its hash. ``edgepeft pull`` verifies the updates,
and treats the inbox like that of any remote. A token only authorizes a device to write to its folder, while signatures
prove the origin of an update.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from edgepeft.sync.keys import ACTIVE, Device, Keys
from edgepeft.sync.serving.connections import CONNECTION
from edgepeft.sync.serving.http_bodies import FileBody, Pace, paced, pieces
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.files.durable import make_folder, move, sync_file
from edgepeft_runtime.fleet import rounds
from edgepeft_runtime.fleet.delivery import (
    MAX_SIDECAR_BYTES,
    SIDECAR_SUFFIX,
    UPDATE_SUFFIX,
    Delivery,
    digest_of,
    inbox_folder,
)

MAX_PENDING = 16
"""Largest number of updates of one device in the inbox, including those that are arriving."""

SERVING = ".serving"
"""The file in ``received`` that a server locks."""


@dataclass(frozen=True)
class _Slot:
    """A file that a device may write: its folder in the inbox, the round, the device, its name and hash."""

    folder: Path
    round: int
    device: str
    name: str
    digest: str


def app(workspace: Workspace, origins: Sequence[str] = ()) -> Starlette:
    """Return the server of a host's workspace as an ASGI application.

    Args:
        workspace: The host's.
        origins: Web pages of these origins may send requests as well (``https://page.example``).

    ========================================  ==================================================================
    ``GET /latest.json``, ``/latest.sig``      the latest round's number and hash, and its signatures
    ``GET /r000012/round.json``                a published round
    ``GET /r000012/adapter.safetensors``       its adapter; ``Range`` is supported
    ``GET /blobs/<hash>``                      a file of a bundle that goes with a round; likewise
    ``PUT /inbox/r000012/<device>/<name>``     an update, then its sidecar; the device's own folder alone
    ``GET /inbox/r000012/<device>/<hash>.sig``  the sidecar, if it has arrived
    ========================================  ==================================================================

    Every request carries ``Authorization: Bearer <token>``. Status codes: 401 no such token, 403 a revoked device or
    the folder of another one, 404 no such file, 408 too slow, 409 the round is not open or the update is missing, 413
    too large, 422 content and name differ, 429 too many updates or requests, 503 too many requests of all devices.

    Run it on ``edgepeft.sync.serving.connections.server``.
    """
    tokens = _Tokens(workspace)
    published = _Published(workspace, tokens)
    inbox = _Inbox(workspace, tokens)
    routes = [
        Route("/{name}", published.top, methods=["GET"]),
        Route("/{folder}/{name}", published.of_round, methods=["GET"]),
        Route("/inbox/{folder}/{device}/{name}", inbox.get, methods=["GET"]),
        Route("/inbox/{folder}/{device}/{name}", inbox.put, methods=["PUT"]),
    ]
    # The answer to a browser that asks what a page may do needs no token, and says nothing about the workspace.
    pages = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "PUT"],
        allow_headers=["Authorization", "Content-Type", "Range"],
    )
    made = Starlette(
        routes=routes, exception_handlers={HTTPException: _response}, middleware=[pages] if origins else []
    )
    made.router.redirect_slashes = False
    return made


class _Tokens:
    """Devices by the hash of their token, read again after one was registered or revoked."""

    def __init__(self, workspace: Workspace) -> None:
        self._keys, self._folder = Keys(workspace), workspace.keys / "devices"
        self._read_at, self._devices = -1, dict[str, Device]()

    def device(self, request: Request) -> Device:
        """Return the device of a request, and count its connection as answering; raises 401, 403, 429 or 503."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        changed = self._folder.stat().st_mtime_ns if self._folder.exists() else 0
        if changed != self._read_at:
            self._devices = {device.token_sha256: device for device in self._keys.devices()}
            self._read_at = changed
        device = self._devices.get(hashlib.sha256(token.encode()).hexdigest())
        if kind != "Bearer" or device is None:
            raise HTTPException(401, "no such token", {"WWW-Authenticate": "Bearer"})
        if device.state != ACTIVE:
            raise HTTPException(403, "this device is revoked")
        request.scope["state"][CONNECTION].answer(device.device)
        return device


class _Published:
    """Serves the files of ``published``, by exact name."""

    def __init__(self, workspace: Workspace, tokens: _Tokens) -> None:
        self._folder, self._tokens = workspace.published, tokens

    async def top(self, request: Request) -> Response:
        """Return ``latest.json`` or its signatures."""
        self._tokens.device(request)
        name = request.path_params["name"]
        if name not in (rounds.LATEST_FILE, rounds.LATEST_SIGNATURES):
            raise HTTPException(404)
        return _file(self._folder / name, request)

    async def of_round(self, request: Request) -> Response:
        """Return a file of a round or of a bundle."""
        self._tokens.device(request)
        folder, name = request.path_params["folder"], request.path_params["name"]
        is_blob = folder == rounds.BLOBS and rounds.is_digest(name)
        if not is_blob and (rounds.number_of(folder) is None or name not in (rounds.ROUND_FILE, rounds.ADAPTER_FILE)):
            raise HTTPException(404)
        return _file(self._folder / folder / name, request)


class _Inbox:
    """Stores files from devices in ``received``."""

    def __init__(self, workspace: Workspace, tokens: _Tokens) -> None:
        self._workspace, self._tokens = workspace, tokens
        self._arriving: set[tuple[str, str]] = set()
        for partial in workspace.received.rglob(".*.partial"):  # unfinished files of an earlier process
            partial.unlink(missing_ok=True)

    async def get(self, request: Request) -> Response:
        """Return a sidecar that has arrived, so that a device need not send the update again."""
        slot = self._slot(request)
        if not slot.name.endswith(SIDECAR_SUFFIX):
            raise HTTPException(404)
        return _file(self._kept(slot, slot.name) or slot.folder / slot.name, request)

    async def put(self, request: Request) -> Response:
        """Store an update or a sidecar, unless it is there already."""
        slot = self._slot(request)
        is_update = slot.name.endswith(UPDATE_SUFFIX)
        most = self._most(slot.round) if is_update else MAX_SIDECAR_BYTES
        if int(request.headers.get("content-length") or 0) > most:
            raise HTTPException(413, f"at most {most} bytes are accepted")
        keep = self._keep_update if is_update else self._keep_sidecar
        try:
            with paced() as pace:
                return await keep(request, slot, most, pace)
        except TimeoutError:
            raise HTTPException(408, "the file comes too slowly") from None
        except ClientDisconnect:
            return Response(status_code=400)

    def _slot(self, request: Request) -> _Slot:
        device = self._tokens.device(request)
        folder, owner, name = (request.path_params[part] for part in ("folder", "device", "name"))
        number = rounds.number_of(folder)
        digest = digest_of(name) or digest_of(name, SIDECAR_SUFFIX)
        if number is None or digest is None:
            raise HTTPException(404)
        if owner != device.device:
            raise HTTPException(403, "that is the folder of another device")
        return _Slot(self._workspace.received / inbox_folder(number, owner), number, owner, name, digest)

    def _most(self, number: int) -> int:
        """Return the size of the largest update of a round, if its updates are accepted."""
        try:
            newest = self._workspace.round(self._workspace.newest().round)
        except EdgepeftError as error:
            raise HTTPException(409, error.message) from None
        if not newest.round - newest.max_staleness <= number <= newest.round:
            raise HTTPException(409, f"updates of this round are not accepted; the newest is {newest.round}")
        return newest.limits.update_bytes

    def _kept(self, slot: _Slot, name: str) -> Path | None:
        """Return the path of a file that was delivered before, received or accepted already."""
        accepted = self._workspace.accepted / slot.folder.relative_to(self._workspace.received / rounds.INBOX)
        return next((path for path in (slot.folder / name, accepted / name) if path.is_file()), None)

    async def _keep_update(self, request: Request, slot: _Slot, most: int, pace: Pace) -> Response:
        if self._kept(slot, slot.name) is not None:
            async for _ in pieces(request, most, pace):
                pass  # an answer before the device has sent all would look like a lost connection to it
            return Response(status_code=200)
        with self._room(slot), _partial(slot.folder) as partial:
            if await _copied(request, partial, most, pace) != slot.digest:
                raise HTTPException(422, "the content is not what its name says")
            await anyio.to_thread.run_sync(_commit, partial, slot.folder / slot.name)
        return Response(status_code=201)

    @contextmanager
    def _room(self, slot: _Slot) -> Iterator[None]:
        """Reserve room in the device's inbox before the update arrives: many may arrive at once."""
        waiting = {
            path.stem for path in self._workspace.received.glob(f"{rounds.INBOX}/*/{slot.device}/*{UPDATE_SUFFIX}")
        }
        arriving = {digest for device, digest in self._arriving if device == slot.device}
        if slot.digest in arriving:
            raise HTTPException(409, "this update is arriving already")
        if len(waiting | arriving) >= MAX_PENDING:
            raise HTTPException(429, f"{MAX_PENDING} updates are waiting already")
        self._arriving.add((slot.device, slot.digest))
        try:
            yield
        finally:
            self._arriving.discard((slot.device, slot.digest))

    async def _keep_sidecar(self, request: Request, slot: _Slot, most: int, pace: Pace) -> Response:
        content = b"".join([piece async for piece in pieces(request, most, pace)])
        if self._kept(slot, f"{slot.digest}{UPDATE_SUFFIX}") is None:
            raise HTTPException(409, "the update itself is not there")
        try:
            delivery = Delivery.from_bytes(content)
        except EdgepeftError as error:
            raise HTTPException(422, error.message) from None
        if self._workspace.received / delivery.folder != slot.folder or delivery.sha256 != slot.digest:
            raise HTTPException(422, "the sidecar belongs to another update")
        with _partial(slot.folder) as partial:
            partial.write_bytes(content)
            await anyio.to_thread.run_sync(_commit, partial, slot.folder / slot.name)
        return Response(status_code=201)


async def _copied(request: Request, partial: Path, most: int, pace: Pace) -> str:
    """Write the body to a file piece by piece, so that memory does not grow with it; return its hash."""
    digest = hashlib.sha256()
    with partial.open("wb") as file:
        async for piece in pieces(request, most, pace):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """Yield a path for this request alone. The file is removed afterwards unless it was renamed."""
    path = folder / f".{secrets.token_hex(8)}.partial"
    try:
        make_folder(folder)
        yield path
    except OSError as failure:
        raise HTTPException(507, f"the host cannot keep the file: {failure.strerror}") from failure
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _commit(partial: Path, path: Path) -> None:
    """Flush a file and rename it, so that an acknowledged file survives a power cut."""
    sync_file(partial)
    move(partial, path)


def _file(path: Path, request: Request) -> Response:
    try:
        return FileBody(path, request)
    except FileNotFoundError:
        raise HTTPException(404) from None


async def _response(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, error.status_code, error.headers)
