"""A bundle is whole, reproducible, contains every frozen tensor once, and is accepted by the device runtime."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft.preparation.prepare import Prepared
from edgepeft_export.autodiff.walk import NoGradientRule
from edgepeft_export.opset import IR_VERSION, OPSET, assert_runs_on_devices
from edgepeft_export.optimizers import AdamW
from edgepeft_export.weights import ALIGNMENT, INLINE, WeightsFile
from edgepeft_runtime import Bundle, Trainer
from edgepeft_runtime.bundle.graphfile import checked_graph
from edgepeft_runtime.errors import BundleError, EdgepeftError

VOCABULARY, HIDDEN = 40, 16
GRAPHS = ("train.onnx", "optimizer.onnx", "eval.onnx", "infer.onnx")


class Tied(nn.Module):
    """A language model of one layer whose head is its embedding; the layer and a bias train."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.frozen = nn.Linear(HIDDEN, HIDDEN)
        self.layer = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY)
        self.head.weight = self.embedding.weight
        self.embedding.requires_grad_(False)
        self.frozen.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.frozen(self.embedding(ids))))))


IDS = {"ids": torch.zeros(2, 3, dtype=torch.int64)}


def _prepare(out: Path, **settings: object) -> Prepared:
    torch.manual_seed(0)
    return edgepeft.prepare(Tied(), IDS, loss="causal_lm", optimizer=AdamW(lr=0.01), out=out, **settings)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle not to be changed."""
    return _prepare(tmp_path_factory.mktemp("bundle") / "tied").bundle


def _initializers(bundle: Path, graph: str) -> Iterator[onnx.TensorProto]:
    yield from onnx.load(bundle / graph, load_external_data=False).graph.initializer


def _range(tensor: onnx.TensorProto) -> tuple[int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return int(entries["offset"]), int(entries["length"])


@pytest.mark.own_exports
def test_preparing_twice_writes_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    """Every file of the bundle is reproducible, so that the base's hash identifies its content."""
    again = _prepare(tmp_path / "again").bundle
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in bundle.iterdir())
    for path in bundle.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_device_opens_and_trains_it(bundle: Path) -> None:
    """``Bundle.open`` verifies every file, and a few steps bring the loss down."""
    batch = {"ids": np.arange(12).reshape(3, 4), "labels": np.arange(12).reshape(3, 4)}
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step(batch) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.5


def test_the_manifest_lists_every_file_with_its_size_and_hash(bundle: Path) -> None:
    """Sizes and hashes are those of the files, and nothing else is there.""" ""
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in bundle.iterdir()} - {"manifest.json"}
    for name, entry in manifest["files"].items():
        content = (bundle / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert manifest["optimizer"]["lr"] == 0.01


def test_every_graph_is_valid_and_runs_on_devices(bundle: Path) -> None:
    """All four pass the checker, have only operators of the oldest supported onnxruntime, and no path or date."""
    for name in GRAPHS:
        onnx.checker.check_model(str(bundle / name), full_check=True)
        model = ir.load(bundle / name)
        assert_runs_on_devices(model)
        assert (model.graph.opset_imports[""], model.ir_version) == (OPSET, IR_VERSION)
        names = [node.name for node in model.graph]
        assert all(names) and len(set(names)) == len(names)
        text = (bundle / name).read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in text and sys.prefix.encode() not in text


def test_frozen_tensors_are_stored_once(bundle: Path) -> None:
    """The graphs refer to weights.bin alone. Graphs that read the same tensor refer to the same offset."""
    stored: dict[tuple[int, int], set[str]] = {}
    for name in GRAPHS:
        assert checked_graph((bundle / name).read_bytes()).locations <= {"weights.bin"}
        for tensor in _initializers(bundle, name):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                stored.setdefault(_range(tensor), set()).add(name)
            else:
                assert len(tensor.raw_data) <= INLINE
    assert all({"train.onnx", "eval.onnx", "infer.onnx"} <= graphs for graphs in stored.values())
    assert all(offset % ALIGNMENT == 0 for offset, _ in stored)
    # The head reads the embedding, transposed by the kernel. The bias is small enough for the graph.
    frozen = 4 * (VOCABULARY * HIDDEN + HIDDEN * HIDDEN)
    assert sum(length for _, length in stored) == frozen
    manifest = Bundle.open(bundle).manifest
    assert sum(spec.bytes for spec in manifest.stored) == frozen


def test_equal_bytes_are_stored_once_whatever_they_stand_for(tmp_path: Path) -> None:
    """4-bit weights are bytes to the forward matmul and 4-bit numbers to the gradient's, stored once in the file."""
    arrays = {
        "a": np.zeros((10, 10), np.float32),
        "b": np.zeros((10, 10), np.int32),
        "c": np.zeros((4, 25), np.float32),
    }
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    for name, array in arrays.items():
        tensor = ir.tensor(array, name=name)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    with WeightsFile(tmp_path / "weights.bin") as weights:
        weights.externalize(ir.Model(graph, ir_version=IR_VERSION))
    assert [(spec.name, spec.dtype, spec.bytes, spec.offset) for spec in weights.entries] == [
        ("a", "float32", 400, 0),
        ("b", "int32", 400, 0),
        ("c", "float32", 400, 0),
    ]


def test_tensors_that_differ_in_one_byte_are_stored_both(tmp_path: Path) -> None:
    """Whichever byte it is: the comparison begins with a few of them, and ends with all."""
    once = np.zeros(3 * 4096, np.uint8)
    several = [np.zeros_like(once) for _ in range(4)]
    for index, array in enumerate(several[1:]):
        array[index] = 1
    with WeightsFile(tmp_path / "weights.bin") as weights:
        for index, array in enumerate([once, *several]):
            weights.store(f"w{index}", ir.tensor(array))
    assert [spec.offset for spec in weights.entries] == [index * 3 * 4096 for index in (0, 0, 1, 2, 3)]
    content = (tmp_path / "weights.bin").read_bytes()
    assert content == b"".join(array.tobytes() for array in several)


def test_the_adapter_contains_the_first_values(bundle: Path) -> None:
    """Trained parameters are in adapter.safetensors, bit-identical, under the module's own names."""
    torch.manual_seed(0)
    state = {name: p.detach().numpy() for name, p in Tied().named_parameters() if p.requires_grad}
    adapter = Bundle.open(bundle).adapter()
    assert list(adapter) == list(state) == ["layer.weight", "layer.bias", "head.bias"]
    for name, array in adapter.items():
        np.testing.assert_array_equal(array, state[name])


def test_dimensions_know_their_limits(tmp_path: Path) -> None:
    """A source's longest sequence ends up in the manifest, and the device refuses a longer one."""
    source = edgepeft.Source(Tied(), IDS, "causal_lm", dimension_max={"sequence": 5})
    edgepeft.prepare(source, out=tmp_path / "b")
    manifest = Bundle.open(tmp_path / "b").manifest
    assert {name: (d.min, d.max) for name, d in manifest.dimensions.items()} == {"batch": (1, None), "sequence": (1, 5)}
    with Trainer.open(tmp_path / "b") as trainer, pytest.raises(EdgepeftError, match="sequence"):
        trainer.predict({"ids": np.zeros((1, 6), np.int64)})


# Whole or not at all


class NoRule(nn.Module):
    """A model that cannot be prepared without the gradient rule of Det."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(self.conv(x))


@pytest.mark.usefixtures("without_det")
def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """Neither the bundle nor a staging directory nor a parent is there after an error, early or late."""
    with pytest.raises(NoGradientRule):
        edgepeft.prepare(NoRule(), torch.zeros(2, 1, 4, 4), out=tmp_path / "new" / "b")
    with pytest.raises(EdgepeftError):
        _prepare(tmp_path / "b", classes=["only", "two"])
    assert not list(tmp_path.iterdir())


def test_a_failure_while_writing_leaves_the_old_bundle(tmp_path: Path) -> None:
    """A file that cannot be written ends the preparation. The bundle to be replaced stays unchanged."""
    _prepare(tmp_path / "b")
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    source = edgepeft.Source(Tied(), IDS, "causal_lm", files={"no/such/folder.json": b"{}"})
    with pytest.raises(EdgepeftError, match="folder") as failure:
        edgepeft.prepare(source, out=tmp_path / "b", overwrite=True)
    assert failure.value.code == "cannot-write-file"
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_bundle_is_not_overwritten_unasked(bundle: Path) -> None:
    """There is a bundle: refused before the model is exported, and named."""
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(BundleError) as failure:
        _prepare(bundle)
    assert failure.value.code == "bundle-exists"
    assert (bundle / "manifest.json").read_bytes() == before


def test_what_is_no_bundle_is_never_overwritten(tmp_path: Path) -> None:
    """A folder with other things in it, or a file, is kept even with ``overwrite``."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"2")
    for name in ("photos", "file"):
        with pytest.raises(BundleError) as failure:
            _prepare(tmp_path / name, overwrite=True)
        assert failure.value.code == "not-a-bundle"
    assert (tmp_path / "photos" / "one.jpg").read_bytes() == b"1"


def test_a_link_to_a_bundle_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    """It is refused before the model is exported. Otherwise the link or its bundle would be lost."""
    (tmp_path / "link").symlink_to(bundle)
    with pytest.raises(EdgepeftError) as failure:
        _prepare(tmp_path / "link", overwrite=True)
    assert failure.value.code == "not-a-folder" and (tmp_path / "link").is_symlink()


def test_overwriting_replaces_all_of_it(tmp_path: Path) -> None:
    """Files of the old bundle that the new one does not have are gone, and an empty folder counts as nothing."""
    (tmp_path / "b").mkdir()
    source = edgepeft.Source(Tied(), IDS, "causal_lm", files={"tokenizer.json": b"{}"})
    edgepeft.prepare(source, out=tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.json").is_file()
    _prepare(tmp_path / "b", overwrite=True)
    assert not (tmp_path / "b" / "tokenizer.json").exists()
    assert Bundle.open(tmp_path / "b").manifest.parameters
