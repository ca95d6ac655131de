"""One bundle, two engines: the same losses, whichever trains, and whichever resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft_export.errors import OrtTrainingError
from edgepeft_export.optimizers import SGD, AdamW, Lion, Optimizer
from edgepeft_export.ort_training import OrtTraining, export_ort_training
from edgepeft_runtime import Trainer, read_tensors
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import BundleError, TrainingError
from tests.ort_training.cases import CASES, STEPS, portable_losses, prepare
from tests.ort_training.conftest import Side

slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["bert-lora", *(pytest.param(name, marks=slow) for name in ("digits-cnn", "minilm-lora", "minilm-bitfit"))]
)
def test_both_engines_have_the_same_losses_and_updates(name: str, side: Side, tmp_path: Path) -> None:
    """20 steps with a schedule and accumulation; the second half is another process that resumes."""
    prepare(CASES[name], tmp_path, accumulate=2)
    expected = portable_losses(tmp_path)
    first = side("train", tmp_path, "ort-training", "0", "9")
    second = side("train", tmp_path, "ort-training", "9", str(STEPS))
    assert [*first["losses"], *second["losses"]] == pytest.approx(expected, rel=1e-4)
    ours, theirs = (read_tensors(tmp_path / f"{who}.safetensors").tensors for who in ("portable", "update"))
    for parameter, array in ours.items():
        # The gradient of a bias of keys is zero, as softmax does not see it: AdamW makes steps of what rounding leaves.
        limit = 1e-3 if parameter.endswith("key.bias") else 1e-4
        assert np.abs(array - theirs[parameter]).max() <= limit * max(1.0, np.abs(array).max()), parameter


@slow
@pytest.mark.parametrize("name", ["bert-lora-int8", "minilm-lora-int8"])
def test_a_quantized_base_has_the_same_losses(name: str, side: Side, tmp_path: Path) -> None:
    """Rounding to integers makes any difference grow: so there is none to grow, on one build of onnxruntime."""
    prepare(CASES[name], tmp_path)
    official = side("train", tmp_path, "ort-training", "0", str(STEPS))
    learned = (tmp_path / "update.safetensors").rename(tmp_path / "official.safetensors")
    shutil.rmtree(tmp_path / "state")
    portable = side("train", tmp_path, "portable", "0", str(STEPS))
    assert official["losses"] == pytest.approx(portable["losses"], rel=1e-5)
    ours, theirs = (read_tensors(file).tensors for file in (tmp_path / "update.safetensors", learned))
    assert max(np.abs(ours[parameter] - theirs[parameter]).max() for parameter in ours) < 1e-5


@slow
def test_a_run_resumes_with_the_other_engine(side: Side, tmp_path: Path) -> None:
    """The state directory is the same one: half by one engine, half by the other."""
    prepare(CASES["bert-lora"], tmp_path)
    expected = portable_losses(tmp_path)
    first = side("train", tmp_path, "ort-training", "0", "10")
    second = side("train", tmp_path, "portable", "10", str(STEPS))
    assert [*first["losses"], *second["losses"]] == pytest.approx(expected, rel=1e-4)
    with Trainer.open(tmp_path / "bundle", state=tmp_path / "state") as trainer:
        assert trainer.steps == STEPS


def test_without_the_training_wheel_the_engine_says_so(tmp_path: Path) -> None:
    """The stock onnxruntime of this environment cannot train by itself; the portable engine is named."""
    bundle = prepare(CASES["bert-lora"], tmp_path)
    with pytest.raises(TrainingError, match="not a training build") as caught:
        Trainer.open(bundle, engine="ort-training")
    assert "portable" in str(caught.value.hint)


def test_missing_artifacts_and_unknown_engines_are_refused(tmp_path: Path) -> None:
    """The error names the command that makes the artifacts, and the engines there are."""
    bundle = _linear(tmp_path, SGD(lr=0.1))
    with pytest.raises(BundleError, match="no artifacts") as caught:
        Trainer.open(bundle, engine="ort-training")
    assert "export-ort-training" in str(caught.value.hint)
    with pytest.raises(TrainingError, match="no engine named 'fast'"):
        Trainer.open(bundle, engine="fast")
    with pytest.raises(TrainingError, match="no engine named 'fast'"):
        edgepeft.prepare(nn.Linear(4, 3), torch.zeros(2, 4), engine="fast", out=tmp_path / "other")


@pytest.mark.parametrize(
    "optimizer", [SGD(lr=0.1, momentum=0.9), SGD(lr=0.1, weight_decay=0.1), AdamW(gradient_fraction=0.1), Lion()]
)
def test_an_optimizer_the_official_runtime_lacks_is_refused(optimizer: Optimizer, tmp_path: Path) -> None:
    """Before anything is written: neither the artifacts, nor a bundle that was to have them."""
    bundle = _linear(tmp_path, optimizer)
    before = sorted(file.name for file in bundle.rglob("*"))
    with pytest.raises(OrtTrainingError, match="has no"):
        export_ort_training(bundle)
    assert sorted(file.name for file in bundle.rglob("*")) == before
    with pytest.raises(OrtTrainingError, match="has no"):
        edgepeft.prepare(
            nn.Linear(4, 3), torch.zeros(2, 4), optimizer=optimizer, engine="ort-training", out=tmp_path / "other"
        )
    assert not (tmp_path / "other").exists()


def test_elements_of_tensors_are_refused(tmp_path: Path) -> None:
    """SIFT trains elements; ONNX Runtime Training trains tensors."""
    bundle = edgepeft.prepare(nn.Linear(4, 3), torch.zeros(2, 4), method="sift", out=tmp_path / "bundle").bundle
    with pytest.raises(OrtTrainingError, match="single elements"):
        export_ort_training(bundle)


def test_artifacts_made_again_replace_the_old_ones(tmp_path: Path) -> None:
    """The bundle opens afterwards, with the same base and adapter, and lists five files more."""
    bundle = _linear(tmp_path, SGD(lr=0.1))
    before = Bundle.open(bundle)
    for _ in range(2):
        export_ort_training(bundle)
        after = Bundle.open(bundle)
        assert (after.base_sha256, after.adapter_sha256) == (before.base_sha256, before.adapter_sha256)
        assert len(after.manifest.files) == len(before.manifest.files) + 5


def test_the_official_gradient_needs_an_environment(tmp_path: Path) -> None:
    """Without an interpreter the error says what to install."""
    bundle = _linear(tmp_path, SGD(lr=0.1))
    with pytest.raises(OrtTrainingError, match="environment of its own") as caught:
        export_ort_training(bundle, OrtTraining("official"))
    assert "edgepeft[ort-training]" in str(caught.value.hint)
    with pytest.raises(OrtTrainingError, match="no gradient named 'mine'"):
        OrtTraining("mine")


def _linear(folder: Path, optimizer: Optimizer) -> Path:
    return edgepeft.prepare(
        nn.Linear(4, 3), torch.zeros(2, 4), method="full", optimizer=optimizer, out=folder / "bundle"
    ).bundle
