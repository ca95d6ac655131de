"""What runs here runs on a device: in an environment without torch, and on the oldest onnxruntime that is supported."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft_runtime import Trainer, read_tensors

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
PACKAGES = [ROOT, ROOT / "export", ROOT / "runtimes" / "python"]

EXPECTED = json.loads((GOLDEN / "expected.json").read_text("utf-8"))

STEPS = """
import json, sys
import numpy, onnxruntime

libraries = {name.partition(".")[0] for name in sys.modules}
from pathlib import Path
from edgepeft_runtime import Trainer

bundle, folder = sys.argv[1:]
batches = [dict(numpy.load(path)) for path in sorted(Path(folder).glob("*.npz"))]
with Trainer.open(bundle, state=Path(folder) / "state") as trainer:
    losses = [trainer.step(batch) for batch in batches]
    evaluation = trainer.evaluate(batches[0])
    trainer.predict(batches[0])
    trainer.save()
    trainer.save_update(Path(folder) / "update.safetensors")
loaded = {name.partition(".")[0] for name in sys.modules} - libraries - set(sys.stdlib_module_names)
print(json.dumps({"losses": losses, "loaded": sorted(loaded), "version": onnxruntime.__version__}))
"""
"""A step per ``*.npz`` in a folder, and everything else that a device does."""


def _interpreter(variable: str, holds: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the interpreter of an environment with {holds}.")
    path = Path(value) if Path(value).is_absolute() else ROOT / value
    assert path.is_file(), f"{variable} names {path}, where nothing is"
    return path


@pytest.fixture(scope="module")
def device() -> Path:
    """The interpreter of an environment without torch, into which edgepeft is installed as on a device."""
    return _interpreter("EDGEPEFT_DEVICE_PYTHON", "numpy, onnxruntime, tokenizers, click and edgepeft without extras")


@pytest.fixture(scope="module")
def oldest() -> Path:
    """The interpreter of an environment with the oldest onnxruntime."""
    return _interpreter("EDGEPEFT_OLDEST_PYTHON", "numpy and onnxruntime 1.19")


def _run(command: Iterable[str | Path], folder: Path, path: Iterable[Path] = ()) -> str:
    """Run in ``folder`` without this process's path; return the output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGEPEFT"))}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _steps(
    python: Path, bundle: Path, batches: Iterable[Mapping[str, Any]], folder: Path, **where: Any
) -> dict[str, Any]:
    for number, batch in enumerate(batches):
        np.savez(folder / f"{number:03}.npz", **batch)
    printed = _run([python, "-c", STEPS, bundle, folder], folder, **where)
    result: dict[str, Any] = json.loads(printed)
    return result


def _golden_batches() -> list[dict[str, np.ndarray]]:
    data = read_tensors(GOLDEN / "data.safetensors").tensors
    return [{name: array[start:stop] for name, array in data.items()} for start, stop in EXPECTED["batches"]]


# A device


def test_the_device_has_no_host_library(device: Path, tmp_path: Path) -> None:
    """torch and all else that preparing needs are absent, so none of it can be needed."""
    names = ["torch", "onnx", "onnx_ir", "onnxscript", "peft", "transformers", "safetensors"]
    script = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert _run([device, "-c", script], tmp_path).strip() == "[]"


def test_the_golden_bundle_trains_on_a_device(device: Path, tmp_path: Path) -> None:
    """The losses are those of PyTorch, and apart from numpy and onnxruntime only our own package is loaded."""
    result = _steps(device, GOLDEN / "bundle", _golden_batches(), tmp_path)
    assert result["losses"] == pytest.approx(EXPECTED["losses"], rel=EXPECTED["relative_tolerance"])
    assert result["loaded"] == ["edgepeft_runtime"]


def test_the_command_trains_on_a_device(device: Path, tmp_path: Path) -> None:
    """``edgepeft train`` and ``evaluate`` work there, with the results of the library here."""
    data = dict(read_tensors(GOLDEN / "data.safetensors").tensors)
    np.savez(tmp_path / "data.npz", **data)
    command = [device, "-m", "edgepeft"]
    options = ["--data", "data.npz", "--batch-size", "8"]
    train = ["train", GOLDEN / "bundle", *options, "--epochs", "2", "--state", "state", "--update", "update"]
    _run([*command, *train], tmp_path)
    printed = _run([*command, "evaluate", GOLDEN / "bundle", *options, "--adapter", "update", "--json"], tmp_path)
    with Trainer.open(GOLDEN / "bundle") as trainer:
        trainer.fit(data, epochs=2, batch_size=8)
        here = trainer.evaluate(data, batch_size=8)
    assert json.loads(printed)["loss"] == pytest.approx(here.loss, rel=1e-4)
    assert json.loads(printed)["examples"] == here.examples


def test_a_device_takes_part_in_a_round(device: Path, tmp_path: Path) -> None:
    """It checks the host's signature, trains from the round's adapter and signs its update, with no library to sign."""
    from edgepeft.sync import Keys, Workspace, collect, publish

    host = Workspace(tmp_path / "host")
    Keys(host).create("golden")
    Keys(host).add("pi-1", tmp_path / "pi-1.json")
    made = publish(GOLDEN / "bundle", host, [tmp_path / "remote"], with_bundle=True)
    np.savez(tmp_path / "data.npz", **read_tensors(GOLDEN / "data.safetensors").tensors)
    assert _run([device, "-c", "import importlib.util as u; print(u.find_spec('cryptography'))"], tmp_path) == "None\n"
    command = [device, "-m", "edgepeft"]
    join = ["join", "remote", "--device", "fleet", "--identity", "pi-1.json"]
    assert "switched to round 1" in _run([*command, *join], tmp_path)
    train = ["train", "--data", "data.npz", "--device", "fleet", "--epochs", "1", "--update", "update"]
    _run([*command, *train], tmp_path)
    assert "delivered: update 1 of pi-1" in _run(
        [*command, "deliver", "update", "remote", "--device", "fleet"], tmp_path
    )
    found = collect([tmp_path / "remote"], host)
    assert [(entry.device, entry.round) for entry in found.accepted] == [("pi-1", made.round)]


# The oldest onnxruntime


def test_the_golden_bundle_trains_on_the_oldest_onnxruntime(oldest: Path, tmp_path: Path) -> None:
    """The release that manifests name as their minimum reproduces the losses of PyTorch."""
    result = _steps(oldest, GOLDEN / "bundle", _golden_batches(), tmp_path, path=PACKAGES)
    assert result["version"].startswith("1.19.")
    assert result["losses"] == pytest.approx(EXPECTED["losses"], rel=EXPECTED["relative_tolerance"])


@pytest.mark.parametrize("name", ["bert", "cnn", "llama"])
def test_networks_train_on_the_oldest_onnxruntime(name: str, oldest: Path, tmp_path: Path) -> None:
    """A transformer and a convolutional network, freshly prepared, have the same losses as here."""
    import edgepeft
    from edgepeft.methods import Full
    from tests.support.networks import NETWORKS, to_numpy

    network = NETWORKS[name]
    bundle = tmp_path / "bundle"
    edgepeft.prepare(network.model(), network.example(), method=Full(), loss=network.loss, out=bundle)
    batches = [to_numpy(inputs, labels) for inputs, labels in network.batches(4)]
    with Trainer.open(bundle) as trainer:
        here = [trainer.step(batch) for batch in batches]
    folder = tmp_path / "device"
    folder.mkdir()
    result = _steps(oldest, bundle, batches, folder, path=PACKAGES)
    assert result["losses"] == pytest.approx(here, rel=1e-4)
