"""Texts that a device generates: the tokens of transformers, with a cache and without, alone and in a batch."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.cli.app import run
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Bundle, Manifest, Trainer
from edgepeft_runtime.bundle.specs import TextSpec
from edgepeft_runtime.engine.generate import Sampling
from edgepeft_runtime.errors import BatchError, BundleError, SettingError
from tests.support.bundles import FIELDS, PAD
from tests.support.bundles import Trained as Made
from tests.support.networks import NETWORKS, Network, tiny_gpt2, tiny_llama, tiny_neox

PROMPTS = [[5, 17, 33], [8, 9, 10, 11, 12, 13, 14], [71]]
NEW = 12


@dataclass(frozen=True)
class Trained:
    """A bundle with an update of some steps, and transformers' model with the same values."""

    bundle: Path
    update: Path
    model: nn.Module


def prepared(model: nn.Module, network: Network, folder: Path, **settings: object) -> Path:
    """A bundle with a graph that generates, of a model with LoRA attached."""
    text = edgepeft.Preprocessing(TextSpec(40, PAD, FIELDS))
    return edgepeft.prepare(
        model, network.example(), loss="causal_lm", preprocessing=text, optimizer=SGD(lr=0.5), out=folder, **settings
    ).bundle


def trained(name: str, folder: Path) -> Trained:
    """LoRA pairs far from zero, on the device and in torch."""
    network = NETWORKS[name]
    model = edgepeft.Lora(rank=4, target_modules=network.lora).attach(network.model())
    bundle = prepared(model, network, folder / "bundle")
    with Trainer.open(bundle) as trainer:
        for inputs, labels in network.batches(12):
            trainer.step({**{key: value.numpy() for key, value in inputs.items()}, "labels": labels.numpy()}, lr=2.0)
        update = trainer.save_update(folder / "update.safetensors")
        values = {key: torch.from_numpy(array) for key, array in trainer.parameters().items()}
    assert not model.load_state_dict(values, strict=False).unexpected_keys
    return Trained(bundle, update, model.eval())


@functools.cache
def trained_in(name: str, base: Path) -> Trained:
    """``trained`` once for all tests."""
    (base / name).mkdir()
    return trained(name, base / name)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_in("gpt2", tmp_path_factory.getbasetemp())


@pytest.fixture(
    scope="module", params=["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "neox"))]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_in(request.param, tmp_path_factory.getbasetemp())


def of_transformers(model: nn.Module, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()


def without_cache(bundle: Path, folder: Path) -> Path:
    """The bundle as it would be without the program ``generate``."""
    shutil.copytree(bundle, folder)
    (folder / "generate.onnx").unlink()
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    del manifest["files"]["generate.onnx"], manifest["programs"]["generate"], manifest["generation"]
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


def test_greedy_tokens_are_those_of_transformers(case: Trained, tmp_path: Path) -> None:
    """With a trained adapter, each token; the same from bundles without a cache, and with prompts of any length."""
    expected = [of_transformers(case.model, prompt) for prompt in PROMPTS]
    for bundle in (case.bundle, without_cache(case.bundle, tmp_path / "bundle")):
        with Trainer.open(bundle, adapter=case.update) as trainer:
            assert trainer.generate(PROMPTS, max_new_tokens=NEW) == expected
            assert [trainer.generate(prompt, max_new_tokens=NEW)[0] for prompt in PROMPTS] == expected


def test_an_adapter_of_one_call_leaves_the_base_as_it_is(gpt2: Trained) -> None:
    """Answers without the adapter are those of the model before it was trained."""
    with gpt2.model.disable_adapter():
        expected = of_transformers(gpt2.model, PROMPTS[1])
    with Trainer.open(gpt2.bundle) as trainer:
        before = trainer.generate(PROMPTS[1], max_new_tokens=NEW)
        changed = trainer.generate(PROMPTS[1], max_new_tokens=NEW, adapter=gpt2.update)
        assert before == trainer.generate(PROMPTS[1], max_new_tokens=NEW) == [expected]
    assert changed != before


def test_a_seed_repeats_what_is_drawn(gpt2: Trained, tmp_path: Path) -> None:
    """The text is the same in a batch and alone, with and without a cache. Another seed gives another text."""
    settings = {"max_new_tokens": NEW, "temperature": 1.5, "top_k": 50, "top_p": 0.95}
    with Trainer.open(gpt2.bundle) as trainer:
        drawn = trainer.generate(PROMPTS, seed=3, **settings)
        assert trainer.generate(PROMPTS, seed=3, **settings) == drawn
        assert trainer.generate(PROMPTS[1], seed=3, **settings) == [drawn[1]]
        assert trainer.generate(PROMPTS, seed=4, **settings) != drawn
    with Trainer.open(without_cache(gpt2.bundle, tmp_path / "bundle")) as trainer:
        assert trainer.generate(PROMPTS, seed=3, **settings) == drawn


def test_drawing_follows_the_scores() -> None:
    """Shares are those of the softmax at the temperature, among the tokens that top-k and top-p leave."""
    logits, draw = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32)), np.random.default_rng(0)

    def frequencies(**settings: Any) -> np.ndarray:
        sampling = Sampling(max_new_tokens=1, **settings)
        return np.bincount([sampling.choose(logits, draw) for _ in range(4000)], minlength=4) / 4000

    assert frequencies(temperature=1.0) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.03)
    assert frequencies(temperature=0.5) == pytest.approx(np.array([1, 16, 4, 9]) / 30, abs=0.03)
    assert frequencies(temperature=1.0, top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)
    assert frequencies(temperature=1.0, top_p=0.65) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)
    assert frequencies(temperature=1.0, top_p=0.01).tolist() == [0, 1, 0, 0]
    assert frequencies().tolist() == [0, 1, 0, 0]


def test_a_text_ends_at_its_end_token_while_others_continue(gpt2: Trained) -> None:
    """The token that ends it is the last; the others are as without it."""
    with Trainer.open(gpt2.bundle, adapter=gpt2.update) as trainer:
        whole = trainer.generate(PROMPTS, max_new_tokens=NEW)
        stop = whole[0][4]
        ended = trainer.generate(PROMPTS, max_new_tokens=NEW, stop=[stop])
    for text, cut in zip(whole, ended, strict=True):
        assert cut == (text[: text.index(stop) + 1] if stop in text else text)


def test_a_text_ends_where_the_model_has_no_more_positions(tmp_path: Path) -> None:
    """The shorter one of a batch continues until it is as long itself."""
    network = replace(NETWORKS["gpt2"], model=tiny_gpt2)
    source = edgepeft.Source(network.model(), network.example(), "causal_lm", TextSpec(16, PAD, FIELDS))
    method = edgepeft.Lora(rank=2, target_modules=("c_attn",))
    bundle = edgepeft.prepare(source, method=method, out=tmp_path / "bundle").bundle
    with Trainer.open(bundle) as trainer:
        texts = trainer.generate([[5] * 38, [6] * 4], max_new_tokens=100)
        assert [len(text) for text in texts] == [2, 36]
        assert trainer.generate([6] * 4, max_new_tokens=100) == [texts[1]]
        with pytest.raises(BatchError, match="40"):
            trainer.generate([5] * 40)


@pytest.mark.parametrize(
    ("model", "compute"),
    [
        (tiny_gpt2, "int8"),
        *(
            pytest.param(model, compute, marks=pytest.mark.slow)
            for model in (tiny_gpt2, tiny_llama, tiny_neox)
            for compute in ("fp32", "int8", "int4")
            if (model, compute) != (tiny_gpt2, "int8")
        ),
    ],
)
def test_the_graph_that_generates_needs_no_weights_of_its_own(
    model: Callable[[], nn.Module], compute: str, tmp_path: Path
) -> None:
    """weights.bin is as large without it, also quantized with data, tied heads and grouped heads; tokens agree."""
    network = NETWORKS[model.__name__.removeprefix("tiny_")]
    packing = edgepeft.Quantization(compute, smallest=512)
    ids, sizes = np.array([PROMPTS[1]]), list[int]()
    fed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    data = edgepeft.Compression(calibration=[fed], allow_accuracy_loss=True)
    for generation in (False, True):
        attached = edgepeft.Lora(rank=2, target_modules=network.lora).attach(model())
        bundle = prepared(
            attached, network, tmp_path / str(generation), compute=packing, generation=generation, compression=data
        )
        sizes.append((bundle / "weights.bin").stat().st_size)
    assert sizes[0] == sizes[1]
    with Trainer.open(bundle) as trainer, Trainer.open(without_cache(bundle, tmp_path / "old")) as other:
        logits = other.predict(fed)["logits"][0, -1]
        assert trainer.generate(PROMPTS[1], max_new_tokens=1) == [[int(logits.argmax())]]


def test_a_prompt_method_generates_by_the_whole_text(tmp_path: Path) -> None:
    """A model that learns a prompt has no initial cache. The bundle says so, and still generates."""
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(tiny_gpt2(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    said: list[str] = []
    bundle = prepared(model, NETWORKS["gpt2"], tmp_path / "bundle", on_progress=said.append)
    assert any("no graph with a cache" in text for text in said)
    opened = Bundle.open(bundle)
    assert opened.manifest.generation is not None and not opened.manifest.generation.cache
    with Trainer.open(bundle) as trainer:
        texts = trainer.generate(PROMPTS, max_new_tokens=4)
        assert texts == [trainer.generate(prompt, max_new_tokens=4)[0] for prompt in PROMPTS]


def test_mistakes_are_named(gpt2: Trained, text: Made) -> None:
    """No prompt, no tokens, ids the model does not have, settings out of range, a bundle that is no language model."""
    with Trainer.open(gpt2.bundle) as trainer:
        for prompts in ([], [[]], [[101]], [[-1]], [[1.5]]):
            with pytest.raises(BatchError):
                trainer.generate(prompts)
        for setting in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"seed": -1}, {"max_new_tokens": 0}):
            with pytest.raises(SettingError, match=next(iter(setting))):
                trainer.generate([1], **setting)
    with Trainer.open(text.bundle) as trainer, pytest.raises(BatchError, match="does not say how to generate"):
        trainer.generate([1])


def test_a_manifest_that_contradicts_itself_is_refused(gpt2: Trained) -> None:
    """A cache without its graph, an input that is not fed, a size with another name."""
    manifest = Bundle.open(gpt2.bundle).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    for field, value in (("cache", []), ("ids", "other"), ("end", [-1]), ("attention_mask", None)):
        plain = manifest.to_dict()
        plain["generation"][field] = value
        with pytest.raises(BundleError):
            Manifest.from_dict(plain)
    plain = manifest.to_dict()
    plain["generation"]["cache"][0]["shape"][0] = "rows"
    with pytest.raises(BundleError, match="batch"):
        Manifest.from_dict(plain)


def test_the_command_shows_what_an_adapter_changes(causal: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """One answer without the adapter and one with it; --no-adapter leaves the second out."""
    arguments = ["generate", str(causal.bundle), "--prompt", "good film", "--prompt", "bad", "--max-new-tokens", "5"]
    assert run([*arguments, "--adapter", str(causal.update), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["good film", "bad"]
    assert all(set(line) == {"prompt", "without", "with"} for line in lines)
    assert any(line["without"] != line["with"] for line in lines)
    assert run([*arguments, "--no-adapter", "--template", r"the film was\n{prompt}"]) == 0
    assert "without the adapter" in capsys.readouterr().out
    assert run([*arguments, "--template", "no place"]) == 1
    assert "bad-template" in capsys.readouterr().err
