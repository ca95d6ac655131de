"""Real bundles of tiny models, each prepared once for all tests of a session."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import edgepeft
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.specs import ImageSpec, TextSpec
from tests.support.networks import tiny_gpt2

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "good",
    "bad",
    "fine",
    "awful",
    "the",
    "film",
    "was",
    "a",
    "story",
    "and",
    "its",
    "end",
]
PAD, UNK, CLS, SEP, GOOD, BAD = range(6)

FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask"}

LONGEST = 12
"""Tokens of a text, as the bundles are prepared."""

IMAGE = ImageSpec("image", (8, 8), 1, (0.5,), (0.25,))


@dataclass(frozen=True)
class Trained:
    """A bundle, an update of a few steps, and the model directory they come from (``None`` where there is none)."""

    bundle: Path
    update: Path
    model: Path | None


def write_tokenizer(path: Path) -> Path:
    """One token per word; ``[CLS] … [SEP]`` around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.save(str(path))
    return path


def write_model(folder: Path) -> Path:
    """A model directory as ``save_pretrained`` writes it: a BERT of two layers with two classes."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    return folder


@functools.cache
def text(base: Path) -> Trained:
    """BERT with LoRA on query and value, and a trained head; classes "no" and "yes"."""
    folder = base / "text"
    model = write_model(folder / "model")
    source = edgepeft.load_source(model, max_length=LONGEST)
    method = edgepeft.Lora(rank=4, target_modules=("query", "value"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = edgepeft.prepare(source, method=method, out=folder / "bundle").bundle
    ids = np.random.default_rng(0).integers(GOOD, len(WORDS), (8, 6))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids[:, 0] % 2}
    return Trained(bundle, _update(bundle, batch, folder), model)


@functools.cache
def causal(base: Path) -> Trained:
    """GPT-2, whose head is tied to its embedding, with LoRA on the attention and on the head."""
    from peft import LoraConfig, get_peft_model

    folder = base / "causal"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn", "lm_head"])
        model = get_peft_model(tiny_gpt2(), config)
        ids = torch.randint(0, 100, (2, 6), generator=torch.Generator().manual_seed(0))
        bundle = edgepeft.prepare(
            model,
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            loss="causal_lm",
            preprocessing=edgepeft.Preprocessing(
                TextSpec(LONGEST, PAD, FIELDS), write_tokenizer(folder / "tokenizer.json")
            ),
            out=folder / "bundle",
        ).bundle
    batch = {"input_ids": ids.numpy(), "attention_mask": np.ones((2, 6), np.int64), "labels": ids.numpy()}
    return Trained(bundle, _update(bundle, batch, folder), None)


@functools.cache
def images(base: Path) -> Trained:
    """Two convolutions and a linear layer, all with LoRA, in a PeftModel; classes "dark" and "light"."""
    from peft import LoraConfig, get_peft_model

    folder = base / "images"
    folder.mkdir()
    model = get_peft_model(convolutions(), LoraConfig(r=2, lora_alpha=6, target_modules=["first", "second", "last"]))
    bundle = edgepeft.prepare(
        model,
        {"image": torch.zeros(2, 1, 8, 8)},
        classes=["dark", "light"],
        preprocessing=edgepeft.Preprocessing(image=IMAGE),
        out=folder / "bundle",
    ).bundle
    draw = np.random.default_rng(0)
    batch = {"image": draw.normal(size=(8, 1, 8, 8)).astype(np.float32), "labels": np.arange(8) % 2}
    return Trained(bundle, _update(bundle, batch, folder), None)


@functools.cache
def regression(base: Path) -> Trained:
    """A linear layer with two outputs, trained whole on the mean squared error."""
    folder = base / "regression"
    folder.mkdir()
    torch.manual_seed(0)
    bundle = edgepeft.prepare(nn.Linear(3, 2), {"input": torch.zeros(2, 3)}, loss="mse", out=folder / "bundle").bundle
    batch = {"input": np.ones((4, 3), np.float32), "labels": np.ones((4, 2), np.float32)}
    return Trained(bundle, _update(bundle, batch, folder), None)


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(image))))
        return self.last(x.mean(dim=(2, 3)))


def convolutions() -> nn.Module:
    """The network of ``images``."""
    torch.manual_seed(0)
    return _Convolutions()


def predictions(trained: Trained, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the device's outputs after its training."""
    with Trainer.open(trained.bundle) as trainer:
        return trainer.predict(inputs, adapter=trained.update)[Bundle.open(trained.bundle).manifest.outputs[0].name]


def _update(bundle: Path, batch: dict[str, np.ndarray], folder: Path) -> Path:
    """An update of five large steps, so that every LoRA pair is far from zero."""
    with Trainer.open(bundle) as trainer:
        for _ in range(5):
            trainer.step(batch, lr=0.05)
        return trainer.save_update(folder / "update.safetensors")
