"""Bundles whose frozen tensors lie beyond 2 and 4 GiB: a hole in a sparse file, which takes no room on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import edgepeft
from edgepeft.preparation.options import Compression
from edgepeft_export.optimizers import AdamW
from edgepeft_export.weights import WeightsFile
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.program_checks import ALIGNMENT
from tests.support.networks import NETWORKS

BATCH = {name: tensor.numpy() for name, tensor in NETWORKS["llama"].example().items()}
LABELS = {"labels": BATCH["input_ids"]}


def _prepared(out: Path, weights: str) -> Path:
    network = NETWORKS["llama"]
    return edgepeft.prepare(
        network.model(),
        network.example(),
        method="lora",
        loss="causal_lm",
        optimizer=AdamW(lr=0.01),
        compression=Compression(weights=weights),
        out=out,
    ).bundle


def _trained(bundle: Path, update: Path) -> list[float]:
    with Trainer.open(Bundle.open(bundle, verify=False)) as trainer:  # `prepare` has verified its hashes
        losses = [trainer.step({**BATCH, **LABELS}) for _ in range(3)]
        trainer.save_update(update)
        return losses


@pytest.mark.slow
@pytest.mark.parametrize(("hole", "weights"), [(2**31, "constant"), (2**32, "input")])
def test_tensors_beyond_a_hole_train_and_merge_as_others(
    hole: int, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is written, verified, trained and merged, with losses and scores equal to the last bit."""
    plain = _prepared(tmp_path / "plain", weights)
    pad = WeightsFile._pad

    def beyond(file: WeightsFile) -> int:
        file._file.seek(max(file._file.tell(), hole + ALIGNMENT))
        return pad(file)

    monkeypatch.setattr(WeightsFile, "_pad", beyond)
    large = _prepared(tmp_path / "large", weights)
    entries = Bundle.open(large, verify=False).manifest.frozen
    assert min(entry.offset for entry in entries) > hole
    status = (large / "weights.bin").stat()
    assert status.st_size > hole and status.st_blocks * 512 < 2**20
    losses = [_trained(bundle, tmp_path / f"{bundle.name}.safetensors") for bundle in (plain, large)]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
    scores = []
    for bundle in (plain, large):
        model = tmp_path / f"{bundle.name}.onnx"
        edgepeft.merge(bundle, tmp_path / f"{bundle.name}.safetensors", to="onnx", out=model)
        scores.append(onnxruntime.InferenceSession(model).run(None, BATCH)[0])
    np.testing.assert_array_equal(scores[0], scores[1])
