"""What the tests run where the training wheel is: ``python -m tests.ort_training.side COMMAND FOLDER ...``.

FOLDER holds ``bundle/`` and ``plan.npz``, as ``tests.ort_training.plan`` writes it. Prints JSON.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.engine.ort_training.engine import training_package
from tests.ort_training.plan import read_plan


def train(folder: Path, engine: str, first: str, last: str) -> Any:
    """Steps ``first`` to ``last`` (exclusive) of the plan by an engine, in ``state/``; the losses."""
    losses = []
    with Trainer.open(folder / "bundle", state=folder / "state", engine=engine) as trainer:
        for lr, batches in read_plan(folder)[int(first) : int(last)]:
            losses.append(trainer.step(*batches, lr=lr))
        trainer.save()
        loss = trainer.evaluate(batches).loss
        trainer.save_update(folder / "update.safetensors")
    return {"losses": losses, "evaluation": loss}


def official(folder: Path) -> Any:
    """The plan by nothing but ``onnxruntime.training.api`` and the files in ``ort_training/``; one batch per step."""
    training_package()
    api = import_module("onnxruntime.training.api")
    engine, manifest = folder / "bundle" / "ort_training", Bundle.open(folder / "bundle").manifest
    names = [spec.name for spec in (*manifest.inputs, *manifest.labels)]
    state = api.CheckpointState.load_checkpoint(str(engine / "checkpoint"))
    module = api.Module(str(engine / "training_model.onnx"), state, str(engine / "eval_model.onnx"))
    optimizer = api.Optimizer(str(engine / "optimizer_model.onnx"), module)
    losses = []
    for lr, (batch,) in read_plan(folder):
        module.train()
        loss, *_ = module(*(batch[name] for name in names))
        losses.append(float(loss))
        optimizer.set_learning_rate(lr)
        optimizer.step()
        module.lazy_reset_grad()
    module.eval()
    _, _, logits, *_ = module(*(batch[name] for name in names))
    np.save(folder / "logits.npy", logits)
    (folder / "inbox").mkdir()
    api.CheckpointState.save_checkpoint(state, str(folder / "inbox" / "checkpoint"), include_optimizer_state=True)
    return {"losses": losses}


def gradients(folder: Path) -> Any:
    """How far the gradients of the first batch by the official module and by the bundle's own train graph are apart."""
    training_package()
    api = import_module("onnxruntime.training.api")
    bundle = Bundle.open(folder / "bundle")
    manifest, engine = bundle.manifest, bundle.path / "ort_training"
    batch = read_plan(folder)[0][1][0]
    state = api.CheckpointState.load_checkpoint(str(engine / "checkpoint"))
    module = api.Module(str(engine / "training_model.onnx"), state)
    module(*(batch[spec.name] for spec in (*manifest.inputs, *manifest.labels)))
    session = onnxruntime.InferenceSession(bundle.file("train.onnx"))
    found = session.run(None, {**batch, **bundle.adapter()})
    by_name = dict(zip((value.name for value in session.get_outputs()), found, strict=True))
    own = np.concatenate([by_name[f"{bucket.name}.gradient"] for bucket in manifest.buckets]) / by_name["loss_weight"]
    official = np.concatenate(
        [state.parameters[name].grad.reshape(-1) for bucket in manifest.buckets for name in bucket.members]
    )
    return {"difference": float(np.abs(own - official).max()), "largest": float(np.abs(own).max())}


def checkpoint(folder: Path) -> Any:
    """Load ``own.ckpt``, save it as ``official.ckpt``; return its content as the wheel reads it."""
    training_package()
    api = import_module("onnxruntime.training.api")
    state = api.CheckpointState.load_checkpoint(str(folder / "own.ckpt"))
    api.CheckpointState.save_checkpoint(state, str(folder / "official.ckpt"))
    seen = {name: parameter.data.tolist() for name, parameter in state.parameters}
    return {"parameters": seen, "properties": dict(state.properties)}


if __name__ == "__main__":
    command, folder, *more = sys.argv[1:]
    print(json.dumps({f.__name__: f for f in (train, official, gradients, checkpoint)}[command](Path(folder), *more)))
