"""MiniLM learns which docstring belongs to which function of Python's standard library, by multiple negatives.

A name such as ``shutil.copytree`` is to find its docstring among those of all held-out functions. LoRA trains on pairs
of a name and a docstring; the other pairs of a batch are the negatives. PyTorch trains a copy with the same batches.
"""

from __future__ import annotations

import ast
import copy
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import beside
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel

import edgepeft
from edgepeft_runtime import Trainer

sys.path.append(str(Path(__file__).parents[1]))
from docstring_topics import minilm
from docstrings import TOPICS

TRAIN, TEST, LENGTH = 240, 200, 20
EPOCHS, BATCH, LR = 2, 24, 2e-3
SCALE = 20.0


def main() -> None:
    pairs = [pair for name in dict.fromkeys(" ".join(TOPICS.values()).split()) for pair in functions(name)]
    pairs = [pairs[at] for at in np.random.default_rng(0).permutation(len(pairs))]
    train, test = (tokens(part) for part in (pairs[:TRAIN], pairs[TRAIN : TRAIN + TEST]))
    torch.manual_seed(0)
    base = AutoModel.from_pretrained(minilm(), attn_implementation="eager")
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"])
    model = Encoder(get_peft_model(base, lora)).eval()
    twin = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        edgepeft.prepare(
            model,
            {name: torch.from_numpy(array[:2]) for name, array in train.items()},
            loss="multiple_negatives",
            interface=edgepeft.Interface({name: {0: "batch", 1: "texts", 2: "sequence"} for name in train}),
            out=bundle,
        )
        with Trainer.open(bundle) as trainer:
            before = embedded(trainer, test)
            trainer.fit(train, epochs=EPOCHS, batch_size=BATCH, lr=LR)
            after = embedded(trainer, test)
    beside.train(twin, lambda batch: ranking(twin(**batch)), beside.batches(train, BATCH, EPOCHS), LR)
    with torch.no_grad():
        expected = twin(**{name: torch.from_numpy(array) for name, array in test.items()}).numpy()
    print(f"{TRAIN} names with docstrings to train on, {TEST} held out")
    for k in (1, 10):
        print(f"  recall@{k} {recall(before, k):.3f} -> {recall(after, k):.3f}")
    beside.compared("recall@10", recall(after, 10), recall(expected, 10))


class Encoder(nn.Module):
    """The mean of MiniLM's last states over each text: ``[batch, texts, width]`` of ``[batch, texts, sequence]``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        flat, kept = ids.flatten(0, 1), mask.flatten(0, 1)
        states = self.model(input_ids=flat, attention_mask=kept).last_hidden_state * kept[:, :, None]
        means = states.sum(1) / kept.sum(1, keepdim=True)
        return means.reshape(ids.shape[0], ids.shape[1], -1)


def functions(module: str) -> Iterator[tuple[str, str]]:
    """Yield name and first sentence of the docstring of public functions and methods."""
    root = Path(ast.__file__).parent / module
    for file in sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]:
        if not file.is_file() or "test" in str(file.relative_to(root.parent)):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8-sig", errors="replace"))):
            if (
                isinstance(node, ast.FunctionDef)
                and not node.name.startswith("_")
                and (text := ast.get_docstring(node))
            ):
                sentence = re.split(r"\.\s|\n\n", text)[0]
                if len(sentence.split()) > 3:
                    yield f"{module} {node.name.replace('_', ' ')}", " ".join(sentence.split())


def tokens(pairs: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Ids and mask ``[pairs, 2, LENGTH]``."""
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = [tokenizer.encode_batch(list(pair)) for pair in pairs]
    ids, mask = (np.array([[getattr(e, key) for e in pair] for pair in encoded]) for key in ("ids", "attention_mask"))
    return {"ids": ids, "mask": mask}


def embedded(trainer: Trainer, data: dict[str, np.ndarray]) -> np.ndarray:
    parts = [{name: array[at : at + 50] for name, array in data.items()} for at in range(0, TEST, 50)]
    return np.concatenate([trainer.predict(part)["output"] for part in parts])


def ranking(embeddings: Tensor) -> Tensor:
    """The loss in torch."""
    names, texts = nn.functional.normalize(embeddings, dim=2).unbind(1)
    return nn.functional.cross_entropy(SCALE * names @ texts.T, torch.arange(len(names)))


def recall(embeddings: np.ndarray, k: int) -> float:
    """How often a name's own docstring is among the k nearest of all."""
    names, texts = np.moveaxis(embeddings / np.linalg.norm(embeddings, axis=2, keepdims=True), 1, 0)
    scores = names @ texts.T
    own = np.diagonal(scores)[:, None]
    return float(((scores > own).sum(1) < k).mean())


if __name__ == "__main__":
    main()
