"""The benchmarks' pieces work at tiny sizes; no test looks at a time."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import __main__ as bench
from benchmarks import machine
from benchmarks.accuracy import torch_side
from benchmarks.accuracy.device_side import main as run_on_device
from benchmarks.accuracy.plan import CLIP, Plan, cut
from benchmarks.accuracy.table import summary, text
from benchmarks.cases import MEASURED, load
from benchmarks.fleet import __main__ as fleet
from benchmarks.fleet import load as fleet_load
from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels import rows
from benchmarks.peers import rivals
from benchmarks.peers.official_forward import write_forward
from benchmarks.profile import profile
from benchmarks.results import losses_go, ratios_of, row_of, targets_of
from benchmarks.sides import SIDES
from benchmarks.tables import table
from benchmarks.targets import TARGETS
from benchmarks.turns import Running, pace, start, take_turns
from benchmarks.variants import SETTINGS, prepare_variant
from edgepeft.methods import attach
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime.bundle.bundle import Bundle
from tests.support.onnx_runs import session

PLAN = Plan(epochs=2, rows=4, learning_rate=1e-2, warmup=2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the sides of the tiny case read: a bundle and the batch."""
    folder, case = tmp_path_factory.mktemp("tiny"), load("tiny")
    np.savez(folder / "batch.npz", allow_pickle=False, **case.batch())
    torch.manual_seed(0)
    prepare_variant("fp32", case.source(), case.method, AdamW(lr=1e-2, max_grad_norm=CLIP), folder / "fp32")
    return folder


def test_every_case_has_model_method_and_batch() -> None:
    """A case's model takes the case's batch, and its method leaves parameters to train."""
    for name in MEASURED:
        case = load(name)
        source = case.source()
        assert isinstance(source.model, nn.Module)
        model = attach(case.method, source.model).eval()
        inputs = {key: torch.from_numpy(array[:1]) for key, array in case.batch().items() if key != "labels"}
        with torch.no_grad():
            model(**inputs)
        assert any(parameter.requires_grad for parameter in model.parameters()), name
        assert not all(parameter.requires_grad for parameter in model.parameters()), name


def test_sides_take_turns_and_survive_one_that_ends(prepared: Path) -> None:
    """A side whose bundle is missing becomes a row with its error; the other's losses fall, step after step."""
    commands = {
        name: [sys.executable, "-m", "benchmarks.sides.device_runtime", str(prepared), bundle, "1"]
        for name, bundle in (("edgepeft-fp32", "fp32"), ("edgepeft-int8", "missing"))
    }
    sides = [start(name, command, prepared) for name, command in commands.items()]
    take_turns(sides, rounds=2, steps=2, warm_up=1)
    whole, broken = sides
    whole.finish()
    assert len(whole.times) == 4
    assert len(whole.losses) == 5
    assert whole.losses[-1] < whole.losses[0]
    assert broken.failure is not None
    about = {"checkpoint_bytes": 1000}
    rows = [row_of("tiny", side, about, prepared, whole.losses) for side in sides]
    assert rows[0]["losses"] == "ok"
    assert rows[0]["bundle_bytes"] == sum(file.stat().st_size for file in (prepared / "fp32").iterdir())
    assert rows[1]["error"] == broken.failure


@pytest.mark.parametrize(("step", "expected"), [(10.0, (1, 5)), (1000.0, (1, 3)), (8000.0, (2, 1)), (60000.0, (3, 1))])
def test_slow_sides_run_fewer_steps_in_fewer_rounds(step: float, expected: tuple[int, int]) -> None:
    """Of 6 rounds of 5 steps, a side whose step takes seconds runs one step in every second or third."""
    assert pace(step, rounds=6, steps=5) == expected


def test_the_profile_is_of_the_cases_step(prepared: Path) -> None:
    """Both graphs of a step are there, with the case's batch."""
    found = profile(prepared, "fp32", steps=2, threads=1)
    assert [call.detail for call in found.summary.calls] == ["train.onnx", "optimizer.onnx"]
    assert found.summary.sizes["batch"] == len(load("tiny").batch()["labels"])


def test_the_official_graph_has_the_initial_values(tmp_path: Path) -> None:
    """Zero-initialised lora_B tensors, which the exporter would merge, stay apart and stay zero."""
    import onnx
    from onnx import numpy_helper

    case = load("tiny")
    source = case.source()
    model = attach(case.method, source.model).eval()
    first = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    inputs = {key: torch.from_numpy(array) for key, array in case.batch().items() if key != "labels"}
    write_forward(model, inputs, "cross_entropy", tmp_path / "official")
    graph = onnx.load(tmp_path / "official/forward.onnx").graph
    there = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = json.loads((tmp_path / "official/names.json").read_text("utf-8"))
    assert set(names["trainable"]) == set(first)
    for name, value in first.items():
        np.testing.assert_array_equal(there[name], value.numpy())
    assert not {node.op_type for node in graph.node} & {"LayerNormalization"}


def test_rivals_get_the_model_that_trains(tmp_path: Path) -> None:
    """What onnxsim and ExecuTorch build their steps from has the scores and the loss of the model in PyTorch."""
    import onnx
    import onnxruntime as ort
    from onnx import numpy_helper

    case = load("tiny")
    batch = case.batch()
    np.save(tmp_path / rivals.ROWS, rivals.row_labels("cross_entropy", batch["labels"]))
    inputs = {key: torch.from_numpy(array) for key, array in batch.items() if key != "labels"}
    models = [attach(case.method, case.source().model).eval() for _ in range(3)]
    with torch.no_grad():
        scores = models[0](**inputs).logits
        loss = nn.functional.cross_entropy(scores, torch.from_numpy(batch["labels"]))
    rivals.write_onnxsim(models[1], inputs, "cross_entropy", tmp_path / "onnxsim")
    model, first = onnx.load(tmp_path / "onnxsim/forward.onnx"), np.load(tmp_path / "onnxsim/first.npz")
    there = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in first.items():
        there[name].CopyFrom(numpy_helper.from_array(value, name))
    session = ort.InferenceSession(model.SerializeToString())
    (made,) = session.run(None, {value.name: batch[value.name] for value in session.get_inputs()})
    np.testing.assert_allclose(made, scores.numpy(), atol=1e-5)
    rivals.write_executorch(models[2], inputs, "cross_entropy", tmp_path / "executorch")
    program = torch.export.load(tmp_path / "executorch/loss.pt2")
    labels = torch.from_numpy(np.load(tmp_path / rivals.ROWS))
    assert program.module()(*inputs.values(), labels).item() == pytest.approx(loss.item(), rel=1e-5)


def test_losses_are_compared_with_what_the_side_promises() -> None:
    """An fp32 side must agree closely, a rounded one roughly, a pruned one need only fall."""
    oracle = [2.0, 1.5, 1.0]
    assert losses_go("same", [2.0, 1.5005, 1.0], oracle) == "ok"
    assert "step 2" in losses_go("same", [2.0, 1.51, 1.0], oracle)
    assert losses_go("near", [2.0, 1.51, 1.19], oracle) == "ok"
    assert "step 3" in losses_go("near", [2.0, 1.5, 1.21], oracle)
    assert losses_go("fall", [3.0, 2.5, 2.0], oracle) == "ok"
    assert "does not fall" in losses_go("near", [2.0, 2.0, 2.0], oracle)


def _running(name: str, ms: float, memory: float) -> Running:
    side = Running(name, None, Path())  # type: ignore[arg-type]  # a side that has ended: no process to talk to
    side.times, side.peak_rss_mb = [ms, ms, ms], memory
    return side


def test_targets_distinguish_met_from_missed_from_not_measured() -> None:
    """A ratio above its bound is reported as missed, and one without figures as not measured."""
    sides = [_running("torch-eager", 100, 600), _running("ort-inference-fp32", 20, 100)]
    rows = [{**row_of("minilm", side, {"checkpoint_bytes": 1000}, Path(), []), "run": "first"} for side in sides]
    rows.append({"case": "minilm", "side": "onnxsim", "ms_per_step": 70.0, "peak_rss_mb": 400.0, "run": "second"})
    rows.append({"case": "minilm", "side": "edgepeft-fp32", "ms_per_step": 30.0, "peak_rss_mb": 200.0, "run": "first"})
    rows[-1] |= {"bundle_bytes": 800, "checkpoint_bytes": 1000, "ms_p10_p90": [29.0, 31.0], "losses": "ok"}
    rows[-2] |= {"ms_p10_p90": [69.0, 71.0]}
    rows.append({"case": "minilm", "side": "edgepeft-int8", "ms_per_step": 20.0, "peak_rss_mb": 150.0, "run": "first"})
    rows[-1] |= {"bundle_bytes": 200, "checkpoint_bytes": 1000, "ms_p10_p90": [19.0, 21.0], "losses": "ok"}
    rows.append({"case": "minilm", "side": "edgepeft-int4", "error": "it did not build"})
    targets = {(t["figure"], t["side"], t["peer"]): t for t in targets_of(rows) if t["case"] == "minilm"}
    assert targets["ms_per_step", "edgepeft-int8", "torch-eager"]["met"] is True
    assert targets["ms_per_step", "edgepeft-int8", "ort-inference-fp32"]["met"] is False
    assert targets["ms_per_step", "edgepeft-int8", "torch-compile"]["met"] is None
    assert targets["ms_per_step", "edgepeft-fp32", "onnxsim"]["met"] is None, "they took no turns"
    assert targets["bundle_bytes", "edgepeft-int8", "checkpoint"]["ratio"] == 0.2
    cases = {"minilm": {"summary": "a text model", "busy_cores": {"waiting": 0.0, "outside": 0.1}}}
    shown = table({"cases": cases, "rows": rows, "ratios": ratios_of(rows), "targets": targets_of(rows)})
    assert "NOT met" in shown
    assert "not in turn" in shown
    assert "it did not build" in shown


def test_a_run_of_some_sides_keeps_the_others() -> None:
    """Rows stay in the order of cases and sides; a side that was measured again has one row, the new one."""
    kept = [{"case": case, "side": side, "run": "first"} for case in ("minilm", "gru") for side in SIDES]
    new = [{"case": "minilm", "side": side, "run": "second"} for side in ("torch-eager", "onnxsim")]
    rows = bench.merged(kept, new)
    assert [(row["case"], row["side"]) for row in rows] == [(row["case"], row["side"]) for row in kept]
    assert {row["side"] for row in rows if row["run"] == "second"} == {"torch-eager", "onnxsim"}


def test_targets_speak_of_sides_and_cases_that_exist() -> None:
    """A target with a misspelt side would never be measured; each device side has a variant to prepare."""
    assert {target.side for target in TARGETS} <= set(SIDES)
    assert {target.peer for target in TARGETS} - {"checkpoint"} <= set(SIDES)
    assert {target.case for target in TARGETS} <= set(MEASURED)
    assert {side.argument for side in SIDES.values() if side.bundle} == set(SETTINGS)
    assert all({target.side, target.peer} <= {*load(target.case).sides, "checkpoint"} for target in TARGETS)


def test_the_machine_is_described_without_its_name() -> None:
    """Cores and instructions determine figures. The host's name is private."""
    import platform

    description = machine.describe()
    assert description["cores"] >= 1
    assert platform.node() not in json.dumps(description)


def test_the_schedule_rises_and_falls_to_nearly_nothing() -> None:
    """The highest rate comes at the end of the warm-up, and the last step's is small but not zero."""
    rates = [PLAN.rate(step, 10) for step in range(1, 11)]
    assert max(rates) == rates[1] == PLAN.learning_rate
    assert 0 < rates[-1] < PLAN.learning_rate / 5


def test_an_epoch_has_every_example_once() -> None:
    """No example is lost in the last, shorter batch; padding that no row of a batch needs is cut off."""
    mask = np.tril(np.ones((10, 12), dtype=np.int64))
    data = {"input_ids": mask * 7, "attention_mask": mask, "labels": np.arange(10)}
    batches = list(replace(PLAN, epochs=1).batches(data, seed=3))
    assert sorted(np.concatenate([batch["labels"] for batch in batches])) == list(range(10))
    assert all(batch["input_ids"].shape[1] == batch["attention_mask"].sum(1).max() for batch in batches)
    assert [len(batch["labels"]) for batch in cut(data, 4)] == [4, 4, 2]


def test_both_sides_of_the_accuracy_table_end_alike_in_fp32(prepared: Path, tmp_path: Path) -> None:
    """The device's run and PyTorch's, from the same values over the same plan, classify the same examples correctly."""
    case, draw, threads = load("tiny"), np.random.default_rng(0), torch.get_num_threads()
    for name, count in (("train.npz", 16), ("test.npz", 24)):
        ids = draw.integers(0, 211, (count, 8))
        np.savez(tmp_path / name, input_ids=ids, attention_mask=np.ones_like(ids), labels=ids[:, 0] % 5)
    source = case.source()
    assert isinstance(source.model, nn.Module)
    torch.manual_seed(0)
    try:
        expected = torch_side.run(attach(case.method, source.model), tmp_path, PLAN, seed=0, threads=1)
    finally:
        torch.set_num_threads(threads)
    settings = {"plan": vars(PLAN), "seed": 0, "threads": 1}
    assert run_on_device(prepared / "fp32", tmp_path, settings) == pytest.approx(expected)


def test_accuracy_is_compared_seed_by_seed() -> None:
    """Means are over seeds; the distance to PyTorch uses only seeds that both have; an error stays visible."""
    cells = [
        {"task": "digits", "column": column, "seed": seed, "accuracy": accuracy}
        for column, accuracies in (("torch", (0.90, 0.92)), ("int8", (0.89, 0.92)), ("int4", (0.85,)))
        for seed, accuracy in enumerate(accuracies)
    ] + [{"task": "digits", "column": "int8-pruned", "seed": 0, "error": "CompressError: no heads"}]
    rows = {row["column"]: row for row in summary(cells)}
    assert rows["int8"]["points"] == -0.5
    assert rows["int8"]["met"] is True
    assert rows["int4"]["points"] == -5.0
    assert rows["int4"]["met"] is False
    assert "no heads" in text(list(rows.values()))


@pytest.mark.parametrize("name", ["bare sockets, 16 at once", "our client, one process, one at a time"])
def test_a_served_fleet_is_measured_by_part(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every device's update arrives, and the server reports how its time was spent."""
    monkeypatch.setattr(fleet_load, "DEVICES", 3)
    campaign = fleet_load.Campaign(tmp_path, Bundle.open(prepared / "fp32"))
    row = fleet_load.served(campaign, *fleet_load.VISITS[name])
    assert len([path for path in campaign.workspace.received.rglob("*.s*") if path.is_file()]) == 2 * 3
    parts = row["server ms per device"]
    assert min(parts[part] for part in ("parse", "auth", "receive and store", "respond", "CPU in all")) > 0
    assert sum(parts[part] for part in parts if part not in ("fsync (clock)", "CPU in all")) == pytest.approx(
        parts["CPU in all"], abs=0.1
    )
    collected = fleet_load.collected(campaign.workspace, campaign.workspace.received)
    assert collected["updates"] == 3


def test_a_fleet_is_measured_and_reckoned_up(prepared: Path, tmp_path: Path) -> None:
    """Simulated updates of the tiny case are all aggregated, by every rule, and a day's million is worked out of it."""
    bundle = Bundle.open(prepared / "fp32")
    size = fleet.simulate(bundle, tmp_path / "updates", 12)
    assert size > 1000
    for rule in fleet.RULES:
        row = fleet.measured(rule, bundle.path, tmp_path / "updates", 12)
        assert (row["updates"], row["peak MB"] > 10) == (12, True)
    lines = fleet.arithmetic({"CPU ms per update": 4.0, "updates": 10_000, "peak MB": 120.0}, 300_000)
    assert "11.6 updates and 3.5 MB per second, 300 GB a day" in lines[1]
    assert "4.0 ms of a core each: 5 % of one core's day" in lines[2]


def test_kernels_are_timed_by_any_python_with_onnxruntime() -> None:
    """Each row of the tables is a graph that it runs; images are small here."""
    image = {"x": np.ones((1, 2, 3, 3), np.float32), "y": np.ones((1, 2, 3, 3), np.float32)}
    few = [
        rows.Row(row.name, 18.0, row.body, {key: image[key] for key in row.fed}, row.constants)
        for row in rows.elementwise()
    ]
    convolutions = [rows.Convolution(4, 4, 3, 4, stride=2, transposed=kind) for kind in (True, False)]
    few += [rows.Row(form.name(), form.operations(), *form.graph()) for form in convolutions]
    few += [rows.Row(name, 1.0, *form) for name, form in rows.forms(rows.Convolution(4, 4, 3, 4)).items()]
    pythons = [
        os.environ.get("EDGEPEFT_DEVICE_PYTHON", sys.executable),
        os.environ.get("EDGEPEFT_OLDEST_PYTHON", sys.executable),
    ]
    times = [kernels.measured(few, python, rounds=2, threads=2) for python in pythons]
    cells = kernels.page({"one, GFLOP/s": few[:20], "two, ns": few[20:]}, times, 2)
    assert cells.count("\n| ") == len(few) + 2
    assert "no kernel" not in kernels.page({"all, ns": few}, times[:1], 2)


def test_int8_forms_of_a_convolution_compute_the_same() -> None:
    """All but the rounding of the images, and of the result where the form rounds that too."""
    for conv in (
        rows.Convolution(4, 6, 3, 5),
        rows.Convolution(4, 6, 1, 5),
        rows.Convolution(4, 4, 3, 5, group=4),
    ):
        forms = {name: rows.Row(name, 1.0, *form) for name, form in rows.forms(conv).items()}
        made = {name: session(row.model()).run(["o"], dict(row.fed))[0] for name, row in forms.items()}
        largest = np.abs(made["fp32"]).max()
        for name, image in made.items():
            assert np.abs(image - made["fp32"]).max() < 0.05 * largest or name == "QLinearConv", name
