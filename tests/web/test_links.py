"""Links that give an identity to a page; and what the server allows to pages of other origins."""

from __future__ import annotations

import http.client
import io
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner

from edgepeft.cli.app import app
from edgepeft.sync import Keys
from edgepeft.sync.links import link_of, qr_code
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.identity import Identity
from tests.fleet.fleets import Fleet, code_of
from tests.fleet.servers import serving
from tests.support.tiny_bundle import build

IDENTITY = Identity("birds", "phone-1", bytes(32), signatures.HMAC, bytes(range(32)), "a-token")
PAGE, SERVER = "https://page.example/", "https://192.168.1.20:8443"


def test_a_link_has_the_identity_behind_the_page() -> None:
    """In the fragment, which browsers keep to themselves; `test_delivery.py` reads it in TypeScript."""
    parts = urlsplit(link_of(IDENTITY, PAGE, f"{SERVER}/"))
    fields = parse_qs(parts.fragment)
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == PAGE and not parts.query
    assert (fields["server"], fields["device"], fields["token"]) == ([SERVER], ["phone-1"], ["a-token"])
    assert len(fields["key"][0]) == 43


@pytest.mark.parametrize(
    ("page", "server", "algorithm"),
    [
        ("page.example", SERVER, signatures.HMAC),
        (f"{PAGE}#there", SERVER, signatures.HMAC),
        (PAGE, "192.168.1.20:8443", signatures.HMAC),
        (PAGE, "http://192.168.1.20:8443", signatures.HMAC),
        (PAGE, SERVER, signatures.ED25519),
    ],
)
def test_a_link_that_could_not_work_is_refused(page: str, server: str, algorithm: str) -> None:
    """No addresses, an https page with an http server, and a signature that pages do not write."""
    assert code_of(link_of, replace(IDENTITY, algorithm=algorithm), page, server) == "bad-link"


def test_a_qr_code_is_one_of_the_link() -> None:
    """Its modules are those of the library's own matrix of the text."""
    segno = pytest.importorskip("segno")
    text = link_of(IDENTITY, PAGE, SERVER)
    out = io.StringIO()
    segno.make(text, error="l").terminal(out, compact=True)
    assert qr_code(text) == out.getvalue().rstrip("\n") and len(qr_code(text).splitlines()) < 50


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A host that has published nothing yet."""
    return Fleet.begin(tmp_path, build(tmp_path / "bundle"))


def test_the_command_prints_the_link(fleet: Fleet, tmp_path: Path) -> None:
    identity = Keys(fleet.host).add("phone-1", tmp_path / "phone-1.json")
    arguments = ["keys", "link", str(tmp_path / "phone-1.json"), "--page", PAGE, "--server", SERVER]
    found = CliRunner().invoke(app, arguments)
    assert (found.exit_code, found.output.strip()) == (0, link_of(identity, PAGE, SERVER))


def _ask(port: int, method: str, origin: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, "/latest.json", headers={"Origin": origin, **headers})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_pages_of_allowed_origins_may_ask(fleet: Fleet) -> None:
    """A browser's first question needs no token; what follows does; a page of another origin learns nothing."""
    identity = Keys(fleet.host).add("phone-1", fleet.root / "phone-1.json")
    fleet.publish()
    asks = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed = "Access-Control-Allow-Origin"
    with serving(fleet.host, origins=["https://page.example"]) as port:
        preflight = _ask(port, "OPTIONS", "https://page.example", **asks)
        assert (preflight.status, preflight.getheader(allowed)) == (200, "https://page.example")
        assert _ask(port, "OPTIONS", "https://other.example", **asks).getheader(allowed) is None
        refused = _ask(port, "GET", "https://page.example")
        assert (refused.status, refused.getheader(allowed)) == (401, "https://page.example")
        read = _ask(port, "GET", "https://page.example", Authorization=f"Bearer {identity.token}")
        assert (read.status, read.getheader(allowed)) == (200, "https://page.example")
    with serving(fleet.host) as port:
        assert _ask(port, "OPTIONS", "https://page.example", **asks).status == 405
