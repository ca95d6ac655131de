"""MiniLM with int8 LoRA in Chromium, on labelled texts that are typed into the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepeft.data.tokenizer import tokenizer_of
from edgepeft_runtime import Bundle, Trainer
from tests.web import minilm

pytestmark = pytest.mark.slow

STEPS = 4


def test_typed_text_trains_as_in_python(tmp_path: Path) -> None:
    """Same tokens, same order, losses within 1 % of Python's: int8 products round alike, sums of floats do not."""
    bundle, data = minilm.prepare(tmp_path), minilm.examples(16)
    found = minilm.train(bundle, tmp_path, 2, STEPS, data)
    opened = Bundle.open(bundle)
    tokenizer = tokenizer_of(opened)
    tokenizer.enable_truncation(minilm.LONGEST)
    classes = opened.manifest.classes
    assert classes is not None

    def batch(rows: np.ndarray) -> dict[str, np.ndarray]:
        encoded = [tokenizer.encode(data[row][0]) for row in rows]
        width = max(len(one.ids) for one in encoded)
        ids = np.array([one.ids + [0] * (width - len(one.ids)) for one in encoded])
        mask = np.array([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in encoded])
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        fed = {spec.name: arrays[spec.name] for spec in opened.manifest.inputs}
        return {**fed, "labels": np.array([classes.index(data[row][1]) for row in rows])}

    first = batch(np.array([0]))
    assert found["ids"] == [",".join(map(str, first[spec.name].reshape(-1))) for spec in opened.manifest.inputs]
    losses: list[float] = []
    with Trainer.open(bundle) as trainer:
        for step in range(STEPS):
            order = np.random.default_rng([0, step // 2]).permutation(len(data))
            rows = order[8 * (step % 2) : 8 * (step % 2) + 8]
            losses.append(trainer.step(batch(rows), lr=2e-3))
    assert found["losses"] == pytest.approx(losses, rel=1e-2)
