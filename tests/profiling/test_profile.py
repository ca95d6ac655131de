"""The profile of a step: its parts add up to the whole, and its names are those of the model's modules."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import edgepeft_runtime
from edgepeft_runtime import Bundle, Profile
from edgepeft_runtime.bundle.activation_sizes import MemorySpec
from edgepeft_runtime.bundle.graphfile import NodeFacts, nodes_of
from edgepeft_runtime.bundle.plan import GraphInterface, plan
from edgepeft_runtime.errors import BadSetting, BatchError, DataError
from edgepeft_runtime.profiling.advice import MEMORY, TIME, advices
from edgepeft_runtime.profiling.categories import KINDS, kind_of
from edgepeft_runtime.profiling.events import Run, read_runs
from edgepeft_runtime.profiling.layers import (
    BACKWARD,
    FORWARD,
    block_of,
    common_prefix,
    module_of,
    renamed_layouts,
    renaming,
)
from edgepeft_runtime.profiling.summary import Summary
from tests.support import segmented_bundle, tiny_bundle
from tests.support.tiny_bundle import examples

STEPS = 3


def _profile(path: Path, rows: int = 12, batch_size: int = 4) -> Profile:
    return edgepeft_runtime.profile(Bundle.open(path), examples(rows), batch_size=batch_size, steps=STEPS, threads=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose step is one graph."""
    return tiny_bundle.build(tmp_path_factory.mktemp("bundles") / "whole")


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose programs have several calls."""
    return segmented_bundle.build(tmp_path_factory.mktemp("bundles") / "segmented")


@pytest.fixture(scope="module")
def whole(bundle: Path) -> Profile:
    """The profile of a bundle of one graph; its three batches are used again for the fourth step."""
    return _profile(bundle)


@pytest.fixture(scope="module")
def parts(segmented: Path) -> Profile:
    """The profile of a program whose calls share graphs."""
    return _profile(segmented)


@pytest.mark.parametrize("name", ["whole", "parts"])
def test_parts_add_up_to_the_whole(name: str, request: pytest.FixtureRequest) -> None:
    """Operators, kinds, passes, modules, blocks and calls are divisions of the same kernels."""
    summary: Summary = request.getfixturevalue(name).summary
    assert 0 < summary.kernels <= summary.sessions <= summary.profiled
    count = sum(row.kernels for row in summary.operators)
    for division in ("operators", "kinds", "passes", "modules", "blocks", "calls"):
        rows = getattr(summary, division)
        assert sum(row.seconds for row in rows) == pytest.approx(summary.kernels, rel=1e-9), division
        assert sum(row.kernels for row in rows) == count, division
        for row in rows:
            assert not row.parts or sum(row.parts.values()) == pytest.approx(row.seconds, rel=1e-9)
    assert {row.name for row in summary.kinds} <= set(KINDS)
    assert summary.memory.arena == max(point.in_use for point in summary.timeline)
    assert summary.memory.arena == max(row.in_use or 0 for row in summary.modules if row.name == summary.memory.fullest)


def test_every_call_of_a_program_is_there(parts: Profile, segmented: Path) -> None:
    """In order, with the number of kernels of its graph: nothing is lost between two calls of one graph."""
    bundle = Bundle.open(segmented)

    def interface(graph: str) -> GraphInterface:
        read = onnx.load(segmented / graph, load_external_data=False).graph
        return GraphInterface(tuple(value.name for value in read.input), tuple(value.name for value in read.output))

    graphs = [*(call.graph for call in plan(bundle.manifest, "train", interface)), "optimizer.onnx"]
    calls = parts.summary.calls
    assert [call.detail for call in calls] == graphs
    by_graph: dict[str, set[int]] = {}
    for call in calls:
        by_graph.setdefault(call.detail, set()).add(call.kernels)
    assert all(len(counts) == 1 for counts in by_graph.values())


def test_calls_of_one_graph_have_names_of_their_own(parts: Profile) -> None:
    """The graph of the blocks was written for block.0; a call that binds block.1's weights is block.1's."""
    modules = {row.name: row for row in parts.summary.modules}
    assert {"block.0", "block.1", "node"} <= set(modules)
    first, second = modules["block.0"], modules["block.1"]
    assert first.kernels == second.kernels and first.written == second.written
    assert first.parts.keys() == second.parts.keys() == {FORWARD, "recomputed", BACKWARD}
    assert [row.name for row in parts.summary.blocks][:3] == ["node", "block.0", "block.1"]


def test_what_kept_activations_would_save_is_known(parts: Profile, whole: Profile) -> None:
    """The first call is all that is below the value to keep; a bundle without one has no such fraction."""
    assert whole.summary.cached is None
    first = parts.summary.calls[0]
    assert parts.summary.cached == pytest.approx(first.seconds / parts.summary.kernels)


def test_the_page_is_well_formed_and_stands_alone(parts: Profile) -> None:
    """It is XML, names every block and refers to no other file; names are escaped."""
    page = parts.page()
    assert page.startswith("<!doctype html>")
    root = ET.fromstring(page.removeprefix("<!doctype html>"))
    assert {"block.0", "block.1"} <= {element.text for element in root.iter("text")}
    assert root.findall(".//rect/title")
    links = [value for element in root.iter() for name, value in element.items() if name in ("src", "href")]
    assert not links and "url(" not in page
    memory = replace(parts.summary.memory, fullest="<&>")
    odd = Profile("a<b>&", replace(parts.summary, memory=memory), parts.advice).page()
    assert ET.fromstring(odd.removeprefix("<!doctype html>")).findtext(".//h1") == "A training step of a<b>&"


def test_the_profile_is_plain_json_and_a_table(parts: Profile) -> None:
    """Both contain the sizes of the batch and every advice."""
    written = json.loads(json.dumps(parts.to_dict()))
    assert written["sizes"] == {"batch": 4} and written["steps"] == STEPS
    assert len(written["advice"]) == len(parts.advice) <= 3
    table = parts.table()
    assert "batch 4" in table and all(advice.text in table for advice in parts.advice)


def test_advice_follows_from_what_was_measured(parts: Profile, segmented: Path) -> None:
    """One of eight cores and three quarters of padding come first; activations do once they are most of the memory."""
    manifest, measured = Bundle.open(segmented).manifest, parts.summary
    slow = replace(measured, threads=1, cores=8, padding=0.75, operators=(), passes=(), step=measured.kernels)
    first, second = advices(manifest, slow)[:2]
    assert (first.saves, first.fraction, second.fraction) == (TIME, 1 - 1 / 8, 0.75)
    assert "1 of 8 cores" in first.text and "75.0 % of the tokens are padding" in second.text
    (other,) = advices(manifest, replace(slow, cores=1, padding=None, blocks=(), step=4 * slow.kernels))
    assert other.fraction == pytest.approx(0.75) and "other programs" in other.text
    polynomial = MemorySpec(({"batch": 1000, "": 100},))
    full = replace(slow, padding=None, cores=1, memory=replace(measured.memory, activations=4_100, anonymous=8_000))
    kept, halved = (advice for advice in advices(replace(manifest, memory=polynomial), full) if advice.saves == MEMORY)
    assert kept.fraction == 4_100 / 8_000 and "--weights input" in kept.text
    assert halved.fraction == 2_000 / 8_000 and "--accumulate 2" in halved.text


def test_bad_input_is_refused(bundle: Path) -> None:
    """What a trainer refuses is refused here, and no steps are not measured."""
    opened = Bundle.open(bundle)
    with pytest.raises(BadSetting, match="steps"):
        edgepeft_runtime.profile(opened, examples(4), steps=0)
    with pytest.raises(BatchError):
        edgepeft_runtime.profile(opened, {"x": np.zeros((4, 5), np.float32), "labels": np.zeros(4, np.int64)})
    with pytest.raises(DataError):
        edgepeft_runtime.profile(opened, iter(()))


def _floats(**shapes: list[int]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]


def _runs(path: Path, inputs: dict[str, np.ndarray], count: int) -> list[Run]:
    """Run a graph with onnxruntime's profiler; return what it wrote."""
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(path.with_suffix(".profile"))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(count):
        session.run(None, inputs)
    runs = read_runs(Path(session.end_profiling()))
    assert len(runs) == count
    return runs


def test_a_loop_has_the_time_that_its_nodes_do_not_have(tmp_path: Path) -> None:
    """Kernels inside of a loop are counted once: the sum stays within the run."""
    square = helper.make_node("MatMul", ["s", "w"], ["t"], name="inner/MatMul")
    copy = helper.make_node("Identity", ["t"], ["u"])
    body = helper.make_graph([square, copy], "body", _floats(s=[64, 64], x=[1]), _floats(t=[64, 64], u=[64, 64]))
    scan = helper.make_node("Scan", ["w", "xs"], ["last", "all"], name="loop/Scan", body=body, num_scan_inputs=1)
    outputs = _floats(last=[64, 64], all=[8, 64, 64])
    graph = helper.make_graph([scan], "g", _floats(w=[64, 64], xs=[8, 1]), outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    runs = _runs(tmp_path / "g.onnx", {"w": np.eye(64, dtype=np.float32), "xs": np.zeros((8, 1), np.float32)}, 2)
    for run in runs:
        names = [kernel.operator for kernel in run.kernels]
        assert names.count("MatMul") == 8 and names.count("Scan") == 1
        assert sum(kernel.seconds for kernel in run.kernels) <= run.seconds


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("model.layers.3.mlp.up_proj/linear_4/grad/Gemm", "model.layers.3.mlp.up_proj"),
        ("/encoder/layer.0/attention/self/query/MatMul/grad/MatMul", "encoder.layer.0.attention.self.query"),
        ("gradient/Concat", "gradients"),
        ("parameters/grad/Sum", "gradients"),
        ("Transpose_token_4", "other"),
        ("node_Slice_310/narrow", "other"),
        ("loss/CrossEntropy/Sub", "loss"),
    ],
)
def test_a_node_belongs_to_the_module_in_its_name(node: str, module: str) -> None:
    """As our exporter and torch's older one name nodes; what onnxruntime inserts belongs to none."""
    assert module_of(node) == module


def test_names_are_cut_and_renamed_by_whole_parts() -> None:
    """Blocks end at the first number; layers.1 is no prefix of layers.10; nested stages are told apart."""
    assert block_of("layers.10.mlp") == "layers.10" and block_of("features.3.conv.0") == "features.3"
    assert block_of("norm") == "norm"
    assert common_prefix({"a.b.layers.0.mlp", "a.b.layers.1", "a.b.norm", "loss", "other"}) == "a.b."
    weights = [[f"stage.{stage}.block.{block}.w", "table"] for stage, block in ((0, 1), (0, 10), (1, 1))]
    names = renaming(weights, {"stage.0.block.1/MatMul", "stage.0.block.1.act/Relu", "norm/Add"})
    assert [rename("stage.0.block.1.act/Relu") for rename in names] == [
        "stage.0.block.1.act/Relu",
        "stage.0.block.10.act/Relu",
        "stage.1.block.1.act/Relu",
    ]
    assert [rename("norm/Add") for rename in names] == ["norm/Add"] * 3


def test_a_convolution_in_a_blocked_layout_is_its_modules() -> None:
    """onnxruntime names it after its result, which is that of the activation where one is fused into it."""
    conv = NodeFacts("features.0/conv2d", "Conv", ("x", "w"), ("conv2d",))
    clip = NodeFacts("features.1/clip", "Clip", ("conv2d", "low", "high"), ("clip",))
    name = renamed_layouts([conv, clip])
    assert [name(node) for node in ("conv2d_nchwc", "clip_nchwc", "unknown_nchwc", "features.1/clip")] == [
        "features.0/conv2d",
        "features.0/conv2d",
        "unknown_nchwc",
        "features.1/clip",
    ]


def test_a_fused_convolution_is_under_its_own_module(tmp_path: Path) -> None:
    """An activation is fused into it; the machine decides about the layout."""
    path = tmp_path / "graph.onnx"
    shapes = _floats(x=[1, 16, 8, 8]), _floats(r=[1, 16, 8, 8])
    weight = onnx.numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w")
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="features.0/conv", pads=[1, 1, 1, 1])
    relu = helper.make_node("Relu", ["c"], ["r"], name="features.1/relu")
    graph = helper.make_graph([conv, relu], "g", *shapes, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    (run,) = _runs(path, {"x": np.ones((1, 16, 8, 8), np.float32)}, 1)
    name = renamed_layouts(nodes_of(path.read_bytes()))
    convolution = next(kernel for kernel in run.kernels if kernel.operator in ("Conv", "FusedConv"))
    assert module_of(name(convolution.node)) == "features.0"


def test_operators_have_kinds() -> None:
    """One of each, under the names that onnxruntime runs."""
    found = [kind_of(name) for name in ("FusedMatMul", "DynamicQuantizeLinear", "Softmax", "Transpose", "Mul", "Scan")]
    assert found == ["products", "rounding", "reductions", "layout", "elementwise", "loops"]
