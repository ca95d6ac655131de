"""The TypeScript runtime in Node: its own tests, and results that equal the Python runtime's digit for digit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors

import edgepeft
from edgepeft.methods import Sift
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime import Bundle, Trainer, check_update, read_tensors, read_update, write_tensors
from tests.golden.make import BUNDLE, DATA, EXPECTED
from tests.support.bundles import Trained
from tests.support.networks import NETWORKS, Network, to_numpy
from tests.web.toolchain import drive, run, runtime

FIT = {"epochs": 3, "batch_size": 7, "accumulate": 2, "schedule": "cosine", "warmup": 2, "save_every": 2}
TRAIN, HELD_OUT = (0, 30), (30, 40)
SEED = 3
BERT, CNN = NETWORKS["bert"], NETWORKS["cnn"]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    runtime()


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    return dict(read_tensors(DATA).tensors)


def _cut(data: dict[str, np.ndarray], rows: tuple[int, int]) -> dict[str, np.ndarray]:
    return {name: array[slice(*rows)] for name, array in data.items()}


def _fit_plan(**more: Any) -> dict[str, Any]:
    """The call of ``fit`` as ``FIT`` has it, on the golden data."""
    camel = {re.sub("_(.)", lambda found: found[1].upper(), name): value for name, value in FIT.items()}
    plan = {"bundle": BUNDLE, "data": DATA, "fit": camel, "train": TRAIN, "validate": HELD_OUT, "seed": SEED}
    return plan | more


def _fit(trainer: Trainer, data: dict[str, np.ndarray], stop: int | None = None) -> list[float]:
    """The same in Python; ``stop`` ends it as a power cut would, after so many steps."""
    losses: list[float] = []

    def note(progress: Any) -> None:
        losses.append(progress.loss)
        if progress.step == stop:
            raise RuntimeError("the power went")

    held_out = _cut(data, HELD_OUT)
    try:
        trainer.fit(_cut(data, TRAIN), validate=held_out, callbacks=[note], **FIT)  # type: ignore[arg-type]
    except RuntimeError:
        assert stop is not None
    return losses


def _assert_same_parameters(ours: Path, theirs: Path) -> None:
    found, wanted = read_tensors(ours, require_digest=True).tensors, read_tensors(theirs, require_digest=True).tensors
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_it_is_formatted_and_typed() -> None:
    """Prettier has nothing to change, and ``tsc --strict`` nothing to say, about the package and its tests."""
    run("npm", "run", "lint")


def test_its_own_tests_pass() -> None:
    """Golden losses on native code and WebAssembly, resuming, refusing: the package's ``npm test``."""
    assert "# fail 0" in run("npm", "test")


def test_the_lock_file_names_no_registry() -> None:
    """Packages come from the registry that npm is configured for."""
    lock = (runtime() / "package-lock.json").read_text("utf-8")
    assert '"integrity"' in lock and '"resolved"' not in lock


def test_the_host_accepts_its_update(data: dict[str, np.ndarray], tmp_path: Path) -> None:
    """After ten golden steps: Python's parameters and figures; it is pulled, and merged it gives Node's outputs."""
    expected = json.loads(EXPECTED.read_text("utf-8"))
    (tmp_path / "inbox").mkdir()
    update = tmp_path / "inbox" / "node.safetensors"
    plan = {"bundle": BUNDLE, "data": DATA, "steps": expected["batches"], "predict": (0, 4), "update": update}
    result = drive(plan, tmp_path)
    assert result["losses"] == pytest.approx(expected["losses"], rel=expected["relative_tolerance"])
    with Trainer.open(BUNDLE) as trainer:
        for rows in expected["batches"]:
            trainer.step(_cut(data, rows))
        _assert_same_parameters(update, trainer.save_update(tmp_path / "python.safetensors"))
    bundle, ours, theirs = Bundle.open(BUNDLE), read_update(update), read_update(tmp_path / "python.safetensors")
    check_update(ours, bundle)
    for field in ("base_sha256", "adapter_sha256", "provenance", "num_examples", "steps"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert (ours.loss_before, ours.loss_after) == pytest.approx((theirs.loss_before, theirs.loss_after), rel=1e-5)
    assert ours.runtime.startswith("edgepeft-runtime ")
    pulled = edgepeft.pull([tmp_path / "inbox"], tmp_path / "updates", BUNDLE)
    assert len(pulled.accepted) == 1 and not pulled.refused
    merged = edgepeft.merge(BUNDLE, pulled.accepted[0].path, to="onnx", out=tmp_path / "merged.onnx")
    (logits,) = onnxruntime.InferenceSession(merged).run(None, {"image": data["image"][:4]})
    np.testing.assert_allclose(logits.reshape(-1), result["outputs"]["output"]["data"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ort", ["node", "wasm"])
def test_a_fit_repeats_across_runtimes(ort: str, data: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Same seed, same order, same schedule, same best epoch: every loss and the update are Python's."""
    with Trainer.open(BUNDLE, seed=SEED) as trainer:
        losses = _fit(trainer, data)
        history = trainer.history
        trainer.save_update(tmp_path / "python.safetensors")
    result = drive(_fit_plan(update=tmp_path / "node.safetensors"), tmp_path, ort)
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    assert [line["heldOutLoss"] for line in result["history"]] == pytest.approx(
        [record.held_out_loss for record in history], rel=1e-5
    )
    assert [line["heldOutAccuracy"] for line in result["history"]] == [record.held_out_accuracy for record in history]
    _assert_same_parameters(tmp_path / "node.safetensors", tmp_path / "python.safetensors")


@pytest.mark.parametrize("first", ["python", "node"])
def test_a_run_resumes_in_the_other_runtime(first: str, data: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Begun in one, cut off at step 5, ended in the other from the checkpoint of step 4: the uninterrupted losses."""
    with Trainer.open(BUNDLE, seed=SEED) as trainer:
        whole = _fit(trainer, data)
    state = tmp_path / "state"
    if first == "python":
        with Trainer.open(BUNDLE, seed=SEED, state=state) as trainer:
            _fit(trainer, data, stop=5)
        rest = drive(_fit_plan(state=state), tmp_path)["losses"]
    else:
        drive(_fit_plan(state=state, die=5), tmp_path)
        with Trainer.open(BUNDLE, seed=SEED, state=state) as trainer:
            assert trainer.steps == 4
            rest = _fit(trainer, data)
    assert rest == pytest.approx(whole[4:], rel=1e-5)


def _prepared(network: Network, folder: Path, **settings: Any) -> Path:
    settings.setdefault("optimizer", AdamW(lr=2e-3))
    return edgepeft.prepare(
        network.model(), network.example(), loss=network.loss, out=folder / "bundle", **settings
    ).bundle


def _assert_same_steps(bundle: Path, batch: dict[str, np.ndarray], folder: Path, rel: float = 1e-4) -> None:
    """Four steps on parts of one batch, evaluation and outputs: as in Python."""
    write_tensors(folder / "data.safetensors", batch)
    count = len(next(iter(batch.values())))
    steps = [(0, count), (0, (count + 1) // 2), (count // 2, count), (0, count)]
    plan = {"bundle": bundle, "data": folder / "data.safetensors", "steps": steps, "evaluate": (0, count)}
    result = drive(plan | {"predict": (0, count), "update": folder / "node.safetensors"}, folder)
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step(_cut(batch, rows)) for rows in steps]
        evaluation = trainer.evaluate(batch)
        outputs = trainer.predict(batch)
        parameters = trainer.parameters()
    assert result["losses"] == pytest.approx(losses, rel=rel)
    assert result["evaluation"]["loss"] == pytest.approx(evaluation.loss, rel=rel)
    assert result["evaluation"]["accuracy"] == evaluation.accuracy
    for name, array in outputs.items():
        assert result["outputs"][name]["dims"] == list(array.shape)
        np.testing.assert_allclose(result["outputs"][name]["data"], array.reshape(-1), rtol=1e-3, atol=1e-4)
    found = read_tensors(folder / "node.safetensors").tensors
    for spec in Bundle.open(bundle).manifest.parameters:
        if spec.role == "indices":
            np.testing.assert_array_equal(found[spec.name], parameters[spec.name])


@pytest.mark.slow
@pytest.mark.parametrize("network", [BERT, CNN], ids=["bert", "cnn"])
def test_it_picks_the_elements_that_python_picks(network: Network, tmp_path: Path) -> None:
    """SIFT: the same indices by the first gradient, the same losses after it."""
    bundle = _prepared(network, tmp_path, method=Sift(rate=0.02))
    _assert_same_steps(bundle, to_numpy(*next(network.batches(1))), tmp_path)


def test_picked_indices_travel_as_the_same_bytes(tmp_path: Path) -> None:
    """SIFT: an update of Node's and one of Python's contain the same coded indices, and Node starts from either."""
    bundle = _prepared(CNN, tmp_path, method=Sift(rate=0.1, mask="random"))
    batch = to_numpy(*next(CNN.batches(1)))
    write_tensors(tmp_path / "data.safetensors", batch)
    plan = {"bundle": bundle, "data": tmp_path / "data.safetensors", "predict": (0, 2)}
    drive(plan | {"update": tmp_path / "node.safetensors"}, tmp_path)
    with Trainer.open(bundle) as trainer:
        trainer.save_update(tmp_path / "untrained.safetensors")
        assert _stored(tmp_path / "node.safetensors") == _stored(tmp_path / "untrained.safetensors")
        trainer.step(batch)
        trainer.save_update(tmp_path / "python.safetensors")
        expected = trainer.predict(_cut(batch, (0, 2)))
    again = drive(plan | {"adapter": tmp_path / "python.safetensors", "update": tmp_path / "again"}, tmp_path)
    assert _stored(tmp_path / "again") == _stored(tmp_path / "python.safetensors")
    for name, array in expected.items():
        np.testing.assert_allclose(again["outputs"][name]["data"], array.reshape(-1), rtol=1e-4, atol=1e-5)


def _stored(path: Path) -> dict[str, Any]:
    """What another reader finds in an update that codes indices: its bytes by name, and which of them are coded."""
    with safetensors.safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        coded = file.metadata()["delta_indices"]
    assert {name for name, array in arrays.items() if array.dtype == np.uint8} == set(json.loads(coded))
    return {"delta_indices": coded} | {name: (str(array.dtype), array.tobytes()) for name, array in arrays.items()}


@pytest.mark.slow
def test_int8_losses_are_pythons(tmp_path: Path) -> None:
    """A quantized base: integer matmuls of ONNX Runtime's native code give the same losses in Node and in Python."""
    bundle = _prepared(BERT, tmp_path, method=edgepeft.Lora(rank=4, target_modules=("query", "value")), compute="int8")
    _assert_same_steps(bundle, to_numpy(*next(BERT.batches(1))), tmp_path)


@pytest.mark.slow
def test_a_language_model_trains_and_is_scored_as_in_python(causal: Trained, tmp_path: Path) -> None:
    """Its labels are the ids; position t answers label t + 1."""
    ids = np.random.default_rng(1).integers(0, 100, (4, 6))
    labels = ids.copy()
    labels[1, 3:] = -100
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}
    _assert_same_steps(causal.bundle, batch, tmp_path)


@pytest.mark.slow
def test_a_regression_trains_as_in_python(regression: Trained, tmp_path: Path) -> None:
    """Labels are no classes, so there is no accuracy."""
    draw = np.random.default_rng(2)
    batch = {"input": draw.normal(size=(5, 3)).astype("f4"), "labels": draw.normal(size=(5, 2)).astype("f4")}
    _assert_same_steps(regression.bundle, batch, tmp_path)


def test_a_damaged_update_of_its_own_is_refused_by_the_host(tmp_path: Path) -> None:
    """One bit changed on the way, and ``edgepeft pull`` leaves it where it is."""
    (tmp_path / "inbox").mkdir()
    update = tmp_path / "inbox" / "node.safetensors"
    drive({"bundle": BUNDLE, "data": DATA, "steps": [(0, 4)], "update": update}, tmp_path)
    shutil.copy(update, tmp_path / "whole.safetensors")
    raw = bytearray(update.read_bytes())
    raw[-3] ^= 16
    update.write_bytes(raw)
    pulled = edgepeft.pull([tmp_path / "inbox"], tmp_path / "updates", BUNDLE)
    assert [refused.code for refused in pulled.refused] == ["wrong-digest"]
