"""Builds a real bundle by hand: a frozen layer, a trainable classifier, cross-entropy and its gradient, AdamW or SGD.

``h = tanh(x @ base)``, ``logits = h @ head.weight * head.scale + head.bias``; x float32 [batch, 4], three classes,
labels int64 [batch] with -100 for what does not count. ``base`` lies in weights.bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepeft_runtime.bundle.bundle import ADAPTER
from edgepeft_runtime.bundle.folder import listed
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.program_checks import WEIGHTS
from edgepeft_runtime.bundle.programs import Accumulation, Call, Programs
from edgepeft_runtime.bundle.specs import (
    Bucket,
    Dimension,
    FrozenSpec,
    LabelSpec,
    ListedFile,
    LossSpec,
    OptimizerSpec,
    ParameterSpec,
    TensorSpec,
)
from edgepeft_runtime.files.tensorfile import write_tensors

INPUTS = (TensorSpec("x", "float32", ("batch", 4)),)
LABELS = (LabelSpec("labels", "int64", ("batch",), 3, -100),)
OUTPUTS = (TensorSpec("logits", "float32", ("batch", 3)),)
PARAMETERS = (
    ParameterSpec("head.weight", "float32", (6, 3), "head"),
    ParameterSpec("head.scale", "float32", (), "other"),
    ParameterSpec("head.bias", "float32", (3,), "bias"),
)
BUCKETS = (Bucket("decay", 18, ("head.weight",), True), Bucket("plain", 4, ("head.scale", "head.bias"), False))
ACCUMULATORS = tuple(TensorSpec(bucket.name, "float32", (bucket.size,)) for bucket in BUCKETS)
LOSS = (TensorSpec("loss_sum", "float32", ()), TensorSpec("loss_weight", "float32", ()))
SCALARS = tuple(TensorSpec(n, d, ()) for n, d in (("lr", "float32"), ("step", "int64"), ("grad_scale", "float32")))
NORM = TensorSpec("grad_norm", "float32", ())
GRAPHS = ("train.onnx", "optimizer.onnx", "eval.onnx", "infer.onnx")
PROGRAMS = Programs(
    (Call("train.onnx", accumulate=tuple(Accumulation(f"{b.name}.gradient", b.name) for b in BUCKETS)),),
    (Call("eval.onnx"),),
    (Call("infer.onnx"),),
)
CLASSES = ("low", "middle", "high")


class Graph:
    """An ONNX graph under construction: each call appends a node and returns the name of its output.

    Nodes are named after ``scope``, which may change.
    """

    def __init__(self, scope: str = "node") -> None:
        self.scope = scope
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: str, called: str | None = None, **attributes: object) -> str:
        output = called or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{self.scope}/{output}", **attributes))
        return output

    def constant(self, value: object, dtype: str = "float32") -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def save(self, path: Path, inputs: list[TensorSpec], outputs: list[TensorSpec], external: bool = True) -> None:
        if external:
            self.constants.append(external_tensor())
        graph = helper.make_graph(self.nodes, path.stem, _infos(inputs), _infos(outputs), self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path))


def build(path: Path, *, optimizer: str = "adamw", seed: int = 7, provenance: dict[str, object] | None = None) -> Path:
    """Write a bundle and return its path. Another ``seed`` gives another base and another adapter."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    path.joinpath(WEIGHTS).write_bytes(rng.normal(size=(4, 6)).astype(np.float32).tobytes())
    adapter = {
        "head.weight": rng.normal(scale=0.1, size=(6, 3)).astype(np.float32),
        "head.scale": np.asarray(1.0, np.float32),
        "head.bias": np.zeros(3, np.float32),
    }
    write_tensors(path / ADAPTER, adapter)
    _train(path / "train.onnx")
    _eval(path / "eval.onnx", loss=True)
    _eval(path / "infer.onnx", loss=False)
    state = _adamw(path / "optimizer.onnx") if optimizer == "adamw" else _sgd(path / "optimizer.onnx")
    files = {name: listed(path / name) for name in (*GRAPHS, WEIGHTS, ADAPTER)}
    made = manifest(
        files,
        optimizer=OptimizerSpec(optimizer, 0.05, {"weight_decay": 0.01}, tuple(state)),
        provenance=provenance if provenance is not None else {"method": "head", "rate": 0.1, "note": "größer"},
    )
    path.joinpath("manifest.json").write_text(made.to_json(), encoding="utf-8")
    return path


def manifest(files: dict[str, ListedFile], **parts: Any) -> Manifest:
    """The manifest of a bundle with these files, and other parts than those of ``build``."""
    own = {
        "min_onnxruntime": "1.19",
        "base_sha256": files[WEIGHTS].sha256,
        "files": files,
        "dimensions": {"batch": Dimension(1, 64)},
        "inputs": INPUTS,
        "labels": LABELS,
        "outputs": OUTPUTS,
        "parameters": PARAMETERS,
        "frozen": (FrozenSpec("base", "float32", (4, 6), 96, 0),),
        "buckets": BUCKETS,
        "loss": LossSpec("cross_entropy", {"label_smoothing": 0.0}),
        "programs": PROGRAMS,
        "classes": CLASSES,
    }
    return Manifest(**{**own, **parts})


def examples(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Examples that can be learnt: the label says which of three sums of the inputs is the largest."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    return {"x": x, "labels": np.argmax(x[:, :3] + 0.5 * x[:, 3:], axis=1).astype(np.int64)}


def _forward(graph: Graph) -> tuple[str, str]:
    """Writes logits; returns the hidden layer and its product with the weight, before the scale."""
    hidden = graph("Tanh", graph("MatMul", "x", "base"))
    return hidden, head(graph, hidden)


def head(graph: Graph, hidden: str) -> str:
    """Writes logits; returns the product of the hidden layer with the weight, before the scale."""
    product = graph("MatMul", hidden, "head.weight")
    graph("Add", graph("Mul", product, "head.scale"), "head.bias", called="logits")
    return product


def loss_terms(graph: Graph) -> tuple[str, str]:
    """Write loss_sum and loss_weight; return the targets as one-hot rows and the mask [batch, 1] of counted rows."""
    counts = graph("Not", graph("Equal", "labels", graph.constant(-100, "int64")))
    mask = graph("Unsqueeze", graph("Cast", counts, to=TensorProto.FLOAT), graph.constant([1], "int64"))
    classes = graph("Where", counts, "labels", graph.constant(0, "int64"))
    rows = graph("OneHot", classes, graph.constant(3, "int64"), graph.constant([0.0, 1.0]))
    target = graph("Mul", rows, mask)
    chosen = graph("Mul", target, graph("LogSoftmax", "logits", axis=-1))
    graph("Neg", graph("ReduceSum", chosen, keepdims=0), called="loss_sum")
    graph("ReduceSum", mask, keepdims=0, called="loss_weight")
    return target, mask


def _eval(path: Path, loss: bool) -> None:
    graph = Graph()
    _forward(graph)
    if not loss:
        graph.save(path, [*INPUTS, *PARAMETERS], [*OUTPUTS])
        return
    loss_terms(graph)
    graph.save(path, [*INPUTS, *LABELS, *PARAMETERS], [*LOSS, *OUTPUTS])


def _train(path: Path) -> None:
    graph = Graph()
    head_gradients(graph, *_forward(graph), "decay.gradient", "plain.gradient")
    gradients = [replace(spec, name=f"{spec.name}.gradient") for spec in ACCUMULATORS]
    graph.save(path, [*INPUTS, *LABELS, *PARAMETERS], [*LOSS, *gradients])


def head_gradients(graph: Graph, hidden: str, product: str, of_weight: str, of_rest: str) -> str:
    """Writes the loss and two flat gradients; returns the gradient of the product."""
    target, mask = loss_terms(graph)
    upstream = graph("Sub", graph("Mul", graph("Softmax", "logits", axis=-1), mask), target)
    scaled = graph("Mul", upstream, "head.scale")
    weight = graph("MatMul", graph("Transpose", hidden, perm=[1, 0]), scaled)
    scale = graph("ReduceSum", graph("Mul", upstream, product), keepdims=0)
    bias = graph("ReduceSum", upstream, graph.constant([0], "int64"), keepdims=0)
    flat = graph.constant([-1], "int64")
    graph("Reshape", weight, flat, called=of_weight)
    graph("Concat", graph("Reshape", scale, flat), bias, axis=0, called=of_rest)
    return scaled


def _scaled_gradients(graph: Graph) -> dict[str, str]:
    """Writes grad_norm; returns the scaled gradient of each bucket."""
    scaled = {bucket.name: graph("Mul", bucket.name, "grad_scale") for bucket in BUCKETS}
    squares = [graph("ReduceSum", graph("Mul", name, name), keepdims=0) for name in scaled.values()]
    graph("Sqrt", graph("Add", *squares), called="grad_norm")
    return scaled


def _flat_parameters(graph: Graph, bucket: Bucket) -> str:
    flat = graph.constant([-1], "int64")
    return graph("Concat", *[graph("Reshape", name, flat) for name in bucket.members], axis=0)


def _unflatten(graph: Graph, bucket: Bucket, flat: str) -> None:
    start, specs = 0, {spec.name: spec for spec in PARAMETERS}
    for name in bucket.members:
        stop = start + specs[name].size
        part = graph("Slice", flat, graph.constant([start], "int64"), graph.constant([stop], "int64"))
        graph("Reshape", part, graph.constant(list(specs[name].sizes), "int64"), called=f"{name}.next")
        start = stop


def _sgd(path: Path) -> list[TensorSpec]:
    graph = Graph()
    for name, gradient in _scaled_gradients(graph).items():
        bucket = next(bucket for bucket in BUCKETS if bucket.name == name)
        change = graph("Mul", gradient, "lr")
        _unflatten(graph, bucket, graph("Sub", _flat_parameters(graph, bucket), change))
    graph.save(path, [*PARAMETERS, *ACCUMULATORS, *SCALARS], [*_next(PARAMETERS), NORM], external=False)
    return []


def _adamw(path: Path) -> list[TensorSpec]:
    """AdamW with betas (0.9, 0.999), eps 1e-8 and weight decay 0.01 on buckets that ask for it."""
    graph = Graph()
    state = [TensorSpec(f"{bucket.name}.{moment}", "float32", (bucket.size,)) for bucket in BUCKETS for moment in "mv"]
    count = graph("Cast", "step", to=TensorProto.FLOAT)
    one = graph.constant(1.0)
    for name, gradient in _scaled_gradients(graph).items():
        bucket = next(bucket for bucket in BUCKETS if bucket.name == name)
        moments = []
        for moment, beta, value in (("m", 0.9, gradient), ("v", 0.999, graph("Mul", gradient, gradient))):
            old = graph("Mul", f"{name}.{moment}", graph.constant(beta))
            new = graph("Add", old, graph("Mul", value, graph.constant(1 - beta)), called=f"{name}.{moment}.next")
            moments.append(graph("Div", new, graph("Sub", one, graph("Pow", graph.constant(beta), count))))
        change = graph("Div", moments[0], graph("Add", graph("Sqrt", moments[1]), graph.constant(1e-8)))
        flat = _flat_parameters(graph, bucket)
        if bucket.decay:
            change = graph("Add", change, graph("Mul", flat, graph.constant(0.01)))
        _unflatten(graph, bucket, graph("Sub", flat, graph("Mul", change, "lr")))
    fed = [*PARAMETERS, *ACCUMULATORS, *state, *SCALARS]
    graph.save(path, fed, [*_next(PARAMETERS), *_next(state), NORM], external=False)
    return state


def _next(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [TensorSpec(f"{spec.name}.next", spec.dtype, spec.shape) for spec in specs]


def _infos(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    return [helper.make_tensor_value_info(spec.name, kinds[spec.dtype], spec.shape) for spec in specs]


def external_tensor(location: str = WEIGHTS) -> onnx.TensorProto:
    """The frozen matrix as a tensor whose bytes are in another file."""
    tensor = TensorProto(name="base", data_type=TensorProto.FLOAT, dims=(4, 6))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "96")):
        tensor.external_data.add(key=key, value=value)
    return tensor
