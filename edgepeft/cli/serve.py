"""``edgepeft serve``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import PATH, host_home_option

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command("serve")
@host_home_option
@click.option("--address", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0: everywhere.")
@click.option("--port", type=click.IntRange(0, 65535), default=8443, show_default=True, help="0 takes a free one.")
@click.option("--certificate", type=PATH, help="Certificate chain (PEM), for https.")
@click.option("--private-key", type=PATH, help="Its private key (PEM).")
def command(home: Path, address: str, port: int, certificate: Path | None, private_key: Path | None) -> None:
    """Give the published rounds to devices, and take their updates. `edgepeft pull --home` judges what came in.

    Each device shows its token, which `edgepeft keys add` made. Ctrl-C ends it.
    """
    if (certificate is None) != (private_key is None):
        raise click.UsageError("--certificate and --private-key go together.")
    import uvicorn

    from edgepeft.sync import HostHome, Keys
    from edgepeft.sync.serving import app

    host = HostHome(home)
    campaign = Keys(host).host().campaign
    if certificate is not None and private_key is not None:
        _check_certificate(certificate, private_key)
    if certificate is None and address not in _LOOPBACK:
        click.echo("note: without --certificate, tokens and updates travel unencrypted.", err=True)
    click.echo(f"serving {campaign} on {'http' if certificate is None else 'https'}://{address}:{port}", err=True)
    uvicorn.run(
        app(host),
        host=address,
        port=port,
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
        log_level="warning",
        server_header=False,
        limit_concurrency=512,
        timeout_keep_alive=15,
    )


def _check_certificate(certificate: Path, private_key: Path) -> None:
    import ssl

    from edgepeft.sync import SyncError

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, private_key)
    except OSError as failure:  # of which ssl.SSLError is one
        raise SyncError(
            "bad-certificate",
            f"Cannot serve with the certificate {certificate} and the key {private_key}.",
            context=str(failure),
            hint="give both as PEM, the key without a password.",
        ) from failure
