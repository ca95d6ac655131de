"""Each command as a user calls it: the whole way, the files it writes, the exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepeft.cli.app import unexpected
from edgepeft.methods.registry import METHODS
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.tensorfile import read_tensors
from tests.cli.conftest import Command
from tests.support.bundles import Trained


def test_the_whole_way_from_data_to_merged_models(
    edgepeft: Command, text: Trained, reviews: Path, tmp_path: Path
) -> None:
    """Train on texts, see that it helped, pull the update, merge it four ways."""
    update, collected = tmp_path / "device" / "update.safetensors", tmp_path / "collected"
    update.parent.mkdir()
    train = ["train", text.bundle, "--data", reviews, "--state", tmp_path / "state", "--update", update]
    trained = edgepeft(*train, "--epochs", 12, "--lr", 0.03, "--validate", 0.2, "--schedule", "linear", "--warmup", 0.1)
    assert trained.code == 0
    assert "<- kept" in trained.out
    assert "72 steps" in trained.out
    assert "step 72/72  epoch 12" in trained.err
    before, after = (
        json.loads(edgepeft("evaluate", text.bundle, "--data", reviews, "--json", *more).out)
        for more in ([], ["--adapter", update])
    )
    assert after["loss"] < 0.3 < before["loss"]
    assert after["accuracy"] > 0.9
    assert after["examples"] == 60
    pulled = edgepeft("pull", update.parent, "--into", collected, "--bundle", text.bundle)
    assert (pulled.code, pulled.out.splitlines()[-1]) == (0, "1 accepted, 0 already there, 0 refused")
    (kept,) = collected.iterdir()
    formats = {"peft": "adapter", "onnx-adapter": "a.onnx_adapter", "torch": "state.pt", "onnx": "model.onnx"}
    for to, name in formats.items():
        merged = edgepeft("merge", text.bundle, kept, "--to", to, "--out", tmp_path / name)
        assert merged.code == 0
        assert (tmp_path / name).exists()
    assert "4 LoRA pairs folded" in merged.out


def test_an_adapter_of_peft_comes_in(edgepeft: Command, text: Trained, reviews: Path, tmp_path: Path) -> None:
    """As the update it was made of; with another scale or further tensors it is refused instead of meaning another."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "adapter"
    assert edgepeft("merge", text.bundle, text.update, "--to", "peft", "--out", folder).code == 0
    evaluate = ["evaluate", text.bundle, "--data", reviews, "--json", "--adapter"]
    assert json.loads(edgepeft(*evaluate, folder).out) == json.loads(edgepeft(*evaluate, text.update).out)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] + 1}))
    refused = edgepeft(*evaluate, folder)
    assert refused.code != 0 and f"lora_alpha: {config['lora_alpha'] + 1} (bundle: " in refused.err
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.bert.pooler.dense.lora_A.weight"] = np.zeros((4, 32), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    assert "tensors that the bundle does not train" in edgepeft(*evaluate, folder).err


def test_run_beside_the_update_takes_more_epochs(
    edgepeft: Command, text: Trained, reviews: Path, tmp_path: Path
) -> None:
    """Without --state, the run is kept beside the update, and the same command with more epochs continues it."""
    train = ["train", text.bundle, "--data", reviews, "--update", tmp_path / "a.safetensors"]
    first = edgepeft(*train, "--epochs", 1)
    assert f"the run is saved in {tmp_path / 'a.state'}" in first.err
    more = edgepeft(*train, "--epochs", 3)
    assert "3 epochs now instead of 1" in more.err
    assert "24 steps" in more.out
    whole = tmp_path / "b.safetensors"
    assert edgepeft(*train[:-1], whole, "--epochs", 3).code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == whole.read_bytes()


def test_training_again_after_the_end_changes_nothing(
    edgepeft: Command, text: Trained, reviews: Path, tmp_path: Path
) -> None:
    """A run that is done is not repeated: the same command writes the same update."""
    train = ["train", text.bundle, "--data", reviews, "--state", tmp_path / "state", "--epochs", 1]
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert edgepeft(*train, "--update", first).code == 0
    again = edgepeft(*train, "--update", second)
    assert "resuming from step 8" in again.err
    assert first.read_bytes() == second.read_bytes()
    other = edgepeft(*train, "--update", second, "--lr", 0.5)
    assert other.code == 1
    assert "other-settings" in other.err


def test_predictions_carry_class_names_and_probabilities(edgepeft: Command, text: Trained, tmp_path: Path) -> None:
    """A classifier's answers are for reading, a JSON object per example; an adapter changes them."""
    unlabelled = tmp_path / "texts.jsonl"
    unlabelled.write_text('{"text": "good film"}\n{"text": "bad story and its end"}\n{"text": "awful"}\n')
    printed = edgepeft("predict", text.bundle, "--data", unlabelled, "--batch-size", 2)
    assert printed.code == 0
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["example"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert list(row["probabilities"]) == ["no", "yes"]
        assert sum(row["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert row["probability"] == row["probabilities"][row["label"]] == max(row["probabilities"].values())
    file = tmp_path / "answers.jsonl"
    edgepeft("predict", text.bundle, "--data", unlabelled, "--adapter", text.update, "--out", file)
    assert [json.loads(line) for line in file.read_text().splitlines()] != rows
    adapter = text.bundle / "adapter.safetensors"
    edgepeft("predict", text.bundle, "--data", unlabelled, "--adapter", adapter, "--out", file, "--batch-size", 2)
    assert file.read_text() == printed.out
    edgepeft("predict", text.bundle, "--data", unlabelled, "--out", tmp_path / "answers.npz", "--batch-size", 2)
    logits = np.load(tmp_path / "answers.npz")["logits"]
    assert logits.shape == (3, 2)
    assert [int(row["label"] == "yes") for row in rows] == logits.argmax(axis=1).tolist()


def test_other_models_print_their_outputs(edgepeft: Command, regression: Trained, tmp_path: Path) -> None:
    """A model that is no classifier prints its numbers."""
    np.savez(tmp_path / "d.npz", input=np.zeros((2, 3), np.float32))
    rows = [
        json.loads(line)
        for line in edgepeft("predict", regression.bundle, "--data", tmp_path / "d.npz").out.splitlines()
    ]
    bias = Bundle.open(regression.bundle).adapter()["bias"]
    assert [row["output"] for row in rows] == [pytest.approx(bias.tolist())] * 2


def test_inspect_shows_people_and_scripts_what_a_bundle_holds(edgepeft: Command, text: Trained) -> None:
    """The same facts as lines and as JSON."""
    shown = edgepeft("inspect", text.bundle, "--tensors").out
    bundle = Bundle.open(text.bundle)
    for fact in (
        bundle.base_sha256,
        "lora, rank 4",
        "input_ids int64[batch, sequence]",
        "no, yes",
        "4 lora_A",
        "2 head",
    ):
        assert fact in shown
    assert all(spec.name in shown for spec in bundle.manifest.parameters)
    value = json.loads(edgepeft("inspect", text.bundle, "--json").out)
    assert value["manifest"] == bundle.manifest.to_dict()
    assert value["trainable_elements"] == sum(spec.size for spec in bundle.manifest.parameters)
    assert value["trainable_bytes"] == 4 * value["trainable_elements"]
    assert value["training_bytes"] == value["frozen_bytes"] + 4 * value["trainable_bytes"]


def test_pull_lists_what_it_refuses(edgepeft: Command, text: Trained, tmp_path: Path) -> None:
    """A damaged file does not stop the others, and is named with its error."""
    (tmp_path / "good.safetensors").write_bytes(text.update.read_bytes())
    (tmp_path / "bad.safetensors").write_bytes(text.update.read_bytes()[:-4])
    found = edgepeft("pull", tmp_path, "--into", tmp_path / "in")
    assert found.code == 0
    assert found.out.endswith("1 accepted, 0 already there, 1 refused\n")
    assert f"refused {tmp_path / 'bad.safetensors'} (wrong-digest)" in found.err


@pytest.mark.filterwarnings("ignore")
def test_prepare_accepts_a_model_directory(edgepeft: Command, text: Trained, tmp_path: Path) -> None:
    """Classes, loss and optimizer settings of the command line are those of the bundle."""
    options = ["--method", "bitfit", "--classes", "rain, sun", "--label-smoothing", 0.1, "--max-length", 7]
    options += ["--optimizer", "sgd", "--lr", 0.25, "--momentum", 0.5, "--max-grad-norm", 2]
    made = edgepeft("prepare", text.model, *options, "--out", tmp_path / "bundle")
    assert made.code == 0
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert f"{sum(spec.size for spec in manifest.parameters):,} trainable elements" in made.out
    assert manifest.classes == ("rain", "sun")
    assert manifest.text is not None
    assert manifest.text.max_length == 7
    assert (manifest.loss.kind, manifest.loss.settings["label_smoothing"]) == ("cross_entropy", 0.1)
    assert (manifest.optimizer.kind, manifest.optimizer.lr) == ("sgd", 0.25)
    assert manifest.optimizer.settings | {"momentum": 0.5, "max_grad_norm": 2.0} == manifest.optimizer.settings


def test_doctor_and_prepare_take_a_function_in_a_file(edgepeft: Command, tmp_path: Path) -> None:
    """SOURCE may be a Python file with a function that returns model and example inputs; --train names parameters."""
    source = tmp_path / "network.py"
    source.write_text(
        "import torch\n"
        "def make():\n"
        "    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))\n"
        "    return layers, {'input': torch.zeros(2, 4)}\n"
    )
    options = [f"{source}:make", "--train", "2", "--freeze", "2.bias"]
    seen = edgepeft("doctor", *options)
    assert seen.code == 0
    assert "would train 24 elements in 1 tensors:\n  2.weight [3, 8]\n" in seen.out
    assert "it can be prepared" in seen.out
    made = edgepeft("prepare", *options, "--out", tmp_path / "bundle")
    assert made.code == 0
    assert [spec.name for spec in Bundle.open(tmp_path / "bundle").manifest.parameters] == ["2.weight"]
    again = edgepeft("prepare", *options, "--out", tmp_path / "bundle")
    assert again.code == 1
    assert "bundle-exists" in again.err
    assert edgepeft("prepare", *options, "--out", tmp_path / "bundle", "--overwrite").code == 0


@pytest.mark.usefixtures("without_det")
def test_doctor_names_what_stands_in_the_way(edgepeft: Command, tmp_path: Path) -> None:
    """An operator without a gradient rule is named with its node and its parameter; exit code 1."""
    path = write_onnx(tmp_path / "model.onnx", "Det", [2, 2])
    seen = edgepeft("doctor", path, "--train", "weight", "--loss", "mse")
    assert seen.code == 1
    assert "op Det" in seen.out
    assert "before weight" in seen.out


def test_prepare_accepts_an_onnx_file(edgepeft: Command, tmp_path: Path) -> None:
    """--train names the initializers that train; VeRA is a method that needs the torch model."""
    path = write_onnx(tmp_path / "model.onnx", "Tanh", [2, 2])
    made = edgepeft("prepare", path, "--train", "w*", "--loss", "mse", "--out", tmp_path / "bundle")
    assert made.code == 0
    assert list(read_tensors(tmp_path / "bundle" / "adapter.safetensors").tensors) == ["weight"]
    refused = edgepeft("doctor", path, "--method", "vera")
    assert refused.code == 1
    assert "needs a torch model" in refused.err


def write_onnx(path: Path, op: str, shape: list[int]) -> Path:
    """``op(x + weight)`` as a model file."""
    weight = numpy_helper.from_array(np.ones(shape, np.float32), "weight")
    nodes = [helper.make_node("Add", ["x", "weight"], ["sum"]), helper.make_node(op, ["sum"], ["y"], name=f"the_{op}")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"] if op == "Det" else ["batch", *shape])
    graph = helper.make_graph(nodes, "graph", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (
            ["prepare", "m", "--out", "b", "--method", "bitfit", "--rank", "4"],
            f"--rank cannot be used with --method bitfit; a method that has it: {', '.join(METHODS.having('rank'))}",
        ),
        (["prepare", "m", "--out", "b", "--method", "lora", "--target-modules", "a,,b"], "empty name"),
        (
            ["prepare", "m", "--out", "b", "--tokens", "4"],
            "--tokens needs --method; a method that has it: prefix, prompt",
        ),
        (["train", "b", "--data", "d", "--state", "s", "--update", "u", "--warmup", "long"], "'long' is not a number"),
        (["predict", "b", "--data", "d", "--out", "answers.txt"], "must end in .jsonl or .npz"),
        (["merge", "b", "u", "--to", "gguf", "--out", "o"], "gguf"),
        (["merge", "b", "u", "--to", "torch", "--out", "o.pt", "--base", "b"], "a format that has it: onnx-adapter"),
        (
            ["aggregate", "d", "--bundle", "b", "--out", "o.safetensors", "--acceptance-check"],
            "--acceptance-check needs --data",
        ),
        (["pull", "--into", "d"], "REMOTE"),
        (["fly"], "There is no command 'fly'"),
        (["trian"], "Did you mean 'train'?"),
    ],
)
def test_wrong_usage_leaves_with_2(edgepeft: Command, arguments: list[str], word: str) -> None:
    """An invalid call fails before anything is read, with the usual exit code."""
    outcome = edgepeft(*arguments)
    assert outcome.code == 2
    assert word in outcome.err


def test_errors_leave_with_1_and_say_what_to_do(
    edgepeft: Command, text: Trained, images: Trained, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error has a name, a sentence, facts and a hint on standard error; a traceback only on request."""
    arguments = ("evaluate", text.bundle, "--data", reviews, "--adapter", images.update)
    foreign = edgepeft(*arguments)
    assert (foreign.code, foreign.out) == (1, "")
    assert foreign.err.startswith("error: foreign-update\n")
    assert "\nhint: " in foreign.err
    assert "Traceback" not in foreign.err
    monkeypatch.setenv("EDGEPEFT_DEBUG", "1")
    assert "Traceback" in edgepeft(*arguments).err
    monkeypatch.delenv("EDGEPEFT_DEBUG")
    train = ("train", text.bundle, "--data", reviews, "--state", tmp_path / "state")
    early = edgepeft(*train, "--update", tmp_path / "nowhere" / "u.safetensors")
    assert early.code == 1
    assert not (tmp_path / "state").exists()
    assert "no-bundle" in edgepeft("inspect", tmp_path).err


def test_an_exception_of_a_library_is_one_sentence() -> None:
    """No command shows the traceback of a library to whoever cannot read it."""
    with pytest.raises(ValueError, match="Expecting") as raised:
        json.loads("{")
    shown = unexpected(raised.value).render()
    assert shown.startswith("error: unexpected\n")
    assert "A step of the command failed with JSONDecodeError, in decoder.py, line " in shown
    assert "EDGEPEFT_DEBUG=1" in shown and "Traceback" not in shown


def test_a_missing_extra_is_named(
    edgepeft: Command, text: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a workstation's command on a device says what to install."""
    for name in [name for name in sys.modules if name == "torch" or name.startswith("edgepeft.preparation.prepare")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("torch", "onnx_ir"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("edgepeft.merging.to_torch", "edgepeft.sources.load"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for arguments in (
        ("prepare", text.model, "--out", tmp_path / "bundle"),
        ("merge", text.bundle, text.update, "--to", "torch", "--out", tmp_path / "state.pt"),
    ):
        outcome = edgepeft(*arguments)
        assert outcome.code == 1
        assert "error: missing-extra" in outcome.err
        assert "pip install 'edgepeft[host]'" in outcome.err
