"""From the remote that a user names to the transport that reaches it from a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from edgepeft_runtime.errors import NoSuchRemote
from edgepeft_runtime.fleet.transports.folder import FolderTransport
from edgepeft_runtime.fleet.transports.over_http import HttpTransport
from edgepeft_runtime.fleet.transports.transport import Transport


def open_remote(remote: str | Path, *, token: str = "", ca_file: str | Path | None = None) -> Transport:
    """Return the transport to a remote.

    Args:
        remote: a folder, or an ``http://`` or ``https://`` address.
        token: credential that an HTTP server requires of this device.
        ca_file: certificates (PEM) to trust instead of the system's.

    Raises:
        FleetError: there is no such folder, or a device cannot reach such an address (``no-such-remote``).
    """
    text = str(remote)
    if text.startswith(("http://", "https://")):
        return HttpTransport(text, token, ca_file)
    if "://" in text:
        raise NoSuchRemote(
            f"A device cannot reach {text}.",
            context=None,
            hint="give a folder, or an http:// or https:// address; only the host can use other addresses.",
        )
    return FolderTransport(text)


@contextmanager
def connected(remote: str | Path | Transport, token: str, ca_file: str | Path | None) -> Iterator[Transport]:
    """Give the transport to a remote, and close it afterwards unless the caller had opened it."""
    if not isinstance(remote, str | Path):
        yield remote
        return
    with closing(open_remote(remote, token=token, ca_file=ca_file)) as transport:
        yield transport
