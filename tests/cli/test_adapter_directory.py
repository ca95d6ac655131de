"""An adapter directory of peft as a source and as a start: by the command, there and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepeft_runtime import Trainer
from tests.cli.conftest import Command
from tests.support.networks import one_layer_llama


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter of it trained elsewhere, and a batch."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapters")
    base = one_layer_llama()
    base.save_pretrained(folder / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    ids = np.random.default_rng(0).integers(0, 40, (2, 6))
    mask = np.ones_like(ids)
    np.savez(folder / "data.npz", input_ids=ids, attention_mask=mask, labels=ids)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    np.save(folder / "logits.npy", logits)
    return folder


def _logits(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    with np.load(folder / "data.npz") as data:
        return {name: data[name] for name in ("input_ids", "attention_mask")}, np.load(folder / "logits.npy")


@pytest.mark.parametrize("method", [[], ["--method", "lora"]], ids=["plain", "named"])
def test_an_adapter_directory_trains_on(method: list[str], folders: Path, tmp_path: Path, edgepeft: Command) -> None:
    """Prepared by its own path, it starts from its values, and peft loads the device's result."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    bundle, update = str(tmp_path / "b"), str(tmp_path / "u.safetensors")
    assert edgepeft("prepare", str(folders / "adapter"), "--out", bundle, *method).code == 0
    inputs, expected = _logits(folders)
    with Trainer.open(bundle) as trainer:
        np.testing.assert_allclose(trainer.predict(inputs)["logits"], expected, atol=1e-5)
        assert {array.shape for array in trainer.parameters().values()} == {(2, 16), (16, 2)}
    data, state = str(folders / "data.npz"), str(tmp_path / "s")
    adapter = ["--adapter", str(folders / "adapter")] if method else []
    assert edgepeft("train", bundle, "--data", data, "--state", state, "--update", update, *adapter).code == 0
    if method:
        return
    assert edgepeft("merge", bundle, update, "--to", "peft", "--out", str(tmp_path / "p")).code == 0
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folders / "base"), tmp_path / "p").eval()
    found = loaded(**{name: torch.tensor(array) for name, array in inputs.items()}).logits.detach().numpy()
    with Trainer.open(bundle, adapter=_parameters(update)) as trainer:
        np.testing.assert_allclose(found, trainer.predict(inputs)["logits"], atol=1e-5)


def _parameters(update: str) -> dict[str, np.ndarray]:
    from edgepeft_runtime.train.update import read_update

    return read_update(update).parameters


@pytest.mark.parametrize("broken", ["no-base", "no-json", "keys"])
def test_an_adapter_that_does_not_fit_is_refused(broken: str, folders: Path, tmp_path: Path, edgepeft: Command) -> None:
    """Without its base, without a configuration that can be read, or with tensors that its base has no room for."""
    adapter = tmp_path / "adapter"
    shutil.copytree(folders / "adapter", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    if broken == "no-base":
        config["base_model_name_or_path"] = "somewhere/else"
    if broken == "keys":
        config["target_modules"] = ["v_proj"]
    text = "{" if broken == "no-json" else json.dumps(config)
    (adapter / "adapter_config.json").write_text(text, encoding="utf-8")
    outcome = edgepeft("prepare", adapter, "--out", tmp_path / "b")
    assert outcome.code == 1
    said = {"no-base": "base-not-found", "no-json": "no-adapter-directory", "keys": "adapter-does-not-fit"}
    assert said[broken] in outcome.err
    assert not (tmp_path / "b").exists()
