"""What ``docs/EXTENDING.md`` shows works: its files are laid over the packages, found there, and pass their tests."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import NameFixPass
from torch.nn import functional

import edgepeft
from edgepeft.merging.registry import TARGETS
from edgepeft.methods.registry import METHODS
from edgepeft_export.autodiff import differentiate
from edgepeft_export.autodiff.registry import RULES
from edgepeft_export.autodiff.rules import pool
from edgepeft_export.losses.registry import LOSSES
from edgepeft_export.optimizers.registry import OPTIMIZERS
from edgepeft_runtime import Trainer
from edgepeft_runtime.fleet.transports.transport import read
from tests.autodiff.rule_cases import statistics
from tests.autodiff.rule_cases.case import draw, forward_model, from_torch, loss_weights, to_ir
from tests.fleet.fleets import code_of
from tests.support.onnx_runs import session

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "EXTENDING.md"
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text("utf-8"), flags=re.S))
ADDED = dict(re.findall(r"```diff\n# (\S+)\n(.*?)```", PAGE.read_text("utf-8"), flags=re.S))
PACKAGES = ("export/", "runtimes/python/", "")


@pytest.fixture(autouse=True)
def overlaid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every file of the page that is not part of another, in its package; then everything as it was."""
    known = set(sys.modules)
    for path, code in FILES.items():
        if (ROOT / path).exists() or path.startswith(("tests/", "runtimes/minimal")):
            continue
        copy = tmp_path / "overlay" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(code, "utf-8")
        package = importlib.import_module(_module(path).rpartition(".")[0])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(copy.parent)])
    registries = (METHODS, LOSSES, OPTIMIZERS, TARGETS)
    for registry in registries:
        vars(registry).pop("_classes", None)
    yield
    for registry in registries:
        vars(registry).pop("_classes", None)
    for name in {_module(path) for path in FILES} - known:
        sys.modules.pop(name, None)


def _module(path: str) -> str:
    prefix = next(prefix for prefix in PACKAGES if path.startswith(prefix))
    return path.removeprefix(prefix).removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("tests/")])
def test_the_tests_on_the_page_pass(path: str, request: pytest.FixtureRequest) -> None:
    """Each function, with the fixtures that it names."""
    scope: dict[str, object] = {}
    exec(compile(FILES[path], path, "exec"), scope)
    functions = [value for name, value in scope.items() if name.startswith("test_") and inspect.isfunction(value)]
    assert functions
    for function in functions:
        function(*(request.getfixturevalue(name) for name in inspect.signature(function).parameters))


def test_the_gradient_rule_is_that_of_torch() -> None:
    """The rule and the case, each added to the file that it names, with unknown sizes."""
    (case,) = eval(f"[{_added('tests/autodiff/rule_cases/statistics.py')}]", vars(statistics))
    outputs, (expected,) = from_torch(case, np.float32, None)
    model = to_ir(forward_model(case, np.float32, "symbolic"))
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    try:
        exec(compile(FILES["export/edgepeft_export/autodiff/rules/pool.py"], "pool.py", "exec"), dict(vars(pool)))
        model.graph.outputs[:] = [differentiate(model.graph, values["loss"], [values["i0"]])[values["i0"]]]
    finally:
        RULES.pop(case.op, None)
    NameFixPass()(model)
    (weights,) = loss_weights([output.shape for output in outputs], np.float32)
    (found,) = session(ir.to_proto(model)).run(None, {"i0": draw(case, np.float32)[0], "w0": weights})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_new_loss_and_optimizer_prepare_and_train(tmp_path: Path) -> None:
    """By their names alone; the first loss is torch's, and the second step takes the first one's change."""
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(3, 2), torch.randn(4, 3), torch.rand(4, 2)
    edgepeft.prepare(model, x, loss="poisson", optimizer="adagrad", out=tmp_path / "b")
    oracle = torch.optim.Adagrad(model.parameters(), lr=0.01)
    with Trainer.open(tmp_path / "b") as trainer:
        for _ in range(2):
            loss = functional.poisson_nll_loss(model(x), y)
            assert trainer.step({"input": x.numpy(), "labels": y.numpy()}) == pytest.approx(loss.item(), rel=1e-5)
            oracle.zero_grad()
            loss.backward()
            oracle.step()


def test_the_transport_reads_what_it_wrote(tmp_path: Path) -> None:
    """As ``tests/fleet/test_transports.py`` has it for the others."""
    transport = importlib.import_module("edgepeft_runtime.fleet.transports.over_sqlite").SqliteTransport(tmp_path / "f")
    transport.put("a/b", b"content")
    assert read(transport, "a/b", 7) == b"content"
    assert code_of(read, transport, "missing", 7) == "no-such-file"
    transport.close()


def test_the_minimal_runtime_reproduces_the_golden_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with its own comparison."""
    monkeypatch.chdir(ROOT)
    scope: dict[str, object] = {}
    exec(compile(FILES["runtimes/minimal.py"], "minimal.py", "exec"), scope)
    assert np.shape(scope["losses"]) == (10,)


@pytest.mark.parametrize("path", ADDED)
def test_lines_are_added_to_what_is_there(path: str) -> None:
    """The line before each of them is in the file that it names."""
    before = next(line for line in ADDED[path].splitlines() if line.startswith(" "))
    assert f"\n{before[1:]}\n" in (ROOT / path).read_text("utf-8")


def _added(path: str) -> str:
    return next(line[1:] for line in ADDED[path].splitlines() if line.startswith("+"))
