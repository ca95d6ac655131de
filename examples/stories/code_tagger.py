"""A tagger of code: calls, modules, parameters and classes in the source of Python's standard library.

The tokens are those of ``tokenize``, the entities those of ``ast``. A bidirectional LSTM reads lines and learns the
spans; what is measured is F1 over whole entities, of files that it has not seen.
"""

from __future__ import annotations

import ast
import copy
import io
import sysconfig
import tempfile
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path

import beside
import numpy as np
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft_runtime import Trainer
from edgepeft_runtime.metrics.spans import entities

KINDS = ("call", "module", "parameter", "class")
CLASSES = ["O", *(f"{part}-{kind}" for kind in KINDS for part in "BI")]
TRAIN = "argparse ast bdb calendar configparser dataclasses difflib doctest enum ftplib"
TEST = "imaplib inspect"
LENGTH, WORDS = 24, 4096
LINES = 2000, 500
EPOCHS, BATCH, LR = 4, 64, 2e-2

Tag = tuple[str, str]
"""A token and its class."""


def main() -> None:
    train, test = (arrays(*part) for part in zip((TRAIN, TEST), LINES, strict=True))
    torch.manual_seed(0)
    model = Tagger()
    twin = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        edgepeft.prepare(
            model, {"tokens": torch.zeros(2, LENGTH, dtype=torch.int64)}, method="full", classes=CLASSES, out=bundle
        )
        with Trainer.open(bundle) as trainer:
            before = trainer.evaluate(test, 64, ["entity_f1"])
            trainer.fit(train, epochs=EPOCHS, batch_size=BATCH, lr=LR)
            after = trainer.evaluate(test, 64, ["entity_f1"])
    beside.train(
        twin,
        lambda batch: nn.functional.cross_entropy(twin(batch["tokens"]).flatten(0, 1), batch["labels"].flatten()),
        beside.batches(train, BATCH, EPOCHS),
        LR,
    )
    print(
        f"{len(train['tokens']):,} lines to train on, {len(test['tokens']):,} of other modules held out, "
        f"entities: {', '.join(KINDS)}"
    )
    print(f"  entity F1 {before.metrics['entity_f1'].value:.3f} -> {after.metrics['entity_f1'].value:.3f}")
    beside.compared("entity F1", after.metrics["entity_f1"].value, torch_f1(twin, test))


class Tagger(nn.Module):
    """Embeddings of hashed tokens, an LSTM in both directions, and a score per class."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, len(CLASSES))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(tokens))[0])


def arrays(modules: str, count: int) -> dict[str, np.ndarray]:
    """Hashes of tokens [lines, LENGTH], and classes with -100 on padding."""
    tokens, labels = [], []
    lines = [line for name in modules.split() for line in tagged(name)]
    for line in [lines[at] for at in np.random.default_rng(0).permutation(len(lines))[:count]]:
        padding = LENGTH - len(line)
        tokens.append([zlib.crc32(text.encode()) % (WORDS - 1) + 1 for text, _ in line] + [0] * padding)
        labels.append([CLASSES.index(tag) for _, tag in line] + [-100] * padding)
    return {"tokens": np.array(tokens), "labels": np.array(labels)}


def tagged(module: str) -> Iterator[list[Tag]]:
    """Yield the lines of a module that have an entity."""
    root = Path(sysconfig.get_path("stdlib")) / module
    for file in sorted(root.glob("*.py")) if root.is_dir() else [root.with_suffix(".py")]:
        text = file.read_text("utf-8")
        spans = {start: (end, kind) for start, end, kind in found(ast.parse(text))}
        line: list[Tag] = []
        inside = ((0, 0), "")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.NEWLINE, tokenize.NL):
                if 3 <= len(line) <= LENGTH and any(tag != "O" for _, tag in line):
                    yield line
                line = []
            elif token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
                tag = "O"
                if token.start in spans:
                    inside = spans[token.start]
                    tag = f"B-{inside[1]}"
                elif token.start < inside[0]:
                    tag = f"I-{inside[1]}"
                line.append((token.string, tag))


def found(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int], str]]:
    """Yield start, end and kind of each entity."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func):
            yield (*extent(node.func), "call")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names if isinstance(node, ast.Import) else ():
                start = (alias.lineno, alias.col_offset)
                yield start, (alias.lineno, alias.col_offset + len(alias.name)), "module"
        elif isinstance(node, ast.arg):
            yield (node.lineno, node.col_offset), (node.lineno, node.col_offset + len(node.arg)), "parameter"
        elif isinstance(node, ast.ClassDef):
            for base in filter(dotted, node.bases):
                yield (*extent(base), "class")


def dotted(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and dotted(node.value))


def extent(node: ast.expr) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)


def torch_f1(model: nn.Module, data: dict[str, np.ndarray]) -> float:
    with torch.no_grad():
        predicted = model(torch.from_numpy(data["tokens"])).argmax(-1).numpy()
    right = total = 0
    for row, true in zip(predicted, data["labels"], strict=True):
        counted = true != -100
        one, other = (entities([CLASSES[at] for at in side[counted]]) for side in (row, true))
        right, total = right + 2 * len(one & other), total + len(one) + len(other)
    return right / total


if __name__ == "__main__":
    main()
