"""Fine-tune MiniLM on twenty devices that Flower simulates.

The texts are distributed as in ``examples/fleet.py``: each device has a few topics. A 21st device has a damaged file.
The Flower app ``examples/flower`` (thirty lines) runs in an environment with edgepeft, flwr and ray but without
torch, on a temporary SuperLink, two devices at a time. It writes one adapter per round, which ``edgepeft merge``
accepts.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from device import packages
from docstrings import Example
from fleet_topics import encode, prepare, texts

from edgepeft_runtime import Trainer

DEVICES, ROUNDS, AT_A_TIME = 20, 3, 2

CONNECTION = """
[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
options.num-supernodes = {nodes}
options.backend.client-resources.num-cpus = 1
options.backend.client-resources.num-gpus = 0
options.backend.init-args.num-cpus = {at_a_time}
"""

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
"""Nothing is reported to anybody, and a device takes one core."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        work, start = Path(folder), time.monotonic()
        shares, test = texts(DEVICES)
        bundle = prepare(work)
        write(work, shares, test)
        environment(options.fleet_python)
        simulate(work, bundle, options.fleet_python)
        rounds = reports(work / "rounds")
        print_table(rounds)
        check(rounds, bundle, work)
        print(f"{time.monotonic() - start:.0f} s")


def write(work: Path, shares: list[list[Example]], test: dict[str, np.ndarray]) -> None:
    """A file of texts per device, the last of them cut short, and the held-out one."""
    (work / "texts").mkdir()
    for number, part in enumerate(shares):
        np.savez(work / "texts" / f"device-{number}.npz", allow_pickle=False, **encode(part))
    whole = (work / "texts" / "device-0.npz").read_bytes()
    (work / "texts" / f"device-{DEVICES}.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(work / "held_out.npz", allow_pickle=False, **test)
    sizes = sorted(len(part) for part in shares)
    print(f"{DEVICES} devices with {sizes[0]} to {sizes[-1]} texts, and one whose file is damaged")


def environment(python: Path) -> None:
    installed = packages(python)
    has_torch = "with" if "torch" in installed else "no"
    print(f"devices and server: an environment of {len(installed)} packages, {has_torch} torch")


def simulate(work: Path, bundle: Path, python: Path) -> None:
    """Run the app to its end on a SuperLink of its own."""
    config = {
        "bundle": bundle,
        "texts": work / "texts",
        "held-out": work / "held_out.npz",
        "out": work / "rounds",
    }
    settings = " ".join([*(f'{name}="{path}"' for name, path in config.items()), f"rounds={ROUNDS}"])
    with superlink(work / "flwr", python) as environment:
        app = Path(__file__).with_name("flower")
        command = [python.parent / "flwr", "run", app, "here", "--stream", "--run-config", settings]
        done = subprocess.run(
            [*map(str, command)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    (work / "flwr.log").write_text(done.stdout)
    assert done.returncode == 0, done.stdout
    last = work / "rounds" / f"r{ROUNDS:06}" / "adapter.json"
    assert last.is_file(), done.stdout


@contextmanager
def superlink(folder: Path, python: Path) -> Iterator[dict[str, str]]:
    """A SuperLink that simulates its nodes; gives the environment to reach it with."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config.toml").write_text(CONNECTION.format(port=port, nodes=DEVICES + 1, at_a_time=AT_A_TIME))
    path = os.pathsep.join([str(python.absolute().parent), os.environ["PATH"]])
    environment = {**os.environ, **QUIET, "FLWR_HOME": str(folder), "PATH": path}
    command = ["flower-superlink", "--insecure", "--simulation", "--disable-runtime-dependency-installation"]
    with (folder / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=log, stderr=log
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", folder / "superlink.log")
            yield environment
        finally:
            process.terminate()
            process.wait(60)


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    while True:
        try:
            with urllib.request.urlopen(health, timeout=1):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)


def reports(rounds: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(rounds.glob("r*/adapter.json"))]


def print_table(rounds: list[dict[str, Any]]) -> None:
    print("held out       accuracy   loss   updates  refused  merge error")
    before = rounds[0]["held_out"]["before"]
    print(f"  before       {100 * before['accuracy']:5.1f} %   {before['loss']:.3f}")
    for found in rounds:
        after, lost = found["held_out"]["after"], 100 * found["merge_error"]["relative"]
        counts = f"{len(found['updates']):7}  {len(found['refused']):7}"
        quality = f"{100 * after['accuracy']:5.1f} %   {after['loss']:.3f}"
        print(f"  round {found['round']}      {quality}  {counts}  {lost:9.2f} %")
    for refused in rounds[-1]["refused"]:
        print(f"  refused: {refused['code']}")


def check(rounds: list[dict[str, Any]], bundle: Path, work: Path) -> None:
    held_out = [rounds[0]["held_out"]["before"], *(found["held_out"]["after"] for found in rounds)]
    assert all(later["accuracy"] > earlier["accuracy"] for earlier, later in pairwise(held_out)), "it has to rise"
    assert all(len(found["updates"]) == DEVICES and len(found["refused"]) == 1 for found in rounds)
    with Trainer.open(bundle, adapter=work / "rounds" / f"r{ROUNDS:06}" / "adapter.safetensors") as trainer:
        again = trainer.evaluate(work / "held_out.npz", batch_size=32)
    assert again.accuracy is not None and abs(again.accuracy - held_out[-1]["accuracy"]) < 0.02


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleet-python", type=Path, default=Path(sys.executable), help="of an environment with flwr")
    return parser.parse_args()


if __name__ == "__main__":
    main()
