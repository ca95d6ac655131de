"""The node tests that come with the package ``onnx``, and which of them are differentiable."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tests.support.onnx_runs import session

Array = NDArray[Any]
FLOATS = (np.float16, np.float32, np.float64)


SIZES = {"Resize": ("roi", "scales", "sizes"), "Upsample": ("scales",)}
"""Inputs that say how many elements an operator reads and writes. They do not train, and have a known length."""


@dataclass(frozen=True)
class NodeTest:
    """One model of the suite with its inputs.

    Attributes:
        name: as the suite calls it.
        op: the operator it tests; of a function's body, the function.
        model: the graph, most often a single node.
        feeds: the values of its inputs.
    """

    name: str
    op: str
    model: onnx.ModelProto
    feeds: Mapping[str, Array]

    @property
    def targets(self) -> list[str]:
        """Names of the float inputs that are numbers to compute with."""
        return [name for name in self.floats if name not in SIZES.get(self.op, ())]

    @property
    def floats(self) -> list[str]:
        """Names of the float inputs."""
        return [name for name, array in self.feeds.items() if array.dtype.type in FLOATS]


def collect(modules: Iterable[str] = ()) -> list[NodeTest | None]:
    """Every test of the suite, ``None`` for one with inputs that are no tensors.

    With ``modules``, only those of these files of the suite, which are made in a fraction of the time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite overflows on purpose
        node = importlib.import_module("onnx.backend.test.case.node")
        for name in modules:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
        found = node._NodeTestCases if modules else node.collect_testcases(None)
    ops = {case.name: case.model.graph.node[0].op_type for case in found}
    return [_of(case.name, ops[case.name.partition("_expanded")[0]], case) for case in found]


def _of(name: str, op: str, case: Any) -> NodeTest | None:
    arrays = [_array(value) for value in case.data_sets[0][0]]
    names = [value.name for value in case.model.graph.input]
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    return NodeTest(name, op, case.model, feeds) if len(feeds) == len(names) else None


def _array(value: object) -> Array | None:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None


def differentiable(test: NodeTest) -> bool:
    """Whether the test has float inputs and float outputs, and stock ONNX Runtime computes the same twice."""
    if not test.targets:
        return False
    try:
        run = session(test.model)
        first, *others = (run.run(None, dict(test.feeds)) for _ in range(4))
    except Exception:  # ONNX Runtime has an exception of its own for each of its statuses
        return False
    floats = [at for at, made in enumerate(first) if isinstance(made, np.ndarray) and made.dtype.type in FLOATS]
    return bool(floats) and all(
        np.array_equal(first[at], again[at], equal_nan=True) for again in others for at in floats
    )
