"""Fleets on Flower, in the environment that has it: cases on real messages, and a whole simulation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft_runtime import read_tensors
from tests.flower.engine import Engine, memory_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
PACKAGES = [ROOT, ROOT / "export", ROOT / "runtimes" / "python"]
METHODS = {
    "lora": edgepeft.Lora(rank=2, target_modules=("0",)),
    "bitfit": edgepeft.BitFit(),
    "sift": edgepeft.Sift(0.1),
}


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network's bundle for each kind of update; the other environment cannot prepare."""
    folder = tmp_path_factory.mktemp("flower")
    for name, method in METHODS.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
        edgepeft.prepare(model, torch.zeros(2, 16), method=method, out=folder / name)
    return folder


@pytest.mark.parametrize("part", ["messages", "client", "strategy", "rounds"])
def test_cases_of_the_other_environment(part: str, fleet_python: Path, bundles: Path) -> None:
    """Messages, devices, the server's strategy and its rounds, all with flwr itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(map(str, PACKAGES)),
        "EDGEPEFT_FLOWER_BUNDLES": str(bundles),
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    command = [fleet_python, "-m", "pytest", "-p", "no:cacheprovider", f"tests/flower/inside/test_{part}.py"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_rounds_outlive_a_superlink_that_is_killed(fleet_python: Path, tmp_path: Path) -> None:
    """Two nodes, each a process, without simulation. Flower's daemon loses its runs; ours resume."""
    data = read_tensors(GOLDEN / "data.safetensors").tensors
    for number in range(2):
        np.savez(tmp_path / f"{number}.npz", **{name: array[number::2] for name, array in data.items()})
    np.savez(tmp_path / "held_out.npz", **data)
    engine, bundle = Engine(fleet_python, tmp_path, PACKAGES), GOLDEN / "bundle"
    out = tmp_path / "rounds"
    config = {"bundle": bundle, "held-out": tmp_path / "held_out.npz", "out": out}
    own = [{"bundle": bundle, "texts": tmp_path / f"{number}.npz"} for number in range(2)]
    with engine.superlink() as superlink, engine.nodes(own) as nodes:
        printed = engine.run({**config, "rounds": 1})
        assert (out / "r000001" / "adapter.safetensors").is_file(), printed
        print(f"a node that waits: {', '.join(f'{memory_of(node):.0f}' for node in nodes)} MB")
        superlink.kill()
    first = (out / "r000001" / "adapter.safetensors").read_bytes()
    with engine.superlink(), engine.nodes(own):  # nodes of a SuperLink that forgot them do not come back by themselves
        printed = engine.run({**config, "rounds": 2})
    assert (out / "r000001" / "adapter.safetensors").read_bytes() == first
    report = json.loads((out / "r000002" / "adapter.json").read_text("utf-8"))
    assert len(report["updates"]) == 2 and report["held_out"]["accepted"], printed
    edgepeft.merge(bundle, out / "r000002" / "adapter.safetensors", to="onnx", out=tmp_path / "merged.onnx")


@pytest.mark.slow
def test_twenty_simulated_devices_learn(fleet_python: Path) -> None:
    """The example: accuracy rises round by round, and one device with a damaged file does not stop the others."""
    command = [sys.executable, "examples/flower_fleet.py", "--fleet-python", str(fleet_python)]
    path = os.pathsep.join(map(str, PACKAGES))
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"round \d +\d+\.\d % +\d\.\d+ +20 +1 ", done.stdout)) == 3, done.stdout
    assert "refused: cannot-read-data" in done.stdout
