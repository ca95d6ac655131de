"""The command as a process of its own: its imports, and its end when it is interrupted or its output is closed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from edgepeft_runtime.files.tensorfile import read_tensors
from tests.support.bundles import Trained
from tests.support.processes import CALL, start

HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "peft", "safetensors")


def test_help_imports_nothing_heavy() -> None:
    """Help is quick everywhere. It may import the compiler or the aggregation, but not torch."""
    names = (*HEAVY, "onnxruntime", "tokenizers", "PIL")
    code = f"""
import sys
from edgepeft.cli.app import _COMMANDS, run
allowed = dict.fromkeys(["aggregate", "merge"], {{"onnxruntime"}})
allowed |= dict.fromkeys(["doctor", "prepare"], {{"onnx", "onnx_ir", "onnxruntime"}})
light = [[], *([name] for name in _COMMANDS if name not in allowed)]
for command in [*light, *([name] for name in allowed)]:
    assert run([*command, "--help"]) == 0
    loaded = {{name.partition(".")[0] for name in sys.modules}} & set({names!r})
    loaded -= allowed.get("".join(command), set())
    assert not loaded, (command, loaded)
assert run(["methods"]) == 0
assert "torch" not in sys.modules
"""
    process = start(code)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "Commands:" in out


def test_a_device_needs_no_host_library(text: Trained, reviews: Path, tmp_path: Path) -> None:
    """Inspect, train, evaluate and predict run where torch, onnx, transformers and the rest cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({(*HEAVY, 'edgepeft_export')!r}))\n"
    update = tmp_path / "update.safetensors"
    train = (
        "train",
        text.bundle,
        "--data",
        reviews,
        "--state",
        tmp_path / "state",
        "--update",
        update,
        "--max-steps",
        3,
    )
    calls = [
        ("inspect", text.bundle),
        train,
        ("evaluate", text.bundle, "--data", reviews, "--adapter", update),
        ("predict", text.bundle, "--data", reviews, "--out", tmp_path / "answers.jsonl"),
    ]
    lines = [f"assert run({[str(argument) for argument in call]!r}) == 0" for call in calls]
    process = start(block + "from edgepeft.cli.app import run\n" + "\n".join(lines))
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 60


@pytest.mark.skipif(os.name != "posix", reason="there are no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_the_same_command_resumes(
    number: signal.Signals, code: int, text: Trained, reviews: Path, tmp_path: Path
) -> None:
    """After Ctrl-C or the stop of a service, the resumed run ends bit-identical to an uninterrupted one."""

    def train(name: str) -> subprocess.Popen[str]:
        paths = ("--state", tmp_path / name, "--update", tmp_path / f"{name}.safetensors")
        return start(CALL, "train", text.bundle, "--data", reviews, *paths, "--epochs", 60, "--threads", 1)

    process = train("cut")
    assert process.stderr is not None
    first = next(line for line in process.stderr if not line.startswith("note: "))
    assert first.startswith("step 8/480  epoch 1")
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code
    assert "the run is saved" in err
    assert "Traceback" not in err
    assert not (tmp_path / "cut.safetensors").exists()
    for process in (train("cut"), train("whole")):
        _, err = process.communicate()
        assert process.returncode == 0, err
    cut, whole = (read_tensors(tmp_path / f"{name}.safetensors", require_digest=True) for name in ("cut", "whole"))
    assert cut.metadata == whole.metadata
    for name, array in whole.tensors.items():
        assert array.tobytes() == cut.tensors[name].tobytes()


@pytest.mark.skipif(os.name != "posix", reason="there is no such signal")
def test_a_reader_that_goes_away_is_no_error(text: Trained, tmp_path: Path) -> None:
    """``edgepeft predict … | head -1`` ends quietly."""
    data = tmp_path / "d.jsonl"
    data.write_text('{"text": "good"}\n' * 3000)
    process = start(CALL, "predict", text.bundle, "--data", data)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith('{"example": 0')
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait()


def test_wrong_calls_have_their_exit_codes(tmp_path: Path) -> None:
    """Scripts can tell an error (1) from a wrong call (2)."""
    for arguments, code in ((("inspect", tmp_path), 1), (("inspect",), 2)):
        process = start(CALL, *arguments)
        out, err = process.communicate()
        assert (process.returncode, out) == (code, "")
        assert err


@pytest.mark.parametrize("module", ["click", "edgepeft.cli.commands.inspect", "onnxruntime.capi._pybind_state"])
def test_ctrl_c_during_an_import_leaves_no_traceback(module: str, text: Trained) -> None:
    """Of our own modules, and of a compiled one, which raises an ``ImportError`` of the interrupt."""
    code = f"""
import sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as interrupt:
                if name.startswith("edgepeft") or name == "click":
                    raise
                raise ImportError("initialization failed") from interrupt
sys.meta_path.insert(0, Interrupting())
"""
    process = start(code + CALL, "inspect", text.bundle)
    out, err = process.communicate()
    assert (process.returncode, out, err.strip()) == (130, "", "")
