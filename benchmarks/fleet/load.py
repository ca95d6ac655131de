"""Measure how many devices a host serves and how many updates it verifies: MiniLM with LoRA, over loopback.

``edgepeft serve`` runs as a process with its files in memory (tmpfs) and on disk. The devices are threads of another
process, each with its own key; each reads the round and its adapter and delivers an update. They use either bare
sockets, which shows the server's limit, or the package's client. The server's time is broken down by part. Afterwards
``collect`` verifies the received updates, of this fleet and of a larger one, to show whether memory grows with the
number of devices. The server and its devices use the same cores, so a dedicated host is faster.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.fleet.visits import REQUESTS, Visitor
from edgepeft.sync import Keys, Workspace, publish
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.fleet.transports.remote import open_remote
from edgepeft_runtime.train.update import Update, write_update

OUT = Path(__file__).parents[1] / "fleet_load.json"
DEVICES, STORED = 150, 600
MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30
Visit = Callable[[Visitor, int, Path], None]


def _bare(visitor: Visitor, port: int, _folder: Path) -> None:
    visitor.visit_bare(port)


def _ours(visitor: Visitor, port: int, folder: Path) -> None:
    visitor.visit(f"http://127.0.0.1:{port}", folder)


VISITS: dict[str, tuple[int, Visit]] = {
    "bare sockets, 16 at once": (16, _bare),
    "our client, one process, one at a time": (1, _ours),
    "our client, one process, 16 at once": (16, _ours),
}
COLLECT = """
import json, sys, time
from edgepeft.sync import collect
from edgepeft_runtime.train.memory.peak import peak_memory
start = time.perf_counter()
found = collect([sys.argv[2]], sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps([len(found.accepted), len(found.refused), seconds, peak_memory() / 1e6]))
"""


class Campaign:
    """A host with one round of the bundle, and devices."""

    def __init__(self, root: Path, bundle: Bundle) -> None:
        self.workspace, self.root, self.bundle = Workspace(root / "host"), root, bundle
        Keys(self.workspace).create("load")
        self.round = publish(bundle, self.workspace)

    def visitor(self, name: int) -> Visitor:
        """Register a new device, with an update of small noise."""
        draw, start = np.random.default_rng(name), self.bundle.adapter()
        noisy = {key: value + 1e-3 * draw.normal(size=value.shape).astype(value.dtype) for key, value in start.items()}
        manifest = self.bundle.manifest
        update = Update(
            noisy, manifest.base_sha256, self.round.adapter.sha256, manifest.provenance, 100, 20, 1.0, 0.5, "load"
        )
        path = write_update(self.root / f"{name}.safetensors", update)
        content = path.read_bytes()
        path.unlink()
        return Visitor(Keys(self.workspace).add(f"device-{name}", self.root / f"{name}.json"), self.round, content)


def memory() -> Path | None:
    """A folder in memory with enough space for all files, or ``None`` for the system's temporary folder."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else None


def measure(bundle: Bundle, disk: Path) -> None:
    """Run all measurements and write ``fleet_load.json``."""
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "load before": round(os.getloadavg()[0], 1),
        "requests per device": REQUESTS,
    }
    for store, folder in (("tmpfs", memory()), ("disk", disk)):
        if folder is not None:
            with tempfile.TemporaryDirectory(dir=folder) as root:
                results[store] = {"file system": _file_system(folder), **_stored(Path(root), bundle)}
    OUT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _stored(root: Path, bundle: Bundle) -> dict[str, Any]:
    """All figures with the workspace below ``root``."""
    rows: dict[str, Any] = {}
    for number, (name, (at_once, visit)) in enumerate(VISITS.items()):
        (root / str(number)).mkdir()
        campaign = Campaign(root / str(number), bundle)
        rows[name] = served(campaign, at_once, visit)
        print(name, json.dumps(rows[name]), flush=True)
    rows["collect"] = [collected(campaign.workspace, campaign.workspace.received), _more(root / "more", bundle)]
    print("collect", json.dumps(rows["collect"]), flush=True)
    return rows


def served(campaign: Campaign, at_once: int, visit: Visit) -> dict[str, Any]:
    """Let all devices visit the server, ``at_once`` at a time."""
    visitors, out = [campaign.visitor(name) for name in range(DEVICES)], campaign.root / "server.json"
    command = [sys.executable, "-m", "benchmarks.fleet.server", str(campaign.workspace.path), str(out)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())

        def one(visitor: Visitor) -> float:
            start = time.perf_counter()
            visit(visitor, port, campaign.root)
            return time.perf_counter() - start

        start, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(at_once) as pool:
            times = sorted(pool.map(one, visitors))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        memory = _peak(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    return {
        "devices per second": round(DEVICES / seconds, 1),
        "median ms": round(1000 * statistics.median(times), 1),
        "slowest ms": round(1000 * times[-1], 1),
        "device CPU ms": round(1000 * cpu / DEVICES, 2),
        "server ms per device": _parts(json.loads(out.read_text())),
        "server peak MB": round(memory, 1),
        "update bytes": len(visitors[0].update),
    }


def _parts(timings: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of the server per device, by part; ``fsync`` waits for the disk, without CPU."""
    parts = dict(timings["parts"])
    parts["rest"] = timings["cpu"] - sum(spent for part, spent in parts.items() if "clock" not in part)
    parts["CPU in all"] = timings["cpu"]
    return {part: round(1000 * spent / DEVICES, 2) for part, spent in parts.items()}


def _more(root: Path, bundle: Bundle) -> dict[str, object]:
    """Write the updates of more devices into a folder, and collect them."""
    (root / "remote").mkdir(parents=True)
    campaign = Campaign(root, bundle)
    remote = open_remote(root / "remote")
    for name in range(STORED):
        campaign.visitor(name).deliver(remote)
    return collected(campaign.workspace, root / "remote")


def collected(workspace: Workspace, remote: Path) -> dict[str, object]:
    """``collect`` in a process of its own."""
    command = [sys.executable, "-c", COLLECT, str(workspace.path), str(remote)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    accepted, refused, seconds, memory = json.loads(done.stdout)
    assert refused == 0
    return {
        "updates": accepted,
        "updates per second": round(accepted / seconds, 1),
        "peak MB": round(memory, 1),
    }


def _peak(process: int) -> float:
    """Return the peak memory of a process, in MB."""
    lines = Path(f"/proc/{process}/status").read_text("ascii", "replace").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def _file_system(folder: Path) -> str:
    """The kind of file system a folder is on."""
    done = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True)
    return done.stdout.strip()
