"""What a page takes for granted: model directories, and data of the reader's own. All of it is small and made here."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

_SUBJECTS = ("the parcel", "my order", "the last letter", "this account", "the second card", "our invoice")
_WORDS = {
    "billing": ("was charged twice", "shows a wrong price", "needs a refund"),
    "delivery": ("has not arrived", "came broken", "is still on its way"),
    "other": ("is a gift", "belongs to a friend", "has a new name"),
}
TEXTS = [(f"{a} {b}", label) for label, words in _WORDS.items() for a, b in itertools.product(_SUBJECTS, words)]
LONGEST = 64


def write(name: str, folder: Path) -> None:
    """Write a file or a folder.

    Raises:
        KeyError: No writer has this name.
    """
    WRITERS[name](folder / name)


def _texts(path: Path) -> None:
    """Two thirds of the texts to train on, or the rest of them."""
    rows = [row for i, row in enumerate(TEXTS) if (i % 3 > 0) == (path.name in ("texts.csv", "own.csv"))]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def _bert(folder: Path) -> None:
    """A BERT without a head of these classes, and a tokenizer of the texts' words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"])
    tokenizer.train_from_iterator([text for text, _ in TEXTS], special)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=LONGEST, **sizes)
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def _vit(folder: Path) -> None:
    from transformers import ViTImageProcessor

    from tests.support.networks import tiny_vit

    tiny_vit().save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def _photos(folder: Path) -> None:
    """Two classes: bright above, or bright below."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for label, kind in enumerate(("cat", "dog")):
        (folder / kind).mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(0, 120, (24, 24, 3), dtype=np.uint8)
            pixels[12 * label : 12 * label + 12] += 100
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")


def _answers(path: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "answer": f"It is {n}, the number."} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _gguf(path: Path) -> None:
    from tests.support.llamas.gguf_files import tiny_llama, write_gguf

    write_gguf(tiny_llama(), path, "Q8_0")


def _bundle(folder: Path) -> None:
    """LoRA on the BERT; its directory is beside it, for ``merge``."""
    import edgepeft

    write("bert", folder.parent)
    classes = sorted(_WORDS)
    source = edgepeft.load_source(folder.parent / "bert", task="text-classification", classes=classes, max_length=16)
    edgepeft.prepare(source, method=edgepeft.Lora(rank=4), out=folder)


def _inbox(folder: Path) -> None:
    """The updates of three devices, a few steps each, from the bundle beside it."""
    from edgepeft.data import load
    from edgepeft_runtime import Bundle, Trainer

    write("texts.csv", folder.parent)
    folder.mkdir()
    bundle = Bundle.open(folder.parent / "bundle")
    data = load(folder.parent / "texts.csv", bundle)
    for device in range(3):
        with Trainer.open(bundle, seed=device) as trainer:
            trainer.fit(data, epochs=2, batch_size=8, lr=0.003)
            trainer.save_update(folder / f"pi-{device}.safetensors")


def _onnx(path: Path) -> None:
    """A small network of numbers, with three classes."""
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)).eval()
    names = {"input_names": ["x"], "output_names": ["logits"]}
    free = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(network, (torch.zeros(2, 16),), path, **names, dynamic_shapes=free, dynamo=True)


def _arrays(path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(96, 16)).astype(np.float32)
    np.savez(path, x=x, labels=x[:, :3].argmax(axis=1))


WRITERS: dict[str, Callable[[Path], None]] = {
    "bert": _bert,
    "vit": _vit,
    "photos": _photos,
    "answers.jsonl": _answers,
    "SmolLM2-135M-Instruct.gguf": _gguf,
    "texts.csv": _texts,
    "unseen.csv": _texts,
    "held_out.csv": _texts,
    "own.csv": _texts,
    "bundle": _bundle,
    "inbox": _inbox,
    "model.onnx": _onnx,
    "data.npz": _arrays,
}
