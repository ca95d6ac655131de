"""The identity of a base: the same for all bundles of a source, different for every other source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.compress import Pruning
from edgepeft_export.compile import compile_step
from edgepeft_export.forward import from_torch
from edgepeft_export.forward.identity import SourceTensor, base_sha256
from edgepeft_export.losses import CrossEntropy
from edgepeft_export.optimizers import SGD
from edgepeft_export.quantize import Quantization
from edgepeft_runtime.bundle.bundle import Bundle

EXAMPLE = {"input": torch.randn(2, 64, generator=torch.Generator().manual_seed(1))}


def network(seed: int = 0) -> nn.Module:
    """Two linear layers, the first large enough to be quantized, and running statistics."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 3)).eval()


def prepared(out: Path, model: Any = None, **settings: Any) -> Bundle:
    """Prepare a bundle with LoRA on the first layer, with the same initial values each time."""
    torch.manual_seed(5)
    method = edgepeft.Lora(rank=settings.pop("rank", 2), target_modules=("0",), modules_to_save=("3",))
    made = edgepeft.prepare(network() if model is None else model, EXAMPLE, method=method, out=out, **settings)
    return Bundle.open(made.bundle)


def test_a_base_is_the_hash_that_the_spec_describes() -> None:
    """Canonical JSON in the order of names, without parameters."""
    zeros = "cd" * 32
    source = (SourceTensor("é", "float32", (2, 3), zeros), SourceTensor("a", "int64", (), zeros))
    text = f'[["a","int64",[],"{zeros}"],["é","float32",[2,3],"{zeros}"]]\n'
    assert base_sha256((*source, SourceTensor("b", "float32", (1,), zeros)), {"b"}) == sha256(text)


def sha256(text: str) -> str:
    """The hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle in fp32."""
    return prepared(tmp_path_factory.mktemp("base") / "whole")


@pytest.mark.parametrize(("compute", "rank"), [("int8", 2), ("int4", 4), (Quantization(codebook=16), 2)])
def test_quantized_bundles_are_of_one_base(compute: Any, rank: int, whole: Bundle, tmp_path: Path) -> None:
    """Bundles of any precision and rank have one base, though weights and graphs differ."""
    other = prepared(tmp_path / "other", compute=compute, rank=rank)
    assert other.base_sha256 == whole.base_sha256
    assert other.graphs_sha256 != whole.graphs_sha256


def test_the_compiler_does_not_change_a_base() -> None:
    """A graph whose tensors are renamed and transposed compiles to the same base."""
    forward = from_torch(network().requires_grad_(False).append(nn.Linear(3, 3)), EXAMPLE)
    model = forward.model.clone()
    for value in list(model.graph.initializers.values()):
        value.name = f"{value.name}.renamed"
    model.graph.opset_imports[""] = 21
    compiled = [compile_step(f, CrossEntropy(), SGD(lr=0.1)) for f in (forward, replace(forward, model=model))]
    assert compiled[0].base_sha256 == compiled[1].base_sha256


def _changed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters())[3, 5] += 1e-6
    return model


def _statistics(model: nn.Module) -> nn.Module:
    model[1].running_mean += 1  # type: ignore[index, operator]  # a Sequential with a BatchNorm1d
    return model


@pytest.mark.parametrize("change", [_changed, _statistics])
def test_another_weight_is_another_base(
    change: Callable[[nn.Module], nn.Module], whole: Bundle, tmp_path: Path
) -> None:
    """Changing one element of a weight, or a running statistic, changes the base."""
    assert prepared(tmp_path / "other", change(network())).base_sha256 != whole.base_sha256


def test_pruning_is_part_of_a_base(whole: Bundle, tmp_path: Path) -> None:
    """A pruned model is another base."""
    pruned = prepared(tmp_path / "pruned", compression=edgepeft.Compression(Pruning(weights=0.5)))
    assert pruned.base_sha256 != whole.base_sha256


def test_trained_weights_are_not_part_of_a_base(whole: Bundle, tmp_path: Path) -> None:
    """Another head, which trains, leaves the base as it is."""
    head = network()
    with torch.no_grad():
        head[3].weight += 1  # type: ignore[index, operator]
    assert prepared(tmp_path / "head", head).base_sha256 == whole.base_sha256


def test_a_file_has_the_base_of_its_initializers(tmp_path: Path) -> None:
    """Neither the loss nor quantization changes it; another weight does."""
    torch.onnx.export(network(), (EXAMPLE["input"],), tmp_path / "m.onnx", dynamo=False, verbose=False)
    model = onnx.load(tmp_path / "m.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "0.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    bases = [
        Bundle.open(
            edgepeft.prepare(
                tmp_path / file, out=tmp_path / f"{i}", trainable=["3.*"], loss=loss, compute=compute
            ).bundle
        ).base_sha256
        for i, (file, loss, compute) in enumerate(
            [("m.onnx", "cross_entropy", "fp32"), ("m.onnx", "mse", "int8"), ("other.onnx", "mse", "fp32")]
        )
    ]
    assert bases[0] == bases[1] != bases[2]
