"""The optimizer graph alone: its first steps, its buckets, its norm and its clipping, against torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from edgepeft_export.opset import assert_runs_on_devices
from edgepeft_export.optimizer_graph import ALONE, SMALL, Bucket, by_shape, optimizer_graph, plan_buckets, state_names
from edgepeft_export.optimizers import (
    OPTIMIZERS,
    SGD,
    AdamW,
    Lion,
    Optimizer,
    by_name,
)
from edgepeft_runtime.errors import SettingError

SHAPES = {
    "a.weight": (3, 4),
    "b.weight": (5, 4),
    "a.bias": (3,),
    "norm.weight": (4,),
    "kernel": (2, 1, 3, 3),
    "scale": (),
}
"""Two that are joined along an axis, and one of each other kind."""

Arrays = dict[str, NDArray[np.float32]]


class Machine:
    """Runs an optimizer graph as a device does: one update after the other."""

    def __init__(self, optimizer: Optimizer, parameters: Arrays) -> None:
        self.buckets = plan_buckets({name: array.shape for name, array in parameters.items()})
        self.parameters = dict(parameters)
        states = [(bucket, name) for bucket in self.buckets for name in state_names(optimizer, bucket)]
        self.state = {name: np.zeros(bucket.size, np.float32) for bucket, name in states}
        model = optimizer_graph(optimizer, self.buckets)
        assert_runs_on_devices(model)
        self._session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
        self._lr, self._step = optimizer.lr, 0

    def update(self, gradients: Arrays, grad_scale: float = 1.0) -> float:
        """Take one step; returns the norm of the scaled gradients."""
        self._step += 1
        scalars = {"lr": np.float32(self._lr), "grad_scale": np.float32(grad_scale), "step": np.int64(self._step)}
        flat = {
            bucket.name: np.concatenate([gradients[name].reshape(-1) for name in bucket.members])
            for bucket in self.buckets
        }
        fed = {**self.parameters, **self.state, **flat, **{name: np.asarray(value) for name, value in scalars.items()}}
        names = [output.name for output in self._session.get_outputs()]
        values = dict(zip(names, self._session.run(names, fed), strict=True))
        self.parameters = {name: values[f"{name}.next"] for name in self.parameters}
        self.state = {name: values[f"{name}.next"] for name in self.state}
        return float(values["grad_norm"])


def _draw(seed: int, scale: float = 1.0, shapes: Mapping[str, Sequence[int]] = SHAPES) -> Arrays:
    draw = np.random.default_rng(seed)
    return {name: np.asarray(draw.normal(scale=scale, size=shape), np.float32) for name, shape in shapes.items()}


def _torch(parameters: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array, requires_grad=True) for name, array in parameters.items()}


def _groups(tensors: Mapping[str, torch.Tensor], decay: float) -> list[dict[str, object]]:
    return [
        {"params": [t for t in tensors.values() if t.ndim > 1], "weight_decay": decay},
        {"params": [t for t in tensors.values() if t.ndim <= 1], "weight_decay": 0.0},
    ]


def _assert_same(machine: Machine, tensors: Mapping[str, torch.Tensor], rtol: float = 1e-5) -> None:
    for name, tensor in tensors.items():
        np.testing.assert_allclose(
            machine.parameters[name], tensor.detach().numpy(), rtol=rtol, atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-10, 1e-4, 1.0, 1e6])
def test_the_first_step_of_adamw_handles_gradients_of_any_size(scale: float) -> None:
    """Zero and tiny gradients neither divide by zero nor move a parameter further than torch's eps allows."""
    optimizer = AdamW(lr=0.1, weight_decay=0.2)
    parameters, gradients = _draw(0), _draw(1, scale)
    machine, tensors = Machine(optimizer, parameters), _torch(parameters)
    oracle = torch.optim.AdamW(_groups(tensors, 0.2), lr=0.1)
    for _ in range(2):
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name])
        oracle.step()
        machine.update(gradients)
        assert all(np.isfinite(array).all() for array in machine.parameters.values())
        _assert_same(machine, tensors)


CHOICES = {
    "adamw": (AdamW(lr=0.05, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.1), torch.optim.AdamW, {"eps": 1e-4}),
    "sgd": (SGD(lr=0.05, weight_decay=0.3), torch.optim.SGD, {}),
    "momentum": (SGD(lr=0.05, momentum=0.8, weight_decay=0.3), torch.optim.SGD, {"momentum": 0.8}),
    "nesterov": (SGD(lr=0.05, momentum=0.8, nesterov=True), torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
}


@pytest.mark.parametrize("name", CHOICES)
def test_fifty_steps_follow_torch(name: str) -> None:
    """Matrices, kernels, biases and scalars move as in torch, with other settings than the defaults."""
    ours, kind, settings = CHOICES[name]
    parameters = _draw(0)
    machine, tensors = Machine(ours, parameters), _torch(parameters)
    betas = {"betas": ours.betas} if isinstance(ours, AdamW) else {}
    oracle = kind(_groups(tensors, ours.weight_decay), lr=0.05, **betas, **settings)
    for step in range(50):
        gradients = _draw(step + 1)
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[key])
        oracle.step()
        machine.update(gradients)
    _assert_same(machine, tensors, rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_spares_biases_norms_and_scalars(name: str) -> None:
    """Without a gradient, matrices shrink by lr · decay and all else stays to the bit."""
    optimizer = AdamW(lr=0.1, weight_decay=0.5) if name == "adamw" else SGD(lr=0.1, weight_decay=0.5)
    parameters = _draw(0)
    machine = Machine(optimizer, parameters)
    machine.update({key: np.zeros_like(array) for key, array in parameters.items()})
    for key, before in parameters.items():
        if before.ndim > 1:
            np.testing.assert_allclose(machine.parameters[key], 0.95 * before, rtol=1e-6)
        else:
            np.testing.assert_array_equal(machine.parameters[key], before)


def test_the_norm_is_of_scaled_gradients_before_clipping() -> None:
    """``grad_norm`` is the global L2 norm over all buckets, times ``grad_scale``, whether or not it is clipped."""
    parameters, gradients = _draw(0), _draw(1)
    expected = 0.25 * float(np.sqrt(sum(float((array**2).sum()) for array in gradients.values())))
    for clip in (None, 1e-3, 1e3):
        machine = Machine(SGD(max_grad_norm=clip), parameters)
        assert machine.update(gradients, grad_scale=0.25) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clip", [0.1, 1.0, 100.0])
def test_clipping_is_that_of_torch(clip: float) -> None:
    """A larger norm is scaled down to the limit; a smaller one is left alone."""
    parameters, gradients = _draw(0), _draw(1)
    machine, tensors = Machine(SGD(lr=1.0, max_grad_norm=clip), parameters), _torch(parameters)
    for name, tensor in tensors.items():
        tensor.grad = torch.tensor(gradients[name]) * 0.5
    torch.nn.utils.clip_grad_norm_(tensors.values(), clip)
    torch.optim.SGD(tensors.values(), lr=1.0).step()
    machine.update(gradients, grad_scale=0.5)
    _assert_same(machine, tensors)


def test_clipping_leaves_gradients_of_zero_alone() -> None:
    """A norm of zero is not divided by."""
    parameters = _draw(0)
    machine = Machine(AdamW(max_grad_norm=1.0, weight_decay=0.0), parameters)
    assert machine.update({name: np.zeros_like(array) for name, array in parameters.items()}) == 0.0
    for name, array in parameters.items():
        np.testing.assert_array_equal(machine.parameters[name], array)


# Buckets


def test_small_parameters_share_a_bucket_by_decay() -> None:
    """Two buckets, in the order of their first members, however many parameters there are."""
    decayed, spared = plan_buckets(SHAPES)
    assert (decayed.members, decayed.decay, decayed.size) == (("a.weight", "b.weight", "kernel"), True, 50)
    assert (spared.members, spared.decay, spared.size) == (("a.bias", "norm.weight", "scale"), False, 8)


def test_large_parameters_are_alone() -> None:
    """A parameter of 2^20 elements has a bucket of its own, one of a single element fewer does not."""
    names = {
        bucket.members for bucket in plan_buckets({"a": (ALONE,), "b": (1024, 1024), "c": (ALONE - 1,), "d": (3,)})
    }
    assert names == {("a",), ("b",), ("c", "d")}


def test_parameters_can_be_spared_by_name() -> None:
    """``no_decay`` moves a matrix to the bucket without weight decay."""
    buckets = plan_buckets({"embedding": (9, 4), "weight": (4, 4)}, no_decay=["embedding"])
    assert {bucket.members: bucket.decay for bucket in buckets} == {("embedding",): False, ("weight",): True}


def test_the_graph_grows_with_buckets_not_with_parameters() -> None:
    """Fifty pairs and biases need no more nodes than two: sorted, they are joined and divided by their widths."""

    def nodes(count: int) -> int:
        kinds = {"a": (4, 9), "b": (9, 4), "bias": (9,)}
        shapes = {f"{kind}.{i}": shape for i in range(count) for kind, shape in kinds.items()}
        return len(list(optimizer_graph(AdamW(), plan_buckets(by_shape(shapes))).graph))

    assert nodes(50) == nodes(2)


def test_a_larger_tensor_is_flattened_alone() -> None:
    """Between small ones of its width, it keeps its values."""
    parameters = _draw(0, shapes={"a": (2, 1), "tall": (SMALL + 1, 1), "b": (3, 1), "c": (1, 1)})
    machine = Machine(SGD(lr=0.5), parameters)
    machine.update(parameters)
    for name, before in parameters.items():
        np.testing.assert_array_equal(machine.parameters[name], 0.5 * before)


def test_graphs_name_state_by_bucket() -> None:
    """The state of bucket 1 is ``exp_avg.1`` and ``exp_avg_sq.1``; SGD without momentum keeps none."""
    bucket = Bucket("gradients.1", ("a",), ((2,),), decay=False)
    assert state_names(AdamW(), bucket) == ["exp_avg.1", "exp_avg_sq.1"]
    assert state_names(SGD(momentum=0.9), bucket) == ["momentum_buffer.1"]
    assert state_names(SGD(), bucket) == []


# Settings


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (AdamW, {"lr": -1e-3}),
        (AdamW, {"lr": float("nan")}),
        (AdamW, {"betas": (1.0, 0.999)}),
        (AdamW, {"betas": (0.9, -0.1)}),
        (AdamW, {"eps": 0.0}),
        (AdamW, {"weight_decay": -0.1}),
        (AdamW, {"max_grad_norm": 0.0}),
        (SGD, {"lr": float("inf")}),
        (SGD, {"momentum": 1.0}),
        (SGD, {"momentum": -0.5}),
        (SGD, {"weight_decay": -0.1}),
        (SGD, {"max_grad_norm": -1.0}),
        (SGD, {"nesterov": True}),
    ],
)
def test_settings_out_of_range_are_refused_when_they_are_made(
    kind: type[AdamW] | type[SGD], settings: dict[str, object]
) -> None:
    """The error names the setting and its value, before any graph is built."""
    with pytest.raises(SettingError) as failure:
        kind(**settings)  # type: ignore[arg-type]
    assert failure.value.code == "bad-setting"
    assert next(iter(settings)) in str(failure.value) or "momentum" in str(failure.value)


def test_an_unknown_name_lists_those_that_exist() -> None:
    """An optimizer that does not exist is refused with the names of those that do."""
    with pytest.raises(SettingError) as failure:
        by_name("adam")
    assert failure.value.code == "unknown-name"
    assert ", ".join(OPTIMIZERS) in str(failure.value)


@pytest.mark.parametrize("inner", [SGD(lr=0.1, momentum=0.9), AdamW(lr=0.01)], ids=["sgd", "adamw"])
def test_a_fraction_is_applied_and_the_rest_is_carried_over(inner: Optimizer) -> None:
    """Ten steps agree with torch's optimizer fed the largest quarter of gradient plus memory, bucket by bucket."""
    draw = np.random.default_rng(0)
    parameters = {name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    machine = Machine(replace(inner, gradient_fraction=0.25), parameters)
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in parameters.items()}
    groups = [
        {"params": [tensors[name] for name in b.members], "weight_decay": inner.weight_decay if b.decay else 0.0}
        for b in machine.buckets
    ]
    oracle = (
        torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        if isinstance(inner, SGD)
        else torch.optim.AdamW(groups, lr=0.01, eps=inner.eps)
    )
    memory = {bucket.name: torch.zeros(bucket.size) for bucket in machine.buckets}
    for _ in range(10):
        gradients = {name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        machine.update(gradients)
        for bucket in machine.buckets:
            total = memory[bucket.name] + torch.cat([torch.tensor(gradients[n]).reshape(-1) for n in bucket.members])
            kept = total.abs().topk(round(0.25 * bucket.size)).indices
            applied = torch.zeros_like(total).scatter(0, kept, total[kept])
            memory[bucket.name] = total - applied
            for name, part in zip(bucket.members, applied.split(bucket.sizes), strict=True):
                tensors[name].grad = part.reshape(tensors[name].shape).clone()
        oracle.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(machine.parameters[name], tensor.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert all(np.any(state) for name, state in machine.state.items() if name.startswith("residual"))


def test_a_fraction_out_of_range_is_refused() -> None:
    """Nothing at all cannot be applied."""
    with pytest.raises(SettingError, match="gradient_fraction"):
        SGD(gradient_fraction=0.0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lion_does_the_paper_s_steps(decay: float) -> None:
    """Ten updates agree with algorithm 2 of arXiv:2302.06675; biases and scales are spared weight decay."""
    draw = np.random.default_rng(1)
    parameters = {name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    machine = Machine(Lion(lr=0.02, weight_decay=decay, betas=(0.8, 0.95)), parameters)
    tensors = {name: torch.tensor(array) for name, array in parameters.items()}
    momenta = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    for _ in range(10):
        gradients = {name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        machine.update(gradients)
        for name, x in tensors.items():
            g, m = torch.tensor(gradients[name]), momenta[name]
            c = 0.8 * m + (1 - 0.8) * g
            wanted = c.sign() + (decay if x.ndim > 1 else 0.0) * x
            tensors[name], momenta[name] = x - 0.02 * wanted, 0.95 * m + (1 - 0.95) * g
    for name, tensor in tensors.items():
        np.testing.assert_allclose(machine.parameters[name], tensor.numpy(), rtol=1e-5, atol=1e-6)
    assert [name.partition(".")[0] for name in machine.state] == ["exp_avg", "exp_avg"]
