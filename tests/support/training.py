"""One model trained twice, by torch and by the device runtime: the oracle of every method on every network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from tests.support.networks import Batch, Network, to_numpy, torch_loss


@dataclass(frozen=True)
class Trained:
    """A bundle, the update of the device, and the model as torch has trained it meanwhile."""

    bundle: Path
    update: Path
    model: nn.Module


def train_both(model: nn.Module, network: Network, folder: Path, steps: int = 5, lr: float = 0.05) -> Trained:
    """Train a model with its method attached on both sides, batches of changing sizes; each loss is within 1e-4."""
    prepared = edgepeft.prepare(
        model, network.example(), loss=network.loss, optimizer=SGD(lr=lr, momentum=0.9), out=folder / "bundle"
    )
    assert not prepared.unreached
    expected = list(torch_losses(model, network, steps, lr))
    with Trainer.open(prepared.bundle) as trainer:
        losses = [trainer.step(to_numpy(inputs, labels)) for inputs, labels in network.batches(steps)]
        update = trainer.save_update(folder / "update.safetensors")
    assert losses == pytest.approx(expected, rel=1e-4)
    return Trained(prepared.bundle, update, model.eval())


def torch_losses(model: nn.Module, network: Network, steps: int, lr: float) -> Iterator[float]:
    """The losses of SGD with momentum 0.9 on the parameters that require a gradient."""
    model.eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9)
    for inputs, labels in network.batches(steps):
        optimizer.zero_grad()
        loss = torch_loss(model, inputs, labels, network.loss)
        loss.backward()
        optimizer.step()
        yield loss.item()


def check_merged(trained: Trained, network: Network, folder: Path) -> None:
    """The update merged into an ``.onnx`` model, and on the device, has the outputs of the model torch trained."""
    merged = edgepeft.merge(trained.bundle, trained.update, to="onnx", out=folder / "merged.onnx")
    session = onnxruntime.InferenceSession(merged)
    fed = {value.name for value in session.get_inputs()}
    with Trainer.open(trained.bundle, adapter=trained.update) as trainer:
        for inputs, labels in islice(network.batches(2), 2):
            expected = outputs(trained.model, inputs)
            arrays = {name: array for name, array in to_numpy(inputs, labels).items() if name in fed}
            assert distance(session.run(None, arrays)[0], expected) < 1e-4
            assert distance(next(iter(trainer.predict(arrays).values())), expected) < 1e-4


def outputs(model: nn.Module, inputs: Batch) -> Tensor:
    """The output of torch: the logits, or the only output."""
    with torch.no_grad():
        result = model(**inputs)
    return result if isinstance(result, Tensor) else result.logits


def distance(found: np.ndarray, expected: Tensor) -> float:
    """Largest difference, as a fraction of the largest value where that is above 1."""
    reference = expected.detach().numpy()
    assert found.shape == reference.shape
    return float(np.abs(found - reference).max() / max(1.0, np.abs(reference).max()))
