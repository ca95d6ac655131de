"""How many devices a host serves, and how many updates it verifies: MiniLM with LoRA, over loopback, on this machine.

``edgepeft serve`` runs as a process; devices are threads of another, each with its own key: each reads the round and
its adapter, then delivers an update. Afterwards ``collect`` verifies what was received, and again a fleet of more
devices, so that it shows whether memory grows with their number. The server and its devices share the cores, so a host
of its own does better.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib import error, request

import numpy as np

import edgepeft
from benchmarks import machine
from benchmarks.cases import minilm
from edgepeft.sync import HostHome, Keys, publish
from edgepeft_runtime.bundle import Bundle
from edgepeft_runtime.fleet import rounds, signatures
from edgepeft_runtime.fleet.delivery import SIDECAR_SUFFIX, UPDATE_SUFFIX, Delivery
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.places import Place, open_place
from edgepeft_runtime.fleet.rounds import Round
from edgepeft_runtime.update import Update, write_update

OUT = Path(__file__).with_name("fleet_load.json")
COLLECT = """
import json, sys, time
from pathlib import Path
from edgepeft.sync import collect
start = time.perf_counter()
found = collect([sys.argv[2]], sys.argv[1])
seconds = time.perf_counter() - start
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps([len(found.accepted), len(found.refused), seconds, int(peak.split()[1]) / 1000]))
"""


@dataclass(frozen=True)
class Visitor:
    """A device that does all a real one does, but train."""

    identity: Identity
    number: Round
    update: bytes

    def visit(self, place: Place, folder: Path) -> float:
        """Read the round and its adapter, deliver an update; returns seconds."""
        start = time.perf_counter()
        for name in (rounds.HEAD_FILE, rounds.HEAD_SIGNATURES, f"{rounds.folder(1)}/{rounds.ROUND_FILE}"):
            assert place.read(name, rounds.MAX_ROUND_BYTES)
        partial = folder / f"{self.identity.device}.partial"
        place.fetch(f"{rounds.folder(1)}/{rounds.ADAPTER_FILE}", partial, self.number.adapter.bytes)
        partial.unlink()
        self.deliver(place)
        return time.perf_counter() - start

    def deliver(self, place: Place) -> None:
        """The update, then its sidecar."""
        digest, who = signatures.sha256(self.update), self.identity
        bare = Delivery(who.campaign, 1, who.device, 1, digest, len(self.update), who.algorithm)
        sidecar = bare.signed(who.key)
        place.put(f"{sidecar.folder}/{digest}{UPDATE_SUFFIX}", self.update)
        place.put(f"{sidecar.folder}/{digest}{SIDECAR_SUFFIX}", sidecar.to_bytes())


class Campaign:
    """A host with one round of the bundle, and devices."""

    def __init__(self, root: Path, bundle: Path) -> None:
        self.home, self.root = HostHome(root / "host"), root
        self._bundle = Bundle.open(bundle)
        Keys(self.home).create("load")
        self.number = publish(self._bundle, self.home)

    def visitor(self, name: int) -> Visitor:
        """A new device, with an update that is a little noise."""
        draw = np.random.default_rng(name)
        start = self._bundle.adapter()
        noisy = {key: value + 1e-3 * draw.normal(size=value.shape).astype(value.dtype) for key, value in start.items()}
        manifest = self._bundle.manifest
        update = Update(
            noisy, manifest.base_sha256, self.number.adapter.sha256, manifest.recipe, 100, 20, 1.0, 0.5, "load"
        )
        path = write_update(self.root / f"{name}.safetensors", update)
        content = path.read_bytes()
        path.unlink()
        identity = Keys(self.home).add(f"device-{name}", self.root / f"{name}.json")
        return Visitor(identity, self.number, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=200, help="that visit the server")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--stored", type=int, default=1000, help="updates in the larger fleet that is only collected")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = edgepeft.prepare(minilm.LORA.source(), method=minilm.LORA.method, out=root / "bundle").bundle
        served = Campaign(root / "served", bundle)
        visitors = [served.visitor(name) for name in range(asked.devices)]
        results = {
            "machine": machine.describe(),
            "update_bytes": len(visitors[0].update),
            "adapter_bytes": served.number.adapter.bytes,
            "serve": _served(served, visitors, asked.at_once),
            "collect": [_collected(served.home, served.home.received), _stored(root / "stored", bundle, asked.stored)],
        }
    OUT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: results[name] for name in ("update_bytes", "serve", "collect")}, indent=2))


def _served(campaign: Campaign, visitors: list[Visitor], at_once: int) -> dict[str, object]:
    """All devices visit the server, so many at a time."""
    command = [sys.executable, "-m", "edgepeft", "serve", "--home", campaign.home.path, "--port", "18444"]
    server = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    address = "http://127.0.0.1:18444"
    try:
        _wait(address)
        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            places = [open_place(address, token=visitor.identity.token) for visitor in visitors]
            times = sorted(
                pool.map(lambda pair: pair[0].visit(pair[1], campaign.root), zip(visitors, places, strict=True))
            )
        seconds = time.perf_counter() - start
        memory = _peak(server.pid)
    finally:
        server.terminate()
        server.wait()
    return {
        "devices": len(visitors),
        "at_once": at_once,
        "requests": 6 * len(visitors),
        "devices_per_second": round(len(visitors) / seconds, 1),
        "requests_per_second": round(6 * len(visitors) / seconds, 1),
        "median_ms": round(1000 * statistics.median(times)),
        "slowest_ms": round(1000 * times[-1]),
        "server_peak_mb": round(memory, 1),
    }


def _stored(root: Path, bundle: Path, count: int) -> dict[str, object]:
    """The updates of more devices, straight into a folder, and collected from there."""
    campaign = Campaign(root, bundle)
    (root / "place").mkdir()
    place = open_place(root / "place")
    for name in range(count):
        campaign.visitor(name).deliver(place)
    return _collected(campaign.home, root / "place")


def _collected(home: HostHome, place: Path) -> dict[str, object]:
    """``collect`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, str(home.path), str(place)], capture_output=True, text=True, check=True
    )
    accepted, refused, seconds, memory = json.loads(done.stdout)
    assert refused == 0
    return {
        "updates": accepted,
        "updates_per_second": round(accepted / seconds, 1),
        "peak_mb": round(memory, 1),
    }


def _wait(address: str) -> None:
    for _ in range(400):
        try:
            request.urlopen(address, timeout=1)
        except error.HTTPError:
            return  # it answers, if only that nobody may ask without a token
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(address)


def _peak(process: int) -> float:
    """The most memory a process has had, in MB."""
    lines = Path(f"/proc/{process}/status").read_text("ascii", "replace").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
