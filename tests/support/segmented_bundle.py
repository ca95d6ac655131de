"""Builds a bundle by hand whose programs have several calls, which share graphs and read frozen tensors as inputs.

``h0 = tanh(x @ base)``, twice ``h = tanh(h @ block.weight + block.bias)``, then the head and loss of the tiny bundle.
The biases, the head and its scale train. Nothing below ``h0`` trains, so it is the value that may be cached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from edgepeft_export.optimizer_graph import Bucket, optimizer_graph, state_names
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime.bundle.bundle import ADAPTER
from edgepeft_runtime.bundle.folder import listed
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.program_checks import ALIGNMENT, WEIGHTS
from edgepeft_runtime.bundle.programs import Accumulation, CacheEntry, Call, Programs
from edgepeft_runtime.bundle.specs import Bucket as BucketSpec
from edgepeft_runtime.bundle.specs import FrozenSpec, OptimizerSpec, ParameterSpec, TensorSpec
from edgepeft_runtime.files.tensorfile import read_tensors, write_tensors
from tests.support import tiny_bundle
from tests.support.tiny_bundle import INPUTS, LABELS, LOSS, OUTPUTS, Graph

BLOCKS = ("block.0", "block.1")
FROZEN = {"base": (4, 6), **{f"{name}.weight": (6, 6) for name in BLOCKS}}
PARAMETERS = (*(ParameterSpec(f"{name}.bias", "float32", (6,), "bias") for name in BLOCKS), *tiny_bundle.PARAMETERS)
HEAD = tuple(spec for spec in PARAMETERS if spec.name.startswith("head"))
PLAIN = (*(f"{name}.bias" for name in BLOCKS), "head.scale", "head.bias")
BUCKETS = (
    Bucket("gradients.0", ("head.weight",), ((6, 3),), True),
    Bucket("gradients.1", PLAIN, ((6,), (6,), (), (3,)), False),
)
OPTIMIZER = AdamW(lr=0.05, weight_decay=0.01)
START, FORWARD, BACKWARD = "segments/start.onnx", "segments/block.forward.onnx", "segments/block.backward.onnx"
HEADS = {kind: f"segments/head.{kind}.onnx" for kind in ("train", "eval", "infer")}
HIDDEN = TensorSpec("h", "float32", ("batch", 6))


def build(path: Path, *, seed: int = 7) -> Path:
    """Write a bundle and return its path."""
    path.joinpath("segments").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in FROZEN.items()}
    path.joinpath(WEIGHTS).write_bytes(b"".join(array.tobytes().ljust(ALIGNMENT, b"\0") for array in arrays.values()))
    adapter = {spec.name: rng.normal(scale=0.3, size=spec.sizes).astype(np.float32) for spec in PARAMETERS}
    write_tensors(path / ADAPTER, adapter)
    _write_graphs(path)
    path.joinpath("manifest.json").write_text(_manifest(path, arrays).to_json(), encoding="utf-8")
    return path


def programs() -> Programs:
    """Blocks run the same two graphs. Nobody reads the gradient of the lower block's input."""
    forward = (
        Call(START, outputs={"h": "h0"}),
        *(Call(FORWARD, _block(index), {"y": f"h{index + 1}"}) for index in range(len(BLOCKS))),
    )
    sums = (Accumulation("head.weight.gradient", "gradients.0"), Accumulation("rest.gradient", "gradients.1", 12))
    head = Call(HEADS["train"], {"h": "h2"}, {"dh": "dh2"}, sums)
    backward = (
        Call(
            BACKWARD,
            {**_block(index), "dy": f"dh{index + 1}"},
            {"dx": f"dh{index}"},
            (Accumulation("bias.gradient", "gradients.1", 6 * index),),
        )
        for index in reversed(range(len(BLOCKS)))
    )
    evaluate, infer = (Call(HEADS[kind], {"h": "h2"}) for kind in ("eval", "infer"))
    return Programs((*forward, head, *backward), (*forward, evaluate), (*forward, infer))


def torch_losses(path: Path, batches: list[dict[str, np.ndarray]]) -> tuple[list[float], list[np.ndarray]]:
    """Losses and final parameters of the same model trained by torch."""
    stored = np.fromfile(path / WEIGHTS, np.float32)
    frozen = {
        name: torch.from_numpy(stored[1024 * index :][: math.prod(shape)].reshape(shape))
        for index, (name, shape) in enumerate(FROZEN.items())
    }
    arrays = read_tensors(path / ADAPTER).tensors
    values = {spec.name: torch.nn.Parameter(torch.from_numpy(arrays[spec.name].copy())) for spec in PARAMETERS}
    groups = [
        {"params": [values[name] for name in bucket.members], "weight_decay": 0.01 if bucket.decay else 0.0}
        for bucket in BUCKETS
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=OPTIMIZER.lr), []
    for batch in batches:
        h = torch.tanh(torch.from_numpy(batch["x"]) @ frozen["base"])
        for name in BLOCKS:
            h = torch.tanh(h @ frozen[f"{name}.weight"] + values[f"{name}.bias"])
        logits = h @ values["head.weight"] * values["head.scale"] + values["head.bias"]
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["labels"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [value.detach().numpy() for value in values.values()]


def _block(index: int) -> dict[str, str]:
    return {"h": f"h{index}", "weight": f"{BLOCKS[index]}.weight", "bias": f"{BLOCKS[index]}.bias"}


def _write_graphs(path: Path) -> None:
    matrix, bias = TensorSpec("weight", "float32", ("rows", "columns")), TensorSpec("bias", "float32", (6,))
    graph = Graph()
    graph("Tanh", graph("MatMul", "x", "base"), called="h")
    graph.save(path / START, [*INPUTS, replace(matrix, name="base")], [HIDDEN], external=False)
    _write_blocks(path, matrix, bias)
    graph = Graph()
    names = "head.weight.gradient", "rest.gradient"
    upstream = tiny_bundle.head_gradients(graph, "h", tiny_bundle.head(graph, "h"), *names)
    graph("MatMul", upstream, graph("Transpose", "head.weight", perm=[1, 0]), called="dh")
    gradients = [TensorSpec(name, "float32", (size,)) for name, size in zip(names, (18, 4), strict=True)]
    outputs = [*LOSS, replace(HIDDEN, name="dh"), *gradients]
    graph.save(path / HEADS["train"], [HIDDEN, *LABELS, *HEAD], outputs, external=False)
    for kind, labels, loss in (("eval", LABELS, LOSS), ("infer", (), ())):
        graph = Graph()
        tiny_bundle.head(graph, "h")
        if labels:
            tiny_bundle.loss_terms(graph)
        graph.save(path / HEADS[kind], [HIDDEN, *labels, *HEAD], [*loss, *OUTPUTS], external=False)
    ir.save(optimizer_graph(OPTIMIZER, BUCKETS), path / "optimizer.onnx")


def _write_blocks(path: Path, matrix: TensorSpec, bias: TensorSpec) -> None:
    """``y = tanh(h @ weight + bias)``, and from ``dy`` the gradients of ``h`` and ``bias``."""
    inputs, y = [HIDDEN, matrix, bias], replace(HIDDEN, name="y")
    graph = Graph("block.0")
    graph("Tanh", graph("Add", graph("MatMul", "h", "weight"), "bias"), called="y")
    graph.save(path / FORWARD, inputs, [y], external=False)
    graph = Graph("block.0")
    again = graph("Tanh", graph("Add", graph("MatMul", "h", "weight"), "bias"))
    graph.scope = "block.0/grad"
    derivative = graph("Sub", graph.constant(1.0), graph("Mul", again, again))
    inner = graph("Mul", "dy", derivative)
    graph("MatMul", inner, graph("Transpose", "weight", perm=[1, 0]), called="dx")
    graph("ReduceSum", inner, graph.constant([0], "int64"), keepdims=0, called="bias.gradient")
    outputs = [replace(HIDDEN, name="dx"), replace(bias, name="bias.gradient")]
    graph.save(path / BACKWARD, [*inputs, replace(HIDDEN, name="dy")], outputs, external=False)


def _manifest(path: Path, frozen: Mapping[str, np.ndarray]) -> Manifest:
    state = [TensorSpec(name, "float32", (b.size,)) for b in BUCKETS for name in state_names(OPTIMIZER, b)]
    graphs = programs().graphs()
    files = {name: listed(path / name) for name in (*graphs, "optimizer.onnx", WEIGHTS, ADAPTER)}
    return tiny_bundle.manifest(
        files,
        parameters=PARAMETERS,
        frozen=tuple(
            FrozenSpec(name, "float32", array.shape, array.nbytes, ALIGNMENT * index)
            for index, (name, array) in enumerate(frozen.items())
        ),
        buckets=tuple(BucketSpec(b.name, b.size, b.members, b.decay) for b in BUCKETS),
        optimizer=OptimizerSpec("adamw", OPTIMIZER.lr, {"weight_decay": OPTIMIZER.weight_decay}, tuple(state)),
        programs=programs(),
        cache=CacheEntry("h0"),
    )
