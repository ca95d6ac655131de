"""Bundles whose programs have several calls, and language models, in the TypeScript runtime: as in Python."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.data.records import read_records
from edgepeft.data.table import read_table
from edgepeft.data.text import answered
from edgepeft_runtime import Bundle, Trainer, read_tensors, write_tensors
from tests.support import segmented_bundle
from tests.support.bundles import Trained
from tests.web.toolchain import browse, drive

ROWS = [(0, 8), (8, 12), (12, 20), (20, 24)]
FIT = {"epochs": 2, "batch_size": 5, "accumulate": 2, "save_every": 1}
CAMEL = {"epochs": 2, "batchSize": 5, "accumulate": 2, "saveEvery": 1}
PROMPTS = [[5, 6, 7, 3], [9], [8, 8, 11, 12, 13, 4]]


@pytest.fixture
def segmented(tmp_path: Path) -> Path:
    return segmented_bundle.build(tmp_path / "bundle")


@pytest.fixture
def plan(segmented: Path, tmp_path: Path) -> dict[str, Any]:
    """A plan without anything to do, with 24 examples, three of which have an ignored label."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 24)
    labels[[2, 9, 10]] = -100
    data = {"x": rng.normal(size=(24, 4)).astype(np.float32), "labels": labels}
    write_tensors(tmp_path / "data.safetensors", data)
    return {"bundle": segmented, "data": tmp_path / "data.safetensors"}


def _data(plan: dict[str, Any]) -> dict[str, np.ndarray]:
    return dict(read_tensors(plan["data"]).tensors)


def _cut(data: dict[str, np.ndarray], rows: tuple[int, int]) -> dict[str, np.ndarray]:
    return {name: array[slice(*rows)] for name, array in data.items()}


@pytest.mark.parametrize("ort", ["node", "wasm"])
def test_segments_train_as_in_pytorch(ort: str, plan: dict[str, Any], tmp_path: Path) -> None:
    """Weights are inputs of the graphs, and gradients of two blocks go to parts of one bucket."""
    data = _data(plan)
    result = drive(plan | {"steps": ROWS, "predict": (0, 24), "update": tmp_path / "update"}, tmp_path, ort)
    losses, parameters = segmented_bundle.torch_losses(plan["bundle"], [_cut(data, rows) for rows in ROWS])
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    update = read_tensors(tmp_path / "update").tensors
    for spec, array in zip(segmented_bundle.PARAMETERS, parameters, strict=True):
        np.testing.assert_allclose(update[spec.name], array, rtol=1e-4, atol=1e-6, err_msg=spec.name)
    with Trainer.open(plan["bundle"], adapter=tmp_path / "update") as trainer:
        (outputs,) = trainer.predict({"x": data["x"]}).values()
    np.testing.assert_allclose(result["outputs"]["logits"]["data"], outputs.reshape(-1), rtol=1e-4, atol=1e-5)


class Words(nn.Module):
    """A table, and a matrix before a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.head = nn.Embedding(60, 48), nn.Linear(48, 64), nn.Linear(64, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.up(self.words(ids).mean(1))))


@pytest.mark.parametrize("ort", ["node", "wasm"])
def test_four_bits_train_as_in_python(ort: str, tmp_path: Path) -> None:
    """A table and matrices that the graphs expand to int8: the kernels are in every build of onnxruntime."""
    torch.manual_seed(0)
    bundle = edgepeft.prepare(
        Words(),
        torch.zeros(2, 2, dtype=torch.int64),
        method=edgepeft.Lora(rank=2, target_modules=("up",)),
        compute="int4",
        out=tmp_path / "bundle",
    ).bundle
    rng = np.random.default_rng(0)
    data = {"ids": rng.integers(0, 60, (24, 2)), "labels": rng.integers(0, 3, 24)}
    write_tensors(tmp_path / "data.safetensors", data)
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step(_cut(data, rows)) for rows in ROWS]
    result = drive({"bundle": bundle, "data": tmp_path / "data.safetensors", "steps": ROWS}, tmp_path, ort)
    assert result["losses"] == pytest.approx(losses, rel=3e-3)
    stored = {tensor.name: tensor.elements for tensor in Bundle.open(bundle).manifest.stored}
    assert stored["base_model.model.words.weight.int4"] == 60 * 48
    assert stored["base_model.model.up.base_layer.weight.int4"] == 48 * 64


def test_segments_train_in_chromium(plan: dict[str, Any], tmp_path: Path) -> None:
    """The parts of weights.bin come from a Blob, on two threads."""
    expected = {"batches": ROWS, "evaluate": (0, 24), "predict": (0, 4)}
    (tmp_path / "expected.json").write_text(json.dumps(expected), "utf-8")
    result, data = browse("golden", 2, tmp_path), _data(plan)
    with Trainer.open(plan["bundle"]) as trainer:
        losses = [trainer.step(_cut(data, rows)) for rows in ROWS]
        (outputs,) = trainer.predict(_cut(data, (0, 4))).values()
        assert result["evaluation"]["loss"] == pytest.approx(trainer.evaluate(data).loss, rel=1e-5)
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    np.testing.assert_allclose(result["outputs"], outputs.reshape(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", ["python", "node"])
def test_a_run_of_segments_resumes_in_the_other_runtime(first: str, plan: dict[str, Any], tmp_path: Path) -> None:
    """Both name the same programs and graphs in a checkpoint: cut off at step 3, resumed, the same losses."""
    state, data, whole = tmp_path / "state", _data(plan), list[float]()
    with Trainer.open(plan["bundle"]) as trainer:
        trainer.fit(data, callbacks=[lambda progress: whole.append(progress.loss)], **FIT)
    if first == "node":
        drive(plan | {"state": state, "fit": CAMEL, "die": 3}, tmp_path)
    else:
        with Trainer.open(plan["bundle"], state=state) as trainer, pytest.raises(RuntimeError):
            trainer.fit(data, callbacks=[_dies_at_3], **FIT)
    rest = list[float]()
    if first == "python":
        rest = drive(plan | {"state": state, "fit": CAMEL}, tmp_path)["losses"]
    else:
        with Trainer.open(plan["bundle"], state=state) as trainer:
            trainer.fit(data, callbacks=[lambda progress: rest.append(progress.loss)], **FIT)
    assert rest == pytest.approx(whole[-len(rest) :], rel=1e-5) and len(whole) - len(rest) in (2, 3)


def _dies_at_3(progress: Any) -> None:
    if progress.step == 3:
        raise RuntimeError("the power went")


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "topK": 40, "topP": 0.9, "seed": 3}])
def test_a_language_model_generates_the_tokens_of_python(
    sampling: dict[str, Any], causal: Trained, plan: dict[str, Any], tmp_path: Path
) -> None:
    """Greedy and sampled; prompts of three lengths, with the cache if the bundle has one."""
    settings = {re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name): value for name, value in sampling.items()}
    with Trainer.open(causal.bundle, adapter=causal.update) as trainer:
        expected = trainer.generate(PROMPTS, max_new_tokens=5, **settings)
    task = {"prompts": PROMPTS, "sampling": {"maxNewTokens": 5} | sampling}
    assert drive(plan | task | {"bundle": causal.bundle, "adapter": causal.update}, tmp_path)["texts"] == expected


def test_prompts_and_answers_are_the_tokens_of_python(causal: Trained, plan: dict[str, Any], tmp_path: Path) -> None:
    """One fits, one prompt is cut on the left after its first special token; only answers are labels."""
    examples = [("the film was", "good"), ("a story and its end was " * 4, "awful fine")]
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in examples]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    table, bundle = read_table(read_records(path), "prompt", "answer"), Bundle.open(causal.bundle)
    with pytest.warns(UserWarning, match="1 of 2 texts are cut"):
        expected = answered(table, bundle).batch(np.arange(2))
    found = drive(plan | {"bundle": causal.bundle, "examples": rows}, tmp_path)["batch"]
    assert found.pop("notices") == ["1 of 2 texts are cut to 12 tokens; the longest has 27."]
    assert found == {name: array.reshape(-1).tolist() for name, array in expected.items()}
