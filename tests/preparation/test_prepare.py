"""``edgepeft.prepare`` and ``doctor``: every kind of model, method and loss, and the refused ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft.preparation.errors import WrongOption
from edgepeft_export.errors import LossError
from edgepeft_export.losses import CrossEntropy
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Bundle, Trainer
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import EdgepeftError, SettingError
from tests.support.bundles import IMAGE
from tests.support.networks import cnn

ROWS = torch.zeros(2, 3)


class Net(nn.Module):
    """Two linear layers; the second is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 4)
        self.classifier = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.base(x)))


def _manifest(bundle: Path) -> Manifest:
    return Bundle.open(bundle).manifest


def _step(bundle: Path, labels: np.ndarray, name: str = "x") -> float:
    with Trainer.open(bundle) as trainer:
        return trainer.step({name: np.ones((2, 3), np.float32), "labels": labels})


# Models and methods


def test_flags_are_accepted_as_they_are(tmp_path: Path) -> None:
    """Without a method, parameters with ``requires_grad`` train. The result counts their elements."""
    model = Net()
    model.base.requires_grad_(False)
    prepared = edgepeft.prepare(model, ROWS, out=tmp_path / "b")
    assert (prepared.bundle, prepared.trainable, prepared.unreached) == (tmp_path / "b", 10, ())
    manifest = _manifest(tmp_path / "b")
    assert [spec.name for spec in manifest.parameters] == ["classifier.weight", "classifier.bias"]
    assert manifest.provenance == {"method": "requires_grad"}
    assert manifest.loss.kind == "cross_entropy"


def test_a_method_may_be_a_name_or_carry_settings(tmp_path: Path) -> None:
    """Its settings go into the provenance, which every update carries."""
    edgepeft.prepare(Net(), ROWS, method="head", out=tmp_path / "a")
    assert _manifest(tmp_path / "a").provenance == {"method": "head", "modules": None}
    edgepeft.prepare(Net(), ROWS, method=edgepeft.Freeze(train=("base",)), out=tmp_path / "b")
    assert _manifest(tmp_path / "b").provenance == {
        "method": "freeze",
        "train": ["base"],
        "freeze": [],
        "last_blocks": None,
    }


def test_a_peft_model_is_accepted_as_it_is(tmp_path: Path) -> None:
    """A model that peft has wrapped already needs no method, and can become an adapter of peft again."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(Net(), LoraConfig(r=1, target_modules=["base"]))
    edgepeft.prepare(model, {"x": ROWS}, out=tmp_path / "b")
    manifest = _manifest(tmp_path / "b")
    assert [spec.role for spec in manifest.parameters] == ["lora_A", "lora_B"]
    assert set(manifest.provenance["peft"]["keys"]) == {spec.name for spec in manifest.parameters}


def test_unreached_parameters_are_reported(tmp_path: Path) -> None:
    """A parameter the loss does not see is in the result and not in the bundle."""

    class Extra(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.ones(3))

    prepared = edgepeft.prepare(Extra(), ROWS, out=tmp_path / "b")
    assert prepared.unreached == ("unused",)
    assert "unused" not in {spec.name for spec in _manifest(tmp_path / "b").parameters}


def test_a_source_brings_its_loss_and_the_caller_overrules_it(tmp_path: Path) -> None:
    """The loss of the task is a default."""
    source = edgepeft.Source(Net(), ROWS, loss="mse")
    edgepeft.prepare(source, out=tmp_path / "a")
    edgepeft.prepare(source, loss="l1", out=tmp_path / "b")
    assert [_manifest(tmp_path / name).loss.kind for name in "ab"] == ["mse", "l1"]


def test_a_name_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``package.module:function`` is prepared like the model it returns."""
    monkeypatch.chdir(Path(__file__).parents[2])
    edgepeft.prepare("tests.preparation.test_prepare:source", method="head", out=tmp_path / "b")
    assert len(_manifest(tmp_path / "b").parameters) == 2


def source() -> tuple[nn.Module, Tensor]:
    """A model and its example input, as the test above names it."""
    return Net(), ROWS


# Losses

HINGE = """
    <ir_version: 10, opset_import: ["": 20]>
    hinge (float[batch, 2] output, float[batch, 2] labels) => (float mean) {
        product = Mul(output, labels)
        negative = Neg(product)
        cut = Relu(negative)
        mean = ReduceMean <keepdims = 0> (cut)
    }
"""


def test_a_loss_may_be_a_name_settings_a_function_or_a_file(tmp_path: Path) -> None:
    """All four kinds make a bundle that trains."""
    onnx.save(onnx.parser.parse_model(HINGE), tmp_path / "hinge.onnx")
    zeros, signs = np.zeros(2, np.int64), np.ones((2, 2), np.float32)
    losses = {
        "name": ("mse", signs),
        "settings": (CrossEntropy(label_smoothing=0.1), zeros),
        "path": (tmp_path / "hinge.onnx", signs),
        "text": (str(tmp_path / "hinge.onnx"), signs),
    }
    torch.manual_seed(0)
    model = Net()
    for name, (loss, labels) in losses.items():
        edgepeft.prepare(model, ROWS, loss=loss, out=tmp_path / name)
        assert np.isfinite(_step(tmp_path / name, labels))
    assert _manifest(tmp_path / "settings").loss.settings["label_smoothing"] == 0.1
    assert _manifest(tmp_path / "path").loss.kind == "custom"


def test_a_function_needs_examples_of_its_labels(tmp_path: Path) -> None:
    """Without them the error names the label."""
    with pytest.raises(LossError, match="'target'"):
        edgepeft.prepare(Net(), ROWS, loss=lambda output, target: (output - target).mean(), out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_optimizers_may_be_names_or_carry_settings(tmp_path: Path) -> None:
    """Their settings go into the manifest; an unknown name is refused."""
    edgepeft.prepare(Net(), ROWS, optimizer=SGD(lr=0.5, momentum=0.9), out=tmp_path / "b")
    optimizer = _manifest(tmp_path / "b").optimizer
    assert (optimizer.kind, optimizer.lr) == ("sgd", 0.5)
    assert {spec.name.partition(".")[0] for spec in optimizer.state} == {"momentum_buffer"}
    with pytest.raises(SettingError):
        edgepeft.prepare(Net(), ROWS, optimizer="tiger", out=tmp_path / "c")


# What does not fit


def _refused(reference: str, tmp_path: Path, *arguments: object, **settings: object) -> EdgepeftError:
    with pytest.raises(EdgepeftError) as failure:
        edgepeft.prepare(*arguments, out=tmp_path / "b", **settings)  # type: ignore[arg-type]
    assert failure.value.code == reference
    assert not (tmp_path / "b").exists()
    return failure.value


def test_a_module_needs_example_inputs(tmp_path: Path) -> None:
    """A torch module alone does not say how it is fed."""
    _refused("bad-example-inputs", tmp_path, Net())


def test_an_onnx_file_refuses_methods_of_modules(tmp_path: Path) -> None:
    """Some methods attach to torch modules, and so does pruning; a file's initializers are named."""
    (tmp_path / "m.onnx").write_bytes(b"")
    assert "initializers" in str(_refused("method-needs-torch", tmp_path, tmp_path / "m.onnx", method="ia3"))
    _refused(
        "prune-needs-torch",
        tmp_path,
        tmp_path / "m.onnx",
        compression=edgepeft.Compression(edgepeft.Pruning(heads=0.5)),
    )


def test_class_names_must_be_as_many_as_scores(tmp_path: Path) -> None:
    """Three names for two scores: both numbers are named."""
    error = _refused("wrong-class-names", tmp_path, Net(), ROWS, classes=["a", "b", "c"])
    assert "3 class names" in str(error) and "2 scores" in str(error)


def test_a_tokenizer_must_be_there(tmp_path: Path) -> None:
    """A path where no tokenizer is."""
    _refused(
        "unusable-tokenizer",
        tmp_path,
        Net(),
        ROWS,
        preprocessing=edgepeft.Preprocessing(tokenizer=tmp_path / "absent.json"),
    )


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (lambda: {"preprocessing": edgepeft.Preprocessing(IMAGE)}, "preprocessing=edgepeft.Preprocessing(image=…)"),
        (lambda: {"preprocessing": IMAGE}, "preprocessing=edgepeft.Preprocessing(image=…)"),
        (lambda: {"compression": edgepeft.Preprocessing(image=IMAGE)}, "preprocessing=…"),
        (lambda: {"interface": {"outputs": ["y"]}}, "Interface"),
        (lambda: {"interface": edgepeft.Interface(outputs="y")}, "list or tuple"),
    ],
)
def test_an_option_of_another_type_is_refused(given: Callable[[], dict[str, Any]], hint: str, tmp_path: Path) -> None:
    """Before anything is built, with the option that the value belongs to."""
    with pytest.raises(WrongOption) as caught:
        edgepeft.prepare(Net(), ROWS, out=tmp_path / "b", **given())
    assert hint in str(caught.value.hint)


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    """Names of methods are checked before anything is built."""
    _refused("unknown-name", tmp_path, Net(), ROWS, method="magic")


# doctor


def test_doctor_lists_what_would_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes by name, no gap, and nothing written."""
    monkeypatch.chdir(tmp_path)
    found = edgepeft.doctor(cnn(), {"image": torch.zeros(2, 1, 20, 20)}, method="head")
    assert found.trainable == {"classifier.weight": (10, 8), "classifier.bias": (10,)}
    assert found.missing_rules == ()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_det")
def test_doctor_names_what_stands_in_the_way() -> None:
    """Each operator without a gradient rule, with its node and its parameter, instead of an error."""

    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 9)
            self.classifier = nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(torch.linalg.det(self.linear(x).reshape(-1, 3, 3)).unsqueeze(1))

    found = edgepeft.doctor(Volume(), torch.zeros(2, 4))
    assert [gap.op_type for gap in found.missing_rules] == ["Det"]
    assert found.missing_rules[0].target.startswith("linear.")
    assert edgepeft.doctor(Volume(), torch.zeros(2, 4), method="head").missing_rules == ()
