"""What both engines train: models, methods, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import edgepeft
from benchmarks.accuracy.plan import cut
from benchmarks.accuracy.tasks import TASKS
from edgepeft.methods import BitFit, Lora, Method
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime import Trainer
from tests.ort_training.plan import read_plan, write_plan
from tests.support.networks import NETWORKS, to_numpy

STEPS = 20
CLIPPED = AdamW(lr=2e-3, max_grad_norm=1.0)

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Case:
    """A model to prepare, and its inputs.

    Attributes:
        batches: of changing sizes, without end.
    """

    source: Callable[[], edgepeft.Source]
    method: Method
    batches: Callable[[], Iterator[Arrays]]
    compute: str = "fp32"


def _network(name: str, method: Method, compute: str = "fp32") -> Case:
    network = NETWORKS[name]
    return Case(
        lambda: edgepeft.Source(network.model(), network.example(), loss=network.loss),
        method,
        lambda: (to_numpy(*batch) for batch in network.batches(3 * STEPS)),
        compute,
    )


def _digits() -> Iterator[Arrays]:
    train, _ = TASKS["digits"].data(16 * STEPS, 0)
    return cut(train, 8)


LORA = Lora(rank=4, target_modules=("query", "value"))
CASES = {
    "bert-lora": _network("bert", LORA),
    "digits-cnn": Case(lambda: TASKS["digits"].source(0), TASKS["digits"].method, _digits),
    "minilm-lora": _network("minilm", LORA),
    "minilm-bitfit": _network("minilm", BitFit()),
    "minilm-lora-int8": _network("minilm", LORA, "int8"),
    "bert-lora-int8": _network("bert", LORA, "int8"),
}


def prepare(case: Case, folder: Path, accumulate: int = 1) -> Path:
    """A bundle with official artifacts, and a plan: warm-up, linear fall, several batches at every third step."""
    torch.manual_seed(0)
    bundle = edgepeft.prepare(
        case.source(),
        method=case.method,
        optimizer=CLIPPED,
        compute=case.compute,
        # Scores of an untrained head are nearly equal, so whether int8 has the same classes is chance.
        compression=edgepeft.Compression(allow_accuracy_loss=True),
        engine="ort-training",
        out=folder / "bundle",
    ).bundle
    batches = case.batches()
    rates = [2e-3 * min(step / 5, (STEPS - step + 1) / (STEPS - 5)) for step in range(1, STEPS + 1)]
    steps = [(rate, list(islice(batches, 1 if step % 3 else accumulate))) for step, rate in enumerate(rates)]
    write_plan(folder, steps)
    return bundle


def portable_losses(folder: Path) -> list[float]:
    """Of the plan on stock onnxruntime; the update is ``portable.safetensors``."""
    with Trainer.open(folder / "bundle") as trainer:
        losses = [trainer.step(*batches, lr=lr) for lr, batches in read_plan(folder)]
        trainer.save_update(folder / "portable.safetensors")
    return losses
