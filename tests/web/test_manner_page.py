"""The page that teaches a language model a manner, used as a person would: asked, taught, stopped, exported."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgepeft.data.prompts import Prompter
from edgepeft_runtime import Bundle, Trainer, check_update, read_update
from tests.support.bundles import LONGEST, Trained
from tests.web.test_phone_page import PAGE
from tests.web.toolchain import browse, installed, run

pytestmark = pytest.mark.slow

EXAMPLES = [("the film was", "good"), ("a story", "and its end"), ("its end was", "awful"), ("the story was", "fine")]
QUESTION = "the film was"


@pytest.fixture(scope="module")
def seen(causal: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened on the page, on two threads; ``update`` is the exported file."""
    work = tmp_path_factory.mktemp("manner")
    installed(PAGE)
    run("node", "build.mjs", cwd=PAGE)
    examples = [{"prompt": prompt, "answer": answer} for prompt, answer in EXAMPLES]
    plan = {"bundle": str(causal.bundle), "threads": 2, "epochs": 30, "examples": examples, "question": QUESTION}
    (work / "plan.json").write_text(json.dumps(plan | {"stop": 4}), "utf-8")
    return browse("manner", PAGE / "dist", work, work / "plan.json") | {"update": work / "update.safetensors"}


def test_it_answers_as_python_does_before_and_after(seen: dict[str, Any], causal: Trained) -> None:
    """Greedy answers with the bundle's adapter and with the exported one, which the host accepts."""
    bundle = Bundle.open(causal.bundle)
    check_update(read_update(seen["update"]), bundle)
    prompter = Prompter(bundle)
    with Trainer.open(bundle.path) as trainer:
        for adapter, found in ((None, seen["taught"]["before"]), (seen["update"], seen["taught"]["after"])):
            settings = {} if adapter is None else {"adapter": adapter}
            (tokens,) = trainer.generate(prompter.prompt(QUESTION), max_new_tokens=LONGEST, **settings)
            assert found == prompter.decoded(tokens).strip()
    assert seen["untrained"]["before"] == seen["untrained"]["after"] == seen["taught"]["before"]
    assert seen["taught"]["after"].startswith("good")


def test_it_is_stopped_within_a_step_and_resumes(seen: dict[str, Any]) -> None:
    """60 steps of two examples; the first run ends in the step after the fourth or a little later."""
    assert seen["threads"] == "2 threads"
    assert seen["stop"]["status"] == "Error: Stopped." and 4 <= seen["stop"]["step"] < 60
    assert seen["count"] == {"steps": 60, "shown": "60 / 60"} and seen["status"] == "Trained. Ask something."
