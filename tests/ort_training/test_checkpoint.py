"""Checkpoints of ONNX Runtime Training: written without its wheel, and taken back as updates."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
import torch
from peft import PeftModel

import edgepeft
from edgepeft.cli.app import run
from edgepeft_runtime import Trainer, read_update
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.engine.ort_training import checkpoint as ort_checkpoint
from edgepeft_runtime.engine.ort_training.checkpoint import OrtCheckpoint, read_checkpoint, write_checkpoint
from edgepeft_runtime.errors import EdgepeftError, UpdateError
from tests.ort_training.cases import CASES, STEPS, portable_losses, prepare
from tests.ort_training.conftest import Side
from tests.ort_training.plan import read_plan
from tests.support.networks import NETWORKS

PARAMETERS = {
    "block.lora_A.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scale": np.array(2.5, np.float32),
    "bias": np.array([1e-30, -1.0, 3e30], np.float32),
}
PROPERTIES = {"base_sha256": "0" * 64, "adapter_sha256": "ü"}


def test_the_wheel_reads_what_we_write_and_we_what_it_writes(side: Side, tmp_path: Path) -> None:
    """Names, values and properties survive both ways."""
    write_checkpoint(tmp_path / "own.ckpt", OrtCheckpoint(PARAMETERS, PROPERTIES))
    seen = side("checkpoint", tmp_path)
    assert seen == {"parameters": {name: a.tolist() for name, a in PARAMETERS.items()}, "properties": PROPERTIES}
    for file in ("own.ckpt", "official.ckpt"):
        found = read_checkpoint(tmp_path / file)
        assert found.properties == PROPERTIES
        assert not found.nominal
        assert set(found.parameters) == set(PARAMETERS)
        for name, array in PARAMETERS.items():
            assert found.parameters[name].dtype == np.float32
            assert np.array_equal(found.parameters[name], array) and found.parameters[name].shape == array.shape


def test_what_was_trained_elsewhere_is_merged(side: Side, tmp_path: Path) -> None:
    """Trained by the official API alone, pulled, and merged into PEFT: the device's logits (1e-4)."""
    bundle = prepare(CASES["bert-lora"], tmp_path)
    # Its AdamW decays the one bias of the head too; ours spares it. In 20 steps that is not to be seen.
    assert side("official", tmp_path)["losses"] == pytest.approx(portable_losses(tmp_path), rel=1e-4)
    (received,) = edgepeft.pull([tmp_path / "inbox"], tmp_path / "pulled", bundle=bundle).accepted
    update = read_update(received.path)
    assert (update.steps, update.runtime) == (STEPS, "onnxruntime-training")
    adapter = edgepeft.merge(bundle, received.path, to="peft", out=tmp_path / "adapter")
    batch = read_plan(tmp_path)[-1][1][0]
    model = PeftModel.from_pretrained(NETWORKS["bert"].model(), adapter).eval()
    inputs = {name: torch.from_numpy(array) for name, array in batch.items() if name != "labels"}
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    assert np.abs(logits - np.load(tmp_path / "logits.npy")).max() < 1e-4
    again = edgepeft.pull([tmp_path / "inbox"], tmp_path / "pulled", bundle=bundle)
    assert len(again.already_there) == 1 and not again.accepted


def test_checkpoints_that_say_too_little_are_refused(tmp_path: Path) -> None:
    """Of another bundle, of none, nominal, or without its bundle at hand: each with its reason, and nothing is kept."""
    bundle = prepare(CASES["bert-lora"], tmp_path)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    with Trainer.open(bundle) as trainer:
        parameters = trainer.parameters()
    shutil.copy(bundle / "ort_training" / "nominal_checkpoint", inbox / "nominal.ckpt")
    write_checkpoint(inbox / "nameless.ckpt", OrtCheckpoint(parameters))
    write_checkpoint(inbox / "other.ckpt", OrtCheckpoint(parameters, PROPERTIES))
    (inbox / "text.ckpt").write_text("no checkpoint at all", encoding="utf-8")
    found = edgepeft.pull([inbox], tmp_path / "pulled", bundle=bundle)
    reasons = {Path(refused.source).name: refused.code for refused in found.refused}
    assert reasons == {
        "nominal.ckpt": "nominal-checkpoint",
        "nameless.ckpt": "foreign-checkpoint",
        "other.ckpt": "foreign-update",
        "text.ckpt": "not-a-checkpoint",
    }
    alone = edgepeft.pull([inbox], tmp_path / "pulled")
    assert {refused.code for refused in alone.refused} >= {"checkpoint-without-bundle"}
    assert not list((tmp_path / "pulled").iterdir())


def test_damage_is_reported_and_never_crashes(tmp_path: Path) -> None:
    """Cut anywhere, or with any bytes changed, a file is read as some checkpoint or refused."""
    path = write_checkpoint(tmp_path / "whole.ckpt", OrtCheckpoint(PARAMETERS, PROPERTIES))
    content, draw = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for trial in range(4000):
        changed = bytearray(content)
        for offset in draw.integers(0, len(content), draw.integers(1, 5)):
            changed[offset] = draw.integers(256)
        path.write_bytes(changed if trial % 2 else changed[: draw.integers(len(content))])
        try:
            read_checkpoint(path)
        except EdgepeftError:
            refused += 1
    assert refused > 1000


def test_one_part_as_ten_thousand_parts_is_refused(tmp_path: Path) -> None:
    """Offsets to one tensor of 40 kB, again and again, would be read as 400 MB."""
    builder = flatbuffers.Builder(1024)
    tensor = ort_checkpoint._tensor(builder, "w", np.zeros(10_000, np.float32), False)
    trained, frozen = (ort_checkpoint._vector(builder, [tensor] * count) for count in (10_000, 0))
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(0, trained, 0)
    builder.PrependUOffsetTRelativeSlot(1, frozen, 0)
    module = builder.EndObject()
    builder.StartObject(4)
    builder.PrependInt32Slot(0, ort_checkpoint.VERSION, 0)
    builder.PrependUOffsetTRelativeSlot(1, module, 0)
    builder.Finish(builder.EndObject(), file_identifier=ort_checkpoint.IDENTIFIER)
    (tmp_path / "a").write_bytes(builder.Output())
    with pytest.raises(UpdateError, match="overlap"):
        read_checkpoint(tmp_path / "a")


def test_the_command_adds_artifacts(tmp_path: Path) -> None:
    """`edgepeft export-ort-training BUNDLE` lists what it wrote; a second run changes no byte of the graphs."""
    bundle = edgepeft.prepare(torch.nn.Linear(4, 3), torch.zeros(2, 4), method="full", out=tmp_path / "bundle").bundle
    assert run(["export-ort-training", str(bundle)]) == 0
    first = (bundle / "ort_training" / "training_model.onnx").read_bytes()
    assert run(["export-ort-training", str(bundle)]) == 0
    assert (bundle / "ort_training" / "training_model.onnx").read_bytes() == first
    assert run(["export-ort-training", str(bundle), "--gradient", "official"]) == 1


@pytest.mark.slow
def test_the_command_trains_with_either_engine(training_python: Path, tmp_path: Path) -> None:
    """`edgepeft train --engine ort-training` in the environment of the wheel writes an update that the host accepts."""
    bundle = prepare(CASES["bert-lora"], tmp_path)
    batches = [batches[0] for _, batches in read_plan(tmp_path)]
    np.savez(tmp_path / "data.npz", **max(batches, key=lambda batch: len(batch["labels"])))
    command = [training_python, "-m", "edgepeft", "train", bundle, "--data", tmp_path / "data.npz", "--epochs", "1"]
    command += ["--batch-size", "64"]
    command += ["--state", tmp_path / "run", "--update", tmp_path / "update.safetensors", "--engine", "ort-training"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_update(tmp_path / "update.safetensors").steps == 1


def test_the_command_prepares_with_artifacts(tmp_path: Path) -> None:
    """`edgepeft prepare --engine ort-training` writes them with the bundle; their options go with that engine alone."""
    source = tmp_path / "model.py"
    source.write_text("import torch\n\n\ndef make():\n    return torch.nn.Linear(4, 3), torch.zeros(2, 4)\n", "utf-8")
    prepare_it = ["prepare", f"{source}:make", "--method", "full", "--out", str(tmp_path / "bundle")]
    assert run([*prepare_it, "--gradient", "official"]) == 2
    assert run([*prepare_it, "--engine", "ort-training"]) == 0
    assert "ort_training/training_model.onnx" in Bundle.open(tmp_path / "bundle").manifest.files
    assert run([*prepare_it, "--overwrite", "--engine", "ort-training", "--gradient", "official"]) == 1
    assert Bundle.open(tmp_path / "bundle").manifest.files  # the old bundle stays
