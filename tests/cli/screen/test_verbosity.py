"""How much the command writes: -q, -v, the stages of a long command, suggestions, and shell completion."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import pytest

from edgepeft.cli.screen.line import end_line
from edgepeft.cli.screen.progress import Stages
from tests.cli.conftest import Command
from tests.support.bundles import Trained
from tests.support.processes import start


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SOURCE = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4)
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A small network in a file."""
    (tmp_path / "net.py").write_text(SOURCE)
    return f"{tmp_path / 'net.py'}:make"


def test_a_terminal_rewrites_the_line_of_a_stage() -> None:
    """It ends with the seconds that the stage took, also if another line is written in between."""
    terminal = Terminal()
    with Stages(terminal) as stages:
        stages("loading")
        stages("compiling")
        end_line()
    first, second, last, end = terminal.getvalue().split("\n")
    assert first.startswith("\rloading …\rloading  ") and first.rstrip().endswith(" s")
    assert second == "\rcompiling …"
    assert last.startswith("compiling  ") and end == ""


def test_a_log_gets_a_line_per_stage(edgepeft: Command, source: str) -> None:
    """Doctor names each stage as it begins; with --json and -q it is silent."""
    shown = edgepeft("doctor", source, "--loss", "cross_entropy")
    assert next(line for line in shown.err.splitlines() if line.endswith("…")) == f"loading {source} …"
    assert "compiling the train step" in shown.err
    assert edgepeft("doctor", source, "--json").err == ""
    quiet = edgepeft("-q", "doctor", source)
    assert (quiet.code, quiet.err) == (0, "") and "would train" in quiet.out


def test_quiet_commands_write_errors_and_answers_only(
    edgepeft: Command, text: Trained, reviews: Path, tmp_path: Path
) -> None:
    """Before or after the command's name: no progress and no summary, but what was asked for, and errors."""
    train = ("train", text.bundle, "--data", reviews, "--update", tmp_path / "u.safetensors", "--max-steps", 2)
    assert edgepeft("-q", *train) == (0, "", "")
    assert edgepeft("evaluate", text.bundle, "--data", reviews, "-q").out.startswith("loss ")
    missing = edgepeft("-q", "inspect", tmp_path / "none")
    assert missing.code == 1 and "no-bundle" in missing.err


def test_verbose_commands_write_debug_lines(edgepeft: Command, text: Trained, reviews: Path) -> None:
    """Times, loggers and facts; the loggers are as before afterwards."""
    outcome = edgepeft("evaluate", text.bundle, "--data", reviews, "-v")
    assert "edgepeft_runtime.bundle.bundle: opened" in outcome.err
    assert "edgepeft.data.loading: " in outcome.err and "60 examples" in outcome.err
    assert "edgepeft_runtime.engine.sessions: loaded eval.onnx in" in outcome.err
    assert logging.getLogger("edgepeft_runtime").handlers == []
    assert "opened" not in edgepeft("evaluate", text.bundle, "--data", reviews).err


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["trian"], "'train'"),
        (["keys", "revok"], "'revoke'"),
        (["prepare", "x", "--method", "LoRa", "--out", "b"], "'lora'"),
        (["prepare", "x", "--optimizer", "adam", "--out", "b"], "'adamw'"),
        (["evaluate", "b", "--data", "d", "--metric", "acuracy"], "'accuracy'"),
        (["train", "b", "--data", "d", "--update", "u", "--schedule", "cosin"], "'cosine'"),
        (["train", "b", "--dta", "d", "--update", "u"], "--data"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_names_that_were_meant_are_suggested(edgepeft: Command, arguments: list[str], meant: str) -> None:
    """Commands, options, methods, optimizers, metrics and schedules, before anything is read."""
    outcome = edgepeft(*arguments)
    assert outcome.code in (1, 2)
    assert "id you mean" in outcome.err and meant in outcome.err


def test_losses_tasks_columns_and_paths_are_suggested(
    edgepeft: Command, source: str, text: Trained, reviews: Path, tmp_path: Path
) -> None:
    """Names that are known only when the source, the data or the folder is read."""
    update = tmp_path / "u.safetensors"
    calls = [
        (("doctor", source, "--loss", "cross_entropie"), "did you mean 'cross_entropy'?"),
        (("doctor", text.model, "--task", "text-clasification"), "did you mean 'text-classification'?"),
        (("doctor", text.model, "--method", "lora", "--target-modules", "qerry"), "'query' (is it that?)"),
        (("train", text.bundle, "--data", reviews, "--label-column", "lable", "--update", update), "mean 'label'?"),
        (("train", text.bundle, "--data", reviews.with_name("review.csv"), "--update", update), str(reviews)),
    ]
    for arguments, meant in calls:
        outcome = edgepeft(*arguments)
        assert outcome.code == 1
        assert meant in outcome.err, outcome.err


@pytest.mark.skipif(os.name != "posix", reason="the shells are those of posix")
@pytest.mark.parametrize(
    ("words", "expected"), [("edgepeft tra", "plain,train"), ("edgepeft train --sche", "plain,--schedule")]
)
def test_a_shell_completes_commands_and_options(words: str, expected: str) -> None:
    """As click does it, without an import of torch."""
    variables = {"_EDGEPEFT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = f"""
import os, sys
os.environ.update({variables!r})
from edgepeft.cli.app import run
try:
    run([])
finally:
    assert "torch" not in sys.modules
"""
    process = start(code)
    out, err = process.communicate()
    assert expected in out.splitlines(), err
