"""The chat page, used by keys: an answer is corrected, the next one follows, and what was learned is delivered."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgepeft.data.conversations.prompts import Prompter
from edgepeft.sync import accepted, collect
from edgepeft_runtime import Bundle, Trainer
from tests.support.bundles import LONGEST
from tests.web.chats import inviting, small_bundle
from tests.web.toolchain import PAGE, browse, installed, run

QUESTION, CORRECTION, SIMILAR = "the film was", "awful", "a film was"
EXAMPLES = [("its end", "fine"), ("the end", "fine")] * 3


def _seen(work: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """What happened on the page, which is built first."""
    run("node", "build.mjs", cwd=installed(PAGE))
    (work / "plan.json").write_text(json.dumps(plan, default=str), "utf-8")
    return browse("chat", PAGE / "dist", work, work / "plan.json")


def _words(text: str) -> list[str]:
    """The words of an answer: this tokenizer does not mark its end token as special."""
    return [word for word in text.split() if not word.startswith("[")]


def test_a_correction_is_learned_and_delivered(tmp_path: Path) -> None:
    """The small model: its answer is corrected, a similar question gets it, and the host accepts the update.

    The link asks first, and leaves no key in the address. Of six typed examples the last is held back. axe finds
    nothing in five states and both themes. A second delivery changes nothing. Without a network the page opens,
    answers, and says why it cannot deliver; and it says when the storage is full.
    """
    bundle = small_bundle(tmp_path)
    examples = [{"prompt": prompt, "answer": answer} for prompt, answer in EXAMPLES]
    with inviting(bundle, tmp_path) as invited:
        plan = {"bundle": bundle, "port": invited.port, "link": invited.link, "threads": 1, "epochs": 120}
        talk = {"examples": examples, "question": QUESTION, "correction": CORRECTION, "similar": [SIMILAR]}
        seen = _seen(tmp_path, plan | talk)
        pulled = collect([invited.host.received], invited.host)
    assert seen["axe"] == [] and seen["hash"] == ""
    assert seen["first"]["after"] == seen["first"]["before"] != CORRECTION
    assert seen["learned"] == "Learned. Ask something similar."
    (similar,) = seen["similar"]
    assert _words(seen["again"]["answer"]) == _words(similar["after"]) == [CORRECTION] != _words(similar["before"])
    before, after = map(float, seen["again"]["held"].split(" → "))
    assert after < before
    assert seen["delivery"][0].startswith("Delivered ") and seen["delivery"][0].endswith("for round 1.")
    assert seen["delivery"][1] == "The server has this update already."
    assert _words(seen["offline"]["after"]) == [CORRECTION]
    assert seen["offline"]["delivery"].startswith("This device is offline.")
    assert seen["full"].startswith("The storage of this browser is full.")
    assert len(pulled.accepted) == 1 and not pulled.refused
    ((_, path),) = accepted(invited.host)
    prompter = Prompter(Bundle.open(bundle))
    with Trainer.open(bundle) as trainer:
        (tokens,) = trainer.generate(prompter.prompt(SIMILAR), max_new_tokens=LONGEST, adapter=path)
    assert _words(prompter.decoded(tokens)) == [CORRECTION]


@pytest.mark.slow
def test_smollm2_learns_a_manner_by_one_correction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2-135M in int8: after one corrected answer, it answers a similar question in that manner."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(PAGE), str(PAGE.parent)])
    from prepare_manner import prepare
    from smollm2 import smollm2

    correction = "Arr, the capital of France be Paris, matey!"
    plan = {"bundle": prepare(smollm2(), tmp_path / "bundle"), "port": 0, "threads": 2, "examples": []}
    talk = {"question": "What is the capital of France?", "correction": correction}
    seen = _seen(tmp_path, plan | talk | {"similar": ["What is the capital of Spain?"]})
    assert not seen["first"]["after"].startswith("Arr") and seen["again"]["answer"] == correction
    (similar,) = seen["similar"]
    assert similar["after"].startswith("Arr, the capital of Spain be ") and not similar["before"].startswith("Arr")
    assert seen["axe"] == []
