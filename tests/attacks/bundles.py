"""Attacks on a device by the author of a bundle with correct hashes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepeft_runtime.bundle.folder import listed
from edgepeft_runtime.files.schema import write
from tests.attacks.table import bundle_attack

GRAPH = "infer.onnx"


def resigned(bundle: Path) -> None:
    """Make the manifest's hashes those of the files."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"] = {name: write(listed(bundle / name)) for name in manifest["files"]}
    path.write_text(json.dumps(manifest), encoding="utf-8")


def _edit(bundle: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(bundle / GRAPH, load_external_data=False)
    change(model)
    _write(bundle, model.SerializeToString())


def _write(bundle: Path, graph: bytes) -> None:
    (bundle / GRAPH).write_bytes(graph)
    resigned(bundle)


def _locate(bundle: Path, location: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "base")
        tensor.external_data[0].value = location

    _edit(bundle, change)


def _manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "manifest.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


@bundle_attack("a graph that reads `../secret` as its weights", "path-escape")
def another_file(bundle: Path) -> None:
    _locate(bundle, "../secret")


@bundle_attack("a graph that reads memory (`*/_ORT_MEM_ADDR_/*`)", "path-escape")
def memory_address(bundle: Path) -> None:
    _locate(bundle, "*/_ORT_MEM_ADDR_/*")


@bundle_attack("the same, hidden behind a protobuf tag of more than 32 bits", "bad-graph")
def hidden_by_its_tag(bundle: Path) -> None:
    _locate(bundle, "../secret")
    raw = (bundle / GRAPH).read_bytes()
    content = onnx.load_model_from_string(raw).graph.SerializeToString()
    offset = raw.index(content)
    start = raw.rindex(b"\x3a", 0, offset)
    _write(bundle, raw[:start] + b"\xba\x80\x80\x80\x10" + raw[start + 1 :])


@bundle_attack("the same, in a second graph field, which a parser merges with the first", "bad-graph")
def merged(bundle: Path) -> None:
    raw = (bundle / GRAPH).read_bytes()
    _locate(bundle, "../secret")
    _write(bundle, (bundle / GRAPH).read_bytes() + raw)


@bundle_attack("the same, in a function", "bad-graph")
def in_a_function(bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        node = helper.make_node("Constant", [], ["c"], value=model.graph.initializer[-1])
        model.functions.append(helper.make_function("f", "g", [], ["c"], [node], model.opset_import))

    _edit(bundle, change)


@bundle_attack("a model in ONNX Runtime's own format, in the guise of another", "bad-graph")
def another_format(bundle: Path) -> None:
    raw = (bundle / GRAPH).read_bytes()
    _write(bundle, b"\x12\x06\x00\x00ORTM" + raw)


def _loop(trips: str) -> onnx.NodeProto:
    scalars = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("more", TensorProto.BOOL))]
    again = helper.make_node("Identity", ["more"], ["again"])
    outputs = [helper.make_tensor_value_info("again", TensorProto.BOOL, [])]
    return helper.make_node("Loop", [trips, ""], [], body=helper.make_graph([again], "body", scalars, outputs))


@bundle_attack("a Loop without an end", "unbounded-loop")
def endless_loop(bundle: Path) -> None:
    _edit(bundle, lambda model: model.graph.node.append(_loop("")))


@bundle_attack("a Loop of 2^60 rounds", "unbounded-loop")
def long_loop(bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(2**60, np.int64), "trips"))
        model.graph.node.append(_loop("trips"))

    _edit(bundle, change)


@bundle_attack("a file outside the bundle, by its name", "path-escape")
def outside(bundle: Path) -> None:
    _manifest(bundle, lambda m: m["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}))


@bundle_attack("weights that are a link to a secret", "not-a-regular-file")
def linked(bundle: Path) -> None:
    weights = bundle / "weights.bin"
    weights.rename(bundle.parent / "secret")
    weights.symlink_to(bundle.parent / "secret")


@bundle_attack("a pipe that never answers instead of a graph", "not-a-regular-file")
def pipe(bundle: Path) -> None:
    (bundle / GRAPH).unlink()
    os.mkfifo(bundle / GRAPH)


@bundle_attack("an optimizer whose state takes 2^50 numbers", "bad-manifest")
def huge_state(bundle: Path) -> None:
    _manifest(bundle, lambda m: m["optimizer"]["state"][0].update(shape=[2**50]))


@bundle_attack("a program that runs the weights as a graph, which nobody checked", "bad-manifest")
def unchecked_graph(bundle: Path) -> None:
    _manifest(bundle, lambda m: m["programs"]["infer"][0].update(graph="weights.bin"))


@bundle_attack("a frozen tensor of 2^50 bytes past the end of the weights", "bad-manifest")
def beyond_the_weights(bundle: Path) -> None:
    _manifest(bundle, lambda m: m["frozen"][0].update(offset=2**40, bytes=2**50, shape=[2**48]))


@bundle_attack("a program that reads a value before it is computed", "bad-program")
def too_early(bundle: Path) -> None:
    _manifest(bundle, lambda m: m["programs"]["infer"][0].update(inputs={"x": "logits"}))


@bundle_attack("a program that replaces a parameter by an output", "bad-program")
def replaced_parameter(bundle: Path) -> None:
    _manifest(bundle, lambda m: m["programs"]["infer"][0].update(outputs={"logits": "head.bias"}))


@bundle_attack("a gradient of one bucket at the end of another", "bad-manifest")
def stray_gradient(bundle: Path) -> None:
    _manifest(bundle, lambda m: m["programs"]["train"][0]["accumulate"][0].update(offset=2**40))


@bundle_attack("a manifest nested 100,000 levels deep", "bad-manifest")
def deep_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text('{"a":' + "[" * 100_000, encoding="utf-8")
