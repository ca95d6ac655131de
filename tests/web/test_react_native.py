"""The app for React Native: typed, generated, bundled and compiled; and what the runtime computes in Hermes."""

from __future__ import annotations

import base64
import json
import plistlib
import sys
from typing import Any

import numpy as np
import pytest

from edgepeft.sync.links import link_of
from edgepeft_runtime import Bundle
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivery import Delivery
from edgepeft_runtime.fleet.identity import Identity
from tests.golden.make import BUNDLE, DATA
from tests.web.toolchain import ROOT, installed, run

pytestmark = pytest.mark.slow

APP = ROOT / "examples" / "react_native"
SEED, DIGEST = bytes(range(32)), "cd" * 32
SHARED = bytes(range(32, 64))


def test_it_is_formatted_and_typed() -> None:
    """Prettier has nothing to change; ``tsc --strict`` accepts the runtime with onnxruntime-react-native."""
    run("npm", "run", "lint", cwd=installed(APP))


def test_the_native_folders_are_generated() -> None:
    """Those of the template, under this app's name everywhere; iOS shares the app's documents."""
    run("node", "generate.mjs", cwd=installed(APP))
    files = [path for part in ("android", "ios") for path in (APP / part).rglob("*") if path.is_file()]
    assert {"gradlew", "settings.gradle", "Podfile", "project.pbxproj", "MainActivity.kt"} <= {p.name for p in files}
    named = [path for path in files if "helloworld" in path.read_bytes().lower().decode("latin1") + path.name.lower()]
    assert named == []
    plist = plistlib.loads((APP / "ios" / "Edgepeft" / "Info.plist").read_bytes())
    assert plist["UIFileSharingEnabled"] is True and plist["CFBundleDisplayName"] == "edgepeft"


def test_metro_bundles_it_and_hermes_compiles_it() -> None:
    run("node", "bundle.mjs", cwd=installed(APP))
    assert b"edgepeft-update" in (APP / "build" / "index.android.bundle").read_bytes()
    assert (APP / "build" / "index.android.bundle.hbc").read_bytes()[:4] == bytes.fromhex("c61fbc03")


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def script() -> str:
    """The script of ``test/engine.ts``, by Metro, with the golden bundle in it."""
    installed(APP)
    public = signatures.public_key(SEED)
    signed = signatures.sign(signatures.LATEST, DIGEST, signatures.ED25519, SEED)
    identity = Identity("birds", "phone-1", public, signatures.HMAC, SHARED, "token")
    golden = {
        "bundle": {str(p.relative_to(BUNDLE)): _text(p.read_bytes()) for p in BUNDLE.rglob("*") if p.is_file()},
        "data": _text(DATA.read_bytes()),
        "link": link_of(identity, "https://page.example/", "https://host.example:8443"),
        "signed": {"key": _text(public), "digest": DIGEST, "signature": signed.hex()},
    }
    (APP / "build").mkdir(exist_ok=True)
    (APP / "build" / "golden.json").write_text(json.dumps(golden), "utf-8")
    run("node", "bundle.mjs", "test/engine.ts", "test/metro.config.js", "build/test", cwd=APP)
    return "build/test/index.android.bundle"


@pytest.mark.skipif(sys.platform != "linux", reason="the VM's path is that of Linux")
def test_hermes_computes_what_node_and_python_do(script: str) -> None:
    """The same text from both engines; hash, order and signature are Python's."""
    hermes = run("node_modules/hermes-engine-cli/linux64-bin/hermes", script, cwd=APP)
    assert hermes == run("node", script, cwd=APP)
    found: dict[str, Any] = json.loads(hermes)
    assert found["base"] == Bundle.open(BUNDLE).manifest.base_sha256
    assert found["order"] == np.random.Generator(np.random.PCG64([3, 0])).permutation(20).tolist()
    assert found["ed25519"] == [True, False] and found["damaged"][0] == "tensor-file-header"
    assert found["base64"] == ["", "/g==", "/v8=", "/v94"]
    assert bytes(found["text"][0]) == "Grüße, 世界 🌍 \ufffd".encode() and found["text"][1].encode() == bytes(
        found["text"][0]
    )
    (sidecar,) = found["signed"]
    delivery = Delivery.from_bytes(sidecar.encode())
    delivery.check(signatures.HMAC, SHARED)
    assert (delivery.round, delivery.sequence, delivery.device) == (3, 8, "phone-1")
