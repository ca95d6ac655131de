"""``edgepeft serve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from edgepeft.cli.options import workspace_option
from edgepeft.cli.paths import PATH
from edgepeft.cli.screen.verbosity import say

if TYPE_CHECKING:
    import socket
    import ssl

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command("serve")
@workspace_option
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8443, show_default=True, help="Port; 0 for any free one."
)
@click.option("--certificate", type=PATH, help="Certificate chain (PEM), for https.")
@click.option("--private-key", type=PATH, help="Private key of the certificate (PEM).")
@click.option(
    "--origin",
    "origins",
    multiple=True,
    callback=lambda _context, _option, origins: tuple(map(_origin, origins)),
    help="Origin of a web page that may deliver, such as https://page.example. May be given several times.",
)
def command(
    workspace: Path,
    address: str,
    port: int,
    certificate: Path | None,
    private_key: Path | None,
    origins: tuple[str, ...],
) -> None:
    """Serve the published rounds to devices, and accept their updates. `edgepeft pull --workspace` verifies them.

    Each device authenticates by the token that `edgepeft keys add` made. Ctrl-C stops the server.
    """
    if (certificate is None) != (private_key is None):
        raise click.UsageError("--certificate and --private-key require each other.")
    from edgepeft.sync import Keys, Workspace
    from edgepeft.sync.serving.app import SERVING, app
    from edgepeft.sync.serving.connections import ConnectionLimits, server
    from edgepeft_runtime.files.lock import locked_folder

    host = Workspace(workspace)
    campaign = Keys(host).host().campaign
    tls = None if certificate is None or private_key is None else _tls(certificate, private_key)
    with locked_folder(host.received, SERVING), _listening(address, port) as listening:
        if tls is None and address not in _LOOPBACK:
            say("note: without --certificate, tokens and updates travel unencrypted.", err=True)
        where = f"{'http' if tls is None else 'https'}://{address}:{listening.getsockname()[1]}"
        say(f"serving {campaign} on {where}", err=True)
        server(app(host, origins), ConnectionLimits.of_files(_files()), tls).run(sockets=[listening])


def _origin(text: str) -> str:
    """Return the origin of a page's address: what browsers send, without a path."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise click.BadParameter(f"{text!r} is no origin: write https://HOST or https://HOST:PORT.")
    return f"{parts.scheme}://{parts.netloc}"


def _files() -> int:
    """Raise the number of files that this process may open, as far as the system allows, and return it."""
    try:
        import resource
    except ImportError:  # on Windows
        return 1024
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if most == resource.RLIM_INFINITY else min(8192, most)
    if now == resource.RLIM_INFINITY or now >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    except (OSError, ValueError):  # some systems allow less than they report
        return now
    return wanted


def _listening(address: str, port: int) -> socket.socket:
    import socket

    from edgepeft.sync.errors import CannotListen

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=2048)
    except OSError as failure:
        raise CannotListen(
            f"Cannot listen on port {port} of {address}.",
            context=str(failure),
            hint="stop what uses the port, or choose another address or port.",
        ) from failure


def _tls(certificate: Path, private_key: Path) -> ssl.SSLContext:
    import ssl

    from edgepeft.sync.errors import BadCertificate

    missing = [str(path) for path in (certificate, private_key) if not path.is_file()]
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, private_key)
    except OSError as failure:  # of which ssl.SSLError is one
        raise BadCertificate(
            f"Cannot serve with the certificate {certificate} and the key {private_key}.",
            context=f"there is no file {' and no file '.join(missing)}" if missing else str(failure),
            hint="pass both as PEM, the key without a password.",
        ) from failure
    return context
