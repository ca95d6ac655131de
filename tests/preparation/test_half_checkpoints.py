"""A checkpoint in bfloat16, in several files, gives the bundle of the same model in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft_export.forward.torch_source import half, lifted
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from tests.support.networks import tiny_llama

SETTINGS = {
    "lora": edgepeft.Lora(rank=2, target_modules=("q_proj", "down_proj")),
    "dora": edgepeft.Dora(rank=2, target_modules=("q_proj",)),
    "freeze": edgepeft.Freeze(last_blocks=1),
}


def _checkpoint(folder: Path) -> Path:
    tiny_llama().bfloat16().save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def _prepared(source: edgepeft.Source, method: str, out: Path) -> Bundle:
    torch.manual_seed(3)
    edgepeft.prepare(source, method=SETTINGS[method], compute="int8", generation=True, out=out)
    return Bundle.open(out)


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_a_half_checkpoint(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same base, initial parameters, frozen bytes and training, although the large matrices stay bfloat16."""
    for module in (half, lifted):
        monkeypatch.setattr(module, "LARGE", 500)
    source = edgepeft.load_source(_checkpoint(tmp_path / "model"))
    assert isinstance(source.model, nn.Module)
    assert source.model.get_input_embeddings().weight.dtype == torch.bfloat16
    ours = _prepared(source, method, tmp_path / "ours")
    assert source.model.get_input_embeddings().weight.dtype == torch.bfloat16
    whole = _prepared(replace(source, model=source.model.float()), method, tmp_path / "whole")
    assert ours.base_sha256 == whole.base_sha256
    # DoRA reads a weight both as it is and transposed, which torch's exporter stores twice where it is a constant.
    for file in ("adapter.safetensors", *(() if method == "dora" else ("weights.bin",))):
        assert (ours.path / file).read_bytes() == (whole.path / file).read_bytes()
    ids = np.arange(12).reshape(2, 6)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    losses = []
    for bundle in (ours, whole):
        with Trainer.open(bundle.path) as trainer:
            losses.append([trainer.step(batch) for _ in range(3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2 if method == "dora" else 1e-6)  # other weights in int8
