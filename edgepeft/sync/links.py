"""Links that give an identity to a web page on a phone (SPEC, section 8.6), as text and as a QR code."""

from __future__ import annotations

import base64
import io
from urllib.parse import urlencode, urlsplit

from edgepeft.sync.errors import BadLink
from edgepeft_runtime.errors import MissingExtra
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.reading import VERSION


def link_of(identity: Identity, page: str, server: str) -> str:
    """Return the link of a page with an identity in its fragment, which browsers send to no server.

    Args:
        identity: The device's.
        page: Address of the page that trains.
        server: Address of ``edgepeft serve``, as the phone reaches it.

    Raises:
        SyncError: An address is none, or a page that was loaded by https could not reach the server; or the device
            signs with Ed25519, which pages do not (``bad-link``).
    """
    for name, address in (("page", page), ("server", server)):
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise BadLink(
                f"{address!r} is no address of a {name}.", context=None, hint="write https://HOST or https://HOST/PATH."
            )
    if page.startswith("https:") and server.startswith("http:"):
        raise BadLink(
            "A page of https cannot send to a server of http.",
            context=f"page {page}, server {server}",
            hint="run `edgepeft serve` with --certificate and --private-key.",
        )
    if identity.algorithm != signatures.HMAC:
        raise BadLink(
            f"A page signs with {signatures.HMAC}, not with {identity.algorithm}.",
            context=f"device {identity.device}",
            hint="register it under another name without --algorithm.",
        )
    fields = {
        "edgepeft": str(VERSION),
        "server": server.rstrip("/"),
        "campaign": identity.campaign,
        "device": identity.device,
        "algorithm": identity.algorithm,
        "host_key": base64.urlsafe_b64encode(identity.host_key).decode().rstrip("="),
        "key": base64.urlsafe_b64encode(identity.key).decode().rstrip("="),
        "token": identity.token,
    }
    return f"{page}#{urlencode(fields, safe=':/')}"


def qr_code(text: str) -> str:
    """Return a QR code in characters of a terminal; raises ``MissingExtra`` without the package segno."""
    try:
        import segno
    except ImportError as failure:
        raise MissingExtra(
            "A QR code needs the package segno, which is not installed.",
            context=None,
            hint="pip install 'edgepeft[qr]'",
        ) from failure
    out = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(out, compact=True)
    return out.getvalue().rstrip("\n")
