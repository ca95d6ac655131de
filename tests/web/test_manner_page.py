"""The page that teaches a language model a manner, used as a person would: asked, taught, stopped, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.browser import PHASES, measured, table
from edgepeft.data.conversations.prompts import Prompter
from edgepeft_runtime import Bundle, Trainer, check_update, read_update
from tests.support.bundles import LONGEST
from tests.web.chats import small_bundle
from tests.web.toolchain import PAGE, browse, installed, run

pytestmark = pytest.mark.slow

EXAMPLES = [("the film was", "good"), ("a story", "and its end"), ("its end was", "awful"), ("the story was", "fine")]
QUESTION = "the film was"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manner")


@pytest.fixture(scope="module")
def bundle(work: Path) -> Path:
    return small_bundle(work)


@pytest.fixture(scope="module")
def pages() -> Path:
    """The pages, built."""
    run("node", "build.mjs", cwd=installed(PAGE))
    return PAGE / "dist"


@pytest.fixture(scope="module")
def seen(bundle: Path, work: Path, pages: Path) -> dict[str, Any]:
    """What happened on the page, on two threads; ``update`` is the exported file."""
    examples = [{"prompt": prompt, "answer": answer} for prompt, answer in EXAMPLES]
    plan = {"bundle": str(bundle), "threads": 2, "epochs": 30, "examples": examples, "question": QUESTION}
    (work / "plan.json").write_text(json.dumps(plan | {"stop": 4}), "utf-8")
    return browse("manner", pages, work, work / "plan.json") | {"update": work / "update.safetensors"}


def test_it_answers_as_python_does_before_and_after(seen: dict[str, Any], bundle: Path) -> None:
    """Greedy answers with the bundle's adapter and with the exported one, which the host accepts."""
    update = read_update(seen["update"])
    check_update(update, Bundle.open(bundle))
    assert update.loss_before is not None and update.loss_after is not None and update.loss_after < update.loss_before
    prompter = Prompter(Bundle.open(bundle))
    with Trainer.open(bundle) as trainer:
        for adapter, found in ((None, seen["taught"]["before"]), (seen["update"], seen["taught"]["after"])):
            settings = {} if adapter is None else {"adapter": adapter}
            (tokens,) = trainer.generate(prompter.prompt(QUESTION), max_new_tokens=LONGEST, **settings)
            # Ids beyond the tokenizer's few words are empty texts, which Python's decoder leaves out.
            assert found.split() == prompter.decoded(tokens).split()
    assert seen["untrained"]["before"] == seen["untrained"]["after"] == seen["taught"]["before"]
    assert seen["taught"]["after"] != seen["taught"]["before"]
    assert any(name.startswith("block") for name in Bundle.open(bundle).manifest.files)


def test_it_is_stopped_within_a_step_and_resumes(seen: dict[str, Any]) -> None:
    """60 steps of two examples; the first run ends in the step after the fourth or a little later."""
    assert seen["threads"] == "2 threads"
    assert seen["stop"]["status"] == "Stopped." and 4 <= seen["stop"]["step"] < 60
    assert seen["count"] == {"steps": 60, "shown": "60 / 60"} and seen["status"] == "Trained. Ask something."


@pytest.mark.usefixtures("pages")
def test_the_renderers_memory_is_measured(bundle: Path, work: Path) -> None:
    """The benchmark teaches the page; no phase takes more than its peak."""
    folder = work / "measured"
    folder.mkdir()
    row = measured(bundle, folder, 1, 1, EXAMPLES, QUESTION)
    assert row["threads"] == 1 and row["steps"] == 2
    for phase in PHASES:
        memory = row["memory"][phase]
        assert 0 < memory["anonymous"] < memory["now"] <= memory["peak"], phase
    assert row["answer_after"] in table([row]) and (folder / "manner.png").is_file()
