"""The phone page, used as a person would in a window of 390 x 844: drawn on, trained, compared, exported, killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import edgepeft
from edgepeft_runtime import Trainer, read_update
from tests.web.toolchain import PAGE, browse, installed, run

pytestmark = pytest.mark.slow

BUNDLE = PAGE / "bundle"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phone")


@pytest.fixture(scope="module")
def seen(work: Path) -> dict[str, Any]:
    """What happened on the page, which is built first."""
    installed(PAGE)
    run("npx", "tsc", cwd=PAGE)
    run("node", "build.mjs", cwd=PAGE)
    return browse("phone", PAGE / "dist", work)


def test_it_is_formatted_and_typed() -> None:
    """Prettier has nothing to change, and ``tsc --strict`` nothing to say."""
    run("npm", "run", "lint", cwd=installed(PAGE))


def test_it_learns_the_signs_that_are_drawn(seen: dict[str, Any]) -> None:
    """The model recognises at most one of four new signs, drawn by finger; afterwards all, as the page says."""
    before, after = zip(*seen["guesses"], strict=True)
    assert sum(guess == sign for sign, guess in enumerate(before)) <= 1
    assert after == (0, 1, 2, 3)
    first, last = (int(percent) for percent in seen["accuracy"].removesuffix(" %").split(" → "))
    assert first <= 40 and last >= 80


def test_the_page_stays_alive_while_it_trains(seen: dict[str, Any]) -> None:
    """A sign drawn meanwhile is recognised before the training ends."""
    assert seen["alive"]


def test_the_host_merges_what_was_exported(seen: dict[str, Any], work: Path) -> None:
    """The update is whole, belongs to the bundle, records the training, and becomes an ``.onnx`` model."""
    pulled = edgepeft.pull([work], work / "updates", BUNDLE)
    assert len(pulled.accepted) == 1 and not pulled.refused
    path = pulled.accepted[0].path
    update = read_update(path)
    assert update.steps == seen["offline"]["steps"] and update.num_examples == 36 * 150
    assert update.loss_before is not None and update.loss_after is not None
    assert update.loss_after < 0.5 * update.loss_before
    image = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    merged = edgepeft.merge(BUNDLE, path, to="onnx", out=work / "merged.onnx")
    (logits,) = onnxruntime.InferenceSession(merged).run(None, {"image": image})
    with Trainer.open(BUNDLE) as trainer:
        np.testing.assert_allclose(trainer.predict({"image": image}, adapter=path)["output"], logits, atol=1e-4)


def test_it_works_without_a_network(seen: dict[str, Any]) -> None:
    """After the first load, without the server, it opens with its drawings and adapter, and recognises a sign."""
    assert seen["offline"]["steps"] > 0 and seen["offline"]["guess"] == 2
    assert seen["offline"]["status"].startswith("48 drawings")


def test_a_killed_browser_loses_only_unsaved_steps(seen: dict[str, Any]) -> None:
    """It is saved every ten steps and after each epoch, and the training resumes from there."""
    kill = seen["kill"]
    assert kill["steps"] >= kill["seen"] - 10
    assert kill["button"] == f"Resume from step {kill['steps']}"
    assert kill["next"] > kill["steps"]
