"""A bundle is opened only if every file matches the manifest, and there are no others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import Bucket, ImageSpec, LabelSpec, LossSpec, TensorSpec, TextSpec
from edgepeft_runtime.errors import BundleError, EdgepeftError, TensorError
from edgepeft_runtime.files.hashing import PART
from edgepeft_runtime.files.tensorfile import read_tensors, write_tensors
from edgepeft_runtime.train.trainer import Trainer
from tests.support.damage import Copy, mutated, resigned
from tests.support.tiny_bundle import external_tensor


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a bundle as JSON."""
    value = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    change(value)
    (path / "manifest.json").write_text(json.dumps(value), encoding="utf-8")


def refused(path: Path, reference: str, *, verify: bool = True) -> EdgepeftError:
    """The error of opening the bundle."""
    with pytest.raises(EdgepeftError) as error:
        Bundle.open(path, verify=verify)
    assert error.value.code == reference
    assert error.value.hint
    return error.value


def test_whole_bundle_opens(bundle: Path) -> None:
    """The adapter comes in the manifest's order, with the manifest's shapes."""
    opened = Bundle.open(bundle)
    assert [(name, array.shape) for name, array in opened.adapter().items()] == [
        (spec.name, spec.shape) for spec in opened.manifest.parameters
    ]
    assert opened.base_sha256 == opened.manifest.base_sha256
    assert opened.adapter_sha256 == opened.manifest.files["adapter.safetensors"].sha256


def test_manifest_survives_writing_and_reading(bundle: Path) -> None:
    """Reading a written manifest returns an equal one, and writing that returns the same text."""
    manifest = Manifest.from_json((bundle / "manifest.json").read_bytes())
    full = replace(
        manifest,
        labels=(*manifest.labels, LabelSpec("target", "float32", ("batch", 2))),
        text=TextSpec(128, 0, {"x": "ids"}),
        image=ImageSpec("x", (28, 32), 3, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), (30,), "bicubic", "BGR"),
        provenance={"method": "lora", "r": 8, "alpha": 16.0, "target_modules": ["q", "v"], "nested": {"a": None}},
    )
    for value in (manifest, full):
        assert Manifest.from_json(value.to_json()) == value
        assert Manifest.from_json(value.to_json()).to_json() == value.to_json()


def test_unused_class_fields_stay_out_of_plain_labels(bundle: Path) -> None:
    """A regression target has no classes, in the file either."""
    manifest = Manifest.from_json((bundle / "manifest.json").read_bytes())
    plain = replace(manifest, labels=(LabelSpec("y", "float32", ("batch",)),), loss=LossSpec("mse"))
    assert plain.to_dict()["labels"] == [{"name": "y", "dtype": "float32", "shape": ["batch"]}]


IMAGE = {
    **{"input": "x", "size": [1, 1], "channels": 1, "mean": [0], "std": [1]},
    **{"resize": None, "resample": "box", "channel_order": "RGB"},
}
PAIR = {"layer": "x", "a": "weight", "b": "bias", "layout": "graph", "groups": 1, "rank": 1, "scale": 1.0}
EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": lambda m: m.update(format="something"),
    "field-missing": lambda m: m.pop("buckets"),
    "field-unknown": lambda m: m.update(bukets=[]),
    "label-misspelt": lambda m: m["labels"][0].update(ignore=-1),
    "dtype": lambda m: m["inputs"][0].update(dtype="complex64"),
    "shape": lambda m: m["inputs"][0].update(shape=[-1, 4]),
    "role": lambda m: m["parameters"][0].update(role="king"),
    "dimension-undescribed": lambda m: m.update(dimensions={}),
    "symbolic-parameter": lambda m: m["parameters"][0].update(shape=["batch", 3]),
    "bucket-size": lambda m: m["buckets"][0].update(size=17),
    "bucket-member": lambda m: m["buckets"][0].update(members=[]),
    "parameter-twice": lambda m: m["parameters"].append(m["parameters"][0]),
    "no-inputs": lambda m: m.update(inputs=[]),
    "lr-as-text": lambda m: m["optimizer"].update(lr="0.1"),
    "hash": lambda m: m["files"]["weights.bin"].update(sha256="AB"),
    "size-negative": lambda m: m["files"]["weights.bin"].update(bytes=-1),
    "bool-for-number": lambda m: m["files"]["weights.bin"].update(bytes=True),
    "loss-kind": lambda m: m["loss"].update(kind=1),
    "runtime": lambda m: m.update(min_onnxruntime="new"),
    "text": lambda m: m.update(text={"max_length": 8, "pad_id": 0, "fields": {"x": "words"}}),
    "adapter-missing": lambda m: m.pop("adapter"),
    "pair-layout": lambda m: m["adapter"].update(pairs=[PAIR | {"layout": "square"}]),
    "pair-role": lambda m: m["adapter"].update(pairs=[PAIR]),
    "trained-and-non-trainable": lambda m: m["adapter"].update(non_trainable=[m["parameters"][0]["name"]]),
    "in-no-bucket": lambda m: m["parameters"].append(m["parameters"][0] | {"name": "idle"}),
    "image": lambda m: m.update(image={"input": "x", "size": [1], "channels": 1, "mean": [0], "std": [1]}),
    "image.resize": lambda m: m.update(image=IMAGE | {"resize": [0]}),
    "image.resample": lambda m: m.update(image=IMAGE | {"resample": "cubic"}),
}


@pytest.mark.parametrize("name", EDITS)
def test_contradictory_manifests_are_refused(name: str, copy: Copy) -> None:
    """A manifest that breaks the SPEC is not a manifest, and the error says where."""
    path = copy()
    edit(path, EDITS[name])
    assert refused(path, "bad-manifest").context


def test_newer_format_and_older_runtime_are_named(copy: Copy) -> None:
    """What the user must update differs: edgepeft, or onnxruntime."""
    path = copy()
    edit(path, lambda m: m.update(version=3))
    assert "version 3" in refused(path, "bundle-version").message
    edit(path, lambda m: m.update(version=2, min_onnxruntime="99.1"))
    assert "99.1" in refused(path, "onnxruntime-too-old").message


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "a\\b", "./a", "a//b", "C:a", ""])
def test_names_outside_the_bundle_are_refused(name: str, copy: Copy) -> None:
    """A manifest must not make the runtime look elsewhere."""
    path = copy()
    edit(path, lambda m: m["files"].update({name: m["files"]["weights.bin"]}))
    refused(path, "path-escape")


@pytest.mark.parametrize("name", ["weights.bin", "train.onnx", "adapter.safetensors", "manifest.json"])
def test_every_flipped_bit_is_found(name: str, copy: Copy) -> None:
    """One bit anywhere in a file is enough for it to be refused."""
    path = copy()
    content = bytearray((path / name).read_bytes())
    offset = content.index(b'"bytes": ') + 10 if name == "manifest.json" else len(content) // 2
    content[offset] ^= 1
    (path / name).write_bytes(content)
    error = refused(path, "damaged-file")
    assert name in error.message or name == "manifest.json"
    assert "expected" in str(error.context)
    assert "found" in str(error.context)


def test_a_large_file_is_checked_by_its_parts(copy: Copy) -> None:
    """The manifest lists a hash for each 16 MiB; the error says which part has changed. Their number must be right."""
    path = copy()
    with (path / "weights.bin").open("r+b") as weights:
        weights.truncate(2 * PART + 5)
    entry = Bundle.open(resigned(path)).manifest.files["weights.bin"]
    zeros = hashlib.sha256(bytes(PART)).hexdigest()
    assert entry.parts is not None
    assert entry.parts[1:] == (zeros, hashlib.sha256(bytes(5)).hexdigest())
    with (path / "weights.bin").open("r+b") as weights:
        weights.seek(2 * PART - 1)
        weights.write(b"x")
    assert f"from {PART} on" in str(refused(path, "damaged-file").context)
    edit(path, lambda m: m["files"]["weights.bin"]["parts"].pop())
    refused(path, "bad-manifest", verify=False)


@pytest.mark.parametrize("name", ["weights.bin", "infer.onnx", "adapter.safetensors"])
def test_truncated_files_are_refused_without_hashing(name: str, copy: Copy) -> None:
    """A transfer cut short is found by the size."""
    path = copy()
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1])
    refused(path, "damaged-file", verify=False)
    (path / name).unlink()
    refused(path, "missing-file", verify=False)


def test_undeclared_files_are_refused(copy: Copy) -> None:
    """Also in a folder, also hidden."""
    path = copy()
    (path / "extra").mkdir()
    (path / "extra" / ".hidden").write_bytes(b"x")
    assert "extra/.hidden" in str(refused(path, "undeclared-file").context)


def test_links_are_refused(copy: Copy, tmp_path: Path) -> None:
    """A link can lead out of the bundle, so each is refused."""
    path = copy()
    (tmp_path / "elsewhere").write_bytes((path / "weights.bin").read_bytes())
    (path / "weights.bin").unlink()
    (path / "weights.bin").symlink_to(tmp_path / "elsewhere")
    refused(path, "not-a-regular-file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its files")
def test_a_pipe_does_not_hang_the_runtime(copy: Copy) -> None:
    """Reading a pipe would wait for ever."""
    path = copy()
    (path / "weights.bin").unlink()
    os.mkfifo(path / "weights.bin")
    refused(path, "not-a-regular-file")


@pytest.mark.parametrize("site", ["initializer", "attribute", "subgraph"])
def test_graph_that_reads_another_file_is_refused(site: str, copy: Copy) -> None:
    """Even where the hashes agree: the author of a bundle must not read the device's files."""
    path = copy()
    model = onnx.load(path / "eval.onnx", load_external_data=False)
    tensor = external_tensor("../secret")
    node = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    if site == "initializer":
        next(t for t in model.graph.initializer if t.name == "base").external_data[0].value = "../secret"
    elif site == "attribute":
        model.graph.node.insert(0, node)
    else:
        branch = onnx.helper.make_graph([node], "branch", [], [])
        model.graph.node.insert(0, onnx.helper.make_node("If", ["x"], ["d"], then_branch=branch, else_branch=branch))
    (path / "eval.onnx").write_bytes(model.SerializeToString())
    error = refused(resigned(path), "path-escape")
    assert "../secret" in str(error.context)


def test_graph_that_is_no_graph_is_refused(copy: Copy) -> None:
    """With agreeing hashes the walk over the graph finds it."""
    path = copy()
    (path / "eval.onnx").write_bytes(b"\x00\xff" * 40)
    refused(resigned(path), "bad-graph")


def test_graph_that_onnxruntime_refuses_is_a_bundle_error(copy: Copy) -> None:
    """The message of onnxruntime is the error's context."""
    path = copy()
    model = onnx.load(path / "infer.onnx", load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    (path / "infer.onnx").write_bytes(model.SerializeToString())
    with Trainer.open(resigned(path)) as trainer, pytest.raises(BundleError, match="NoSuchOperator"):
        trainer.predict({"x": np.zeros((1, 4), np.float32)})


def test_adapter_that_does_not_fit_is_refused(copy: Copy) -> None:
    """Wrong names, shapes, dtypes and values are each named."""
    path = copy()
    whole = read_tensors(path / "adapter.safetensors").tensors
    bias = whole["head.bias"]
    cases = {"missing": {}, "[3]": {"head.bias": bias[:2]}, "float64": {"head.bias": bias.astype(np.float64)}}
    for fact, change in {**cases, "nan": {"head.bias": bias * np.float32(np.nan)}}.items():
        tensors = {**whole, **change} if change else {"head.bias": bias}
        write_tensors(path / "adapter.safetensors", tensors)
        with pytest.raises(TensorError) as error:
            Bundle.open(resigned(path)).adapter()
        assert fact in str(error.value.context)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    """A wrong path and an empty directory."""
    refused(tmp_path / "none", "no-bundle")
    refused(tmp_path, "no-bundle")


def test_random_damage_to_the_manifest_never_escapes(copy: Copy) -> None:
    """A mutated manifest opens or raises an EdgepeftError, never another exception."""
    path, rng = copy(), np.random.default_rng(2)
    whole = (path / "manifest.json").read_bytes()
    for _ in range(300):
        (path / "manifest.json").write_bytes(mutated(whole, rng))
        try:
            Bundle.open(path)
        except EdgepeftError:
            continue


def test_buckets_of_unknown_members_cannot_be_made(bundle: Path) -> None:
    """The host meets the same checks when it writes."""
    manifest = Bundle.open(bundle).manifest
    with pytest.raises(BundleError, match="must be a parameter that is in no other bucket"):
        replace(manifest, buckets=(Bucket("b", 22, ("head.weight", "nobody"), True),))
    with pytest.raises(BundleError, match="same name"):
        replace(manifest, inputs=(TensorSpec("x", "float32", (1,)), TensorSpec("x", "float32", (1,))))
