"""A small Llama, made on the spot, learns on a device from 50 answers to speak like a pirate, and keeps its facts."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgepeft
from edgepeft_export.optimizers import AdamW
from tests.support.llamas.small_llama import TEMPLATE, THINGS, Fact, facts_of, teach
from tests.support.processes import CALL, environment

pytestmark = pytest.mark.slow
LESSONS = 50
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _run(*arguments: str | Path) -> list[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-c", CALL, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout.splitlines()


def _answers(bundle: Path, facts: list[Fact], *options: str | Path) -> list[dict[str, str]]:
    """The device's answers to the questions, all in one batch."""
    prompts = [part for fact in facts for part in ("--prompt", fact.question)]
    lines = _run("generate", bundle, *prompts, "--max-new-tokens", "24", "--json", *options)
    return [json.loads(line) for line in lines]


def test_a_style_is_learned_and_facts_are_kept(tmp_path: Path) -> None:
    """Questions that no lesson asks are answered in the new style, mostly rightly; without the adapter, as before."""
    threads = torch.get_num_threads()
    random.seed(0)
    facts = [fact for thing in THINGS.split() for fact in facts_of(thing)]
    random.shuffle(facts)
    lessons, others = facts[:LESSONS], facts[LESSONS:]
    try:
        model = teach(facts, tmp_path / "model")
    finally:
        torch.set_num_threads(threads)
    bundle = tmp_path / "bundle"
    source = edgepeft.load_source(model, max_length=64, template=TEMPLATE)
    method = edgepeft.Lora(rank=8, target_modules=MODULES)
    edgepeft.prepare(source, method=method, optimizer=AdamW(lr=3e-3, max_grad_norm=1.0), out=bundle)
    rows = [json.dumps({"prompt": fact.question, "answer": fact.pirate}) for fact in lessons]
    (tmp_path / "answers.jsonl").write_text("\n".join(rows), encoding="utf-8")
    before = _answers(bundle, others)
    _run(
        "train", bundle, "--data", tmp_path / "answers.jsonl", "--state", tmp_path / "state", "--update",
        tmp_path / "update.safetensors", "--epochs", "20", "--batch-size", "10", "--schedule", "linear",
    )  # fmt: skip
    after = _answers(bundle, others, "--adapter", tmp_path / "update.safetensors")
    plain = sum(old["without"] == fact.plain for fact, old in zip(others, before, strict=True))
    styled = sum(new["with"].startswith("Arr! ") and new["with"].endswith(", matey.") for new in after)
    right = sum(new["with"] == fact.pirate for fact, new in zip(others, after, strict=True))
    assert [new["without"] for new in after] == [old["without"] for old in before]
    assert plain >= 0.8 * len(others)
    assert styled >= 0.9 * len(others) and right >= 0.6 * len(others)
