"""Outputs of commands replace files, and never a pipe, a device or a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.support.bundles import Trained


def special(path: Path, kind: str) -> Path:
    """Something that is no regular file."""
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to("/dev/full")
        case _:
            return Path("/dev/full")
    return path


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "device"])
def test_train_refuses_what_is_no_file_before_it_starts(
    edgepeft: Command, bundle: Path, data: Path, tmp_path: Path, kind: str
) -> None:
    """Not after hours: the path stays unchanged, and no run was started."""
    update, state = special(tmp_path / "update.safetensors", kind), tmp_path / "state"
    before = os.lstat(update)
    failed = edgepeft("train", bundle, "--data", data, "--state", state, "--update", update)
    assert (failed.code, "error: not-a-regular-file" in failed.err) == (1, True)
    assert os.lstat(update).st_mode == before.st_mode and not state.exists()


@pytest.mark.parametrize("name", ["a.jsonl", "a.npz"])
def test_predictions_are_written_to_files_alone(
    edgepeft: Command, bundle: Path, data: Path, tmp_path: Path, name: str
) -> None:
    """A pipe without a reader does not block the command."""
    out = special(tmp_path / name, "pipe")
    failed = edgepeft("predict", bundle, "--data", data, "--out", out)
    assert (failed.code, "error: not-a-regular-file" in failed.err, out.is_fifo()) == (1, True, True)


@pytest.mark.parametrize("name", ["round.safetensors", "round.json"])
def test_aggregate_refuses_what_is_no_file(
    edgepeft: Command, bundle: Path, data: Path, tmp_path: Path, name: str
) -> None:
    """Neither for the adapter nor for its report."""
    updates = tmp_path / "updates"
    updates.mkdir()
    train = ["train", bundle, "--data", data, "--state", tmp_path / "state", "--epochs", 1]
    assert edgepeft(*train, "--update", updates / "one.safetensors").code == 0
    special(tmp_path / name, "pipe")
    failed = edgepeft("aggregate", updates, "--bundle", bundle, "--out", tmp_path / "round.safetensors")
    assert (failed.code, "error: not-a-regular-file" in failed.err) == (1, True)


@pytest.mark.parametrize("to", ["torch", "onnx", "peft"])
def test_merge_refuses_what_is_no_file(edgepeft: Command, text: Trained, tmp_path: Path, to: str) -> None:
    """A pipe in place of a file or of a folder stays a pipe."""
    out = special(tmp_path / {"torch": "a.safetensors", "onnx": "a.onnx", "peft": "adapter"}[to], "pipe")
    failed = edgepeft("merge", text.bundle, text.update, "--to", to, "--out", out, "--overwrite")
    assert failed.code == 1 and "error: " in failed.err and out.is_fifo()


def test_an_identity_is_written_to_no_pipe(edgepeft: Command, tmp_path: Path) -> None:
    """And the device is not registered."""
    workspace, out = tmp_path / "host", special(tmp_path / "pi-1.json", "pipe")
    assert edgepeft("keys", "new", "birds", "--workspace", workspace).code == 0
    failed = edgepeft("keys", "add", "pi-1", "--workspace", workspace, "--out", out)
    assert (failed.code, out.is_fifo()) == (1, True)
    assert edgepeft("keys", "add", "pi-1", "--workspace", workspace, "--out", tmp_path / "other.json").code == 0


def test_a_full_standard_output_is_an_error_in_words(bundle: Path, data: Path) -> None:
    """Not a traceback; so is any other error of the system that nothing more is known about."""
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "edgepeft", "predict", str(bundle), "--data", str(data)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "error: system-error" in done.stderr and "Traceback" not in done.stderr
