"""LoRA with A frozen: half of LoRA's parameters, and otherwise like LoRA; losses are in the matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

import edgepeft
from edgepeft.methods import FrozenA
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import EdgepeftError
from tests.support.networks import NETWORKS, to_numpy
from tests.support.onnx_networks import write as write_onnx
from tests.support.training import distance, outputs

BERT = NETWORKS["bert"]


def _prepare(out: Path, method: FrozenA, **settings: object) -> Bundle:
    torch.manual_seed(0)
    optimizer = AdamW(lr=0.01)
    prepared = edgepeft.prepare(
        BERT.model(), BERT.example(), loss=BERT.loss, method=method, optimizer=optimizer, out=out, **settings
    )
    return Bundle.open(prepared.bundle)


@pytest.mark.parametrize("compute", ["fp32", "int8"])
def test_only_b_moves_and_peft_loads_both(compute: str, tmp_path: Path) -> None:
    """A stays bit-identical and has no state, and the adapter in peft gives the device's logits."""
    bundle = _prepare(tmp_path / "bundle", FrozenA(rank=2), compute=compute)
    batches = list(BERT.batches(4))
    with Trainer.open(bundle) as trainer:
        for inputs, labels in batches:
            trainer.step(to_numpy(inputs, labels))
        update = trainer.save_update(tmp_path / "update.safetensors")
        found, (predicted, *_) = trainer.parameters(), trainer.predict(to_numpy(*batches[0])).values()
    changed = {name for name, first in bundle.adapter().items() if not np.array_equal(found[name], first)}
    assert changed == {spec.name for spec in bundle.manifest.trained}
    assert _non_trainable_roles(bundle.manifest) == {"lora_A"}
    state = sum(spec.size for spec in bundle.manifest.optimizer.state)
    assert state == 2 * sum(spec.size for spec in bundle.manifest.trained)
    folder = edgepeft.merge(bundle, update, to="peft", out=tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(BERT.model(), folder).eval()
    assert distance(predicted, outputs(loaded, batches[0][0])) < (1e-4 if compute == "fp32" else 0.1)


def test_a_table_learns_although_peft_starts_with_zeros_in_a(tmp_path: Path) -> None:
    """Frozen zeros would let nothing through: a table's pair starts the other way round."""
    bundle = _prepare(tmp_path / "bundle", FrozenA(rank=2, target_modules=("word_embeddings",)))
    (name,) = bundle.manifest.adapter.non_trainable
    assert np.abs(bundle.adapter()[name]).min() > 0
    inputs, labels = next(BERT.batches(1))
    untouched = BERT.model().eval()
    with Trainer.open(bundle) as trainer:
        before = next(iter(trainer.predict(to_numpy(inputs, labels)).values()))
        assert distance(before, outputs(untouched, inputs)) < 1e-4
        losses = [trainer.step(to_numpy(inputs, labels)) for _ in range(5)]
        (pair,) = bundle.manifest.adapter.pairs
        assert pair.a == name and np.abs(trainer.parameters()[pair.b]).max() > 0
    assert losses[-1] < losses[0]


def test_a_graph_has_its_a_frozen_too(tmp_path: Path) -> None:
    """An .onnx file gets the same pairs, of which B trains."""
    write_onnx(tmp_path / "model.onnx")
    prepared = edgepeft.prepare(tmp_path / "model.onnx", method=FrozenA(rank=2), out=tmp_path / "bundle")
    manifest = Bundle.open(prepared.bundle).manifest
    roles = {spec.role for spec in manifest.trained}
    assert _non_trainable_roles(manifest) == {"lora_A"} and "lora_B" in roles and "lora_A" not in roles


def test_the_official_layout_refuses_parameters_that_stay(tmp_path: Path) -> None:
    """Its optimizer changes everything in the checkpoint."""
    bundle = _prepare(tmp_path / "bundle", FrozenA(rank=2))
    with pytest.raises(EdgepeftError, match="some do not train"):
        edgepeft.export_ort_training(bundle.path)


def _non_trainable_roles(manifest: Manifest) -> set[str]:
    return {spec.role for spec in manifest.parameters if spec.name in manifest.adapter.non_trainable}
