"""Layers no wider than the rank of their pairs: A B and B A both exist, and the declared layout selects one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from peft import PeftModel
from torch import nn

import edgepeft
from edgepeft.aggregation import aggregate
from edgepeft.aggregation.pairs import PairTensors
from edgepeft.methods.lora import Lora
from edgepeft.methods.support.existing import attach
from edgepeft_runtime.bundle.bundle import Bundle
from tests.support.simulated_devices import Tensors, drifted, send

LAYERS = {"torch": ("torch", 4), "graph": ("graph", 8), "narrow graph": ("graph", 4)}
"""Layout and width of a square layer; all pairs have rank 8."""
RANK = 8


class Layer:
    """A bundle of one square linear layer, and the product of its pair as numpy computes it."""

    def __init__(self, folder: Path, layout: str, width: int) -> None:
        self.layout = layout
        self.weight = np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)
        self.x = np.random.default_rng(1).normal(size=(5, width)).astype(np.float32)
        source, example = self._torch() if layout == "torch" else self._file(folder / "layer.onnx")
        method = Lora(rank=RANK, target_modules=("0",) if layout == "torch" else ("layer",))
        prepared = edgepeft.prepare(source, example, method=method, loss="mse", out=folder / "bundle")
        self.bundle = Bundle.open(prepared.bundle)
        (self.pair,) = self.bundle.manifest.adapter.pairs

    def _torch(self) -> tuple[nn.Module, torch.Tensor]:
        torch.manual_seed(0)
        return self.model(), torch.from_numpy(self.x)

    def model(self) -> nn.Module:
        """The layer in torch."""
        layer = nn.Linear(*self.weight.shape, bias=False)
        layer.weight.data = torch.from_numpy(self.weight.T.copy())
        return nn.Sequential(layer)

    def _file(self, path: Path) -> tuple[Path, None]:
        width = len(self.weight)
        text = f"g (float[batch, {width}] x) => (float[batch, {width}] y) {{ y = MatMul(x, layer_weight) }}"
        graph = onnx.parser.parse_graph(text)
        graph.initializer.append(numpy_helper.from_array(self.weight, "layer_weight"))
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, path)
        return path, None

    def product(self, tensors: Tensors) -> np.ndarray:
        """The change of ``weight`` [in, out] without its scale, in float64."""
        a, b = tensors[self.pair.a].astype(np.float64), tensors[self.pair.b].astype(np.float64)
        return (b @ a).T if self.layout == "torch" else a @ b

    def outputs(self, product: np.ndarray) -> np.ndarray:
        """Return the layer's outputs with a product added to its weight."""
        return self.x @ (self.weight + self.pair.scale * product)


@pytest.fixture(scope="module", params=LAYERS)
def layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Layer:
    """Each of the layers."""
    return Layer(tmp_path_factory.mktemp("square"), *LAYERS[request.param])


KINDS = [
    ("torch", 1, (2, 4), (6, 2)),
    ("torch", 3, (6, 4, 3, 3), (9, 2, 1, 1)),
    ("experts", 3, (6, 4), (5, 6)),
    ("graph", 1, (4, 2), (2, 6)),
]


@pytest.mark.parametrize(("layout", "groups", "a_shape", "b_shape"), KINDS)
def test_factors_go_back_to_their_tensors(
    layout: str, groups: int, a_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> None:
    """In every layout, at the rank of the pair and stacked to twice of it."""
    pair = PairTensors("layer", "a", "b", layout, groups, 2, 1.0, a_shape, b_shape)
    draw = np.random.default_rng(0)
    tensors = {"a": draw.normal(size=a_shape), "b": draw.normal(size=b_shape)}
    b, a = pair.factors(tensors)
    back = pair.tensors((b, a))
    assert all(np.array_equal(back[name], array) for name, array in tensors.items())
    stacked = pair.tensors((np.concatenate([b, b], axis=2), np.concatenate([a, a], axis=1)))
    assert pair.rank_of(stacked) == 4
    twice_b, twice_a = pair.factors(stacked)
    assert np.allclose(twice_b @ twice_a, 2 * b @ a)


def test_the_declared_layout_is_that_of_the_method(layer: Layer) -> None:
    """Layout and rank are those of the attached pair, although shapes allow a smaller rank."""
    width = len(layer.weight)
    shapes = [array.shape for array in layer.bundle.adapter().values()]
    assert (layer.pair.layout, layer.pair.groups, layer.pair.rank) == (layer.layout, 1, RANK)
    assert shapes == ([(RANK, width), (width, RANK)] if layer.layout == "torch" else [(width, RANK), (RANK, width)])


def test_the_merge_error_is_that_of_the_products(layer: Layer, tmp_path: Path) -> None:
    """The merge error of ``fedavg`` is the one that numpy computes."""
    fleet = drifted(layer.bundle, 3, 0.3)
    mean = aggregate(layer.bundle, send(layer.bundle, fleet, tmp_path))
    exact = np.mean([layer.product(own) for own in fleet], axis=0)
    lost = np.linalg.norm(layer.product(mean.parameters) - exact)
    change = np.linalg.norm(exact - layer.product(layer.bundle.adapter()))
    assert mean.report.merge_error is not None and lost > 1e-3
    assert mean.report.merge_error.pairs[layer.pair.layer] == pytest.approx(lost / change, rel=1e-4)


@pytest.mark.parametrize("rule", ["svd", "stack"])
def test_product_rules_compute_the_mean_product(layer: Layer, rule: str, tmp_path: Path) -> None:
    """A pair of full rank has room for every mean, and so has a stack."""
    fleet = drifted(layer.bundle, 3, 0.3)
    found = aggregate(layer.bundle, send(layer.bundle, fleet, tmp_path), rule=rule)
    exact = np.mean([layer.product(own) for own in fleet], axis=0)
    assert np.allclose(layer.product(found.parameters), exact, atol=1e-5)
    merged = edgepeft.merge(layer.bundle, found.save(tmp_path / "r.safetensors"), to="onnx", out=tmp_path / "m.onnx")
    assert np.allclose(_run(merged, layer), layer.outputs(exact), atol=1e-4)


def test_one_update_merges_into_every_format(layer: Layer, tmp_path: Path) -> None:
    """ONNX, peft and torch give the outputs of the true product."""
    (own,) = drifted(layer.bundle, 1, 0.3)
    (update,) = send(layer.bundle, [own], tmp_path)
    expected = layer.outputs(layer.product(own))
    merged = edgepeft.merge(layer.bundle, update, to="onnx", out=tmp_path / "m.onnx")
    assert np.allclose(_run(merged, layer), expected, atol=1e-4)
    state = torch.load(edgepeft.merge(layer.bundle, update, to="torch", out=tmp_path / "state.pt"))
    assert all(np.array_equal(state[name].numpy(), array) for name, array in own.items())
    if layer.layout == "torch":
        adapter = edgepeft.merge(layer.bundle, update, to="peft", out=tmp_path / "adapter")
        attached = attach(Lora(rank=RANK, target_modules=("0",)), layer.model())
        attached.load_state_dict(state, strict=False)
        for model in (PeftModel.from_pretrained(layer.model(), adapter), attached):
            assert np.allclose(model.eval()(torch.from_numpy(layer.x)).detach(), expected, atol=1e-4)


def _run(path: Path, layer: Layer) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: layer.x})
    return np.asarray(found)
