"""Another execution provider runs a program only where it agrees with the CPU."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgepeft_runtime import Bundle, Trainer, read_tensors
from edgepeft_runtime.bundle.programs import EVAL, TRAIN
from edgepeft_runtime.engine.accumulators import Accumulators
from edgepeft_runtime.engine.compared import COMPARED_SHAPES, ComparedPrograms
from edgepeft_runtime.engine.program import ProgramRunner
from edgepeft_runtime.engine.providers import Provider
from edgepeft_runtime.engine.sessions import OrtTensors, Sessions, as_ort
from edgepeft_runtime.errors import BadSetting, OnnxruntimeFailed, UnknownProvider
from edgepeft_runtime.notices import EdgepeftWarning
from tests.golden.make import BUNDLE, DATA

AZURE = "AzureExecutionProvider"
"""The one provider besides the CPU in the stock wheel: it runs no node of ours, so the CPU runs them in its session."""


class Faulty(ProgramRunner):
    """Runs programs on the CPU, and then changes what they computed."""

    def __init__(self, bundle: Bundle, fault: Callable[[dict[str, ort.OrtValue], Accumulators | None], None]) -> None:
        super().__init__(bundle, Sessions(bundle, None))
        self._fault = fault
        self.runs = 0

    def run(self, program: str, *given: OrtTensors, sums: Accumulators | None = None, **settings: Any) -> Any:
        self.runs += 1
        found = super().run(program, *given, sums=sums, **settings)
        self._fault(found, sums)
        return found


ZERO = np.zeros((), np.float32)
"""ONNX Runtime refers to the memory of an array."""


def no_loss(found: dict[str, ort.OrtValue], _sums: Accumulators | None) -> None:
    found["loss_sum"] = ort.OrtValue.ortvalue_from_numpy(ZERO)


def scaled(factor: float) -> Callable[[dict[str, ort.OrtValue], Accumulators | None], None]:
    def fault(_found: dict[str, ort.OrtValue], sums: Accumulators | None) -> None:
        assert sums is not None
        for bucket in list(sums.values()):
            sums.replace(bucket, sums.array(bucket) * np.float32(factor))

    return fault


def lost(_found: dict[str, ort.OrtValue], _sums: Accumulators | None) -> None:
    raise OnnxruntimeFailed("ONNX Runtime failed.", context="the device was lost", hint="none")


def right(_found: dict[str, ort.OrtValue], _sums: Accumulators | None) -> None:
    pass


def compared(fault: Callable[..., None]) -> tuple[ComparedPrograms, Faulty, Bundle]:
    bundle = Bundle.open(BUNDLE)
    other = Faulty(bundle, fault)
    cpu = ProgramRunner(bundle, Sessions(bundle, None))
    return ComparedPrograms("OtherProvider", bundle.manifest.buckets, cpu, other), other, bundle


def given(bundle: Bundle, rows: int = 8) -> Collection[OrtTensors]:
    adapter = read_tensors(bundle.path / "adapter.safetensors").tensors
    return as_ort({name: array[:rows] for name, array in read_tensors(DATA).tensors.items()}), as_ort(adapter)


@pytest.mark.parametrize(
    ("fault", "facts"),
    [
        (no_loss, "loss_sum: 0 instead of"),
        (scaled(1.02), "relative difference 2.0e-02, limit 0.01"),
        (scaled(np.nan), "relative difference nan"),
        (lost, "it failed: the device was lost"),
    ],
)
def test_what_differs_runs_on_the_cpu(fault: Callable[..., None], facts: str) -> None:
    """The results are the CPU's from the first run on, and one line says so, with the figures."""
    programs, other, bundle = compared(fault)
    alone = Accumulators(bundle.manifest.buckets)
    ProgramRunner(bundle, Sessions(bundle, None)).run(TRAIN, *given(bundle), sums=alone)
    for run in range(3):
        sums = Accumulators(bundle.manifest.buckets)
        if run == 0:
            with pytest.warns(EdgepeftWarning, match="train runs on the CPU, because OtherProvider differs"):
                programs.run(TRAIN, *given(bundle), sums=sums)
        else:
            programs.run(TRAIN, *given(bundle), sums=sums)
        for bucket in bundle.manifest.buckets:
            np.testing.assert_array_equal(sums.array(bucket.name), alone.array(bucket.name))
    assert other.runs == 1
    (verdict,) = programs.verdicts
    assert not verdict.accepted and facts in verdict.facts


def test_sums_of_earlier_batches_stay() -> None:
    programs, _, bundle = compared(right)
    once, twice = Accumulators(bundle.manifest.buckets), Accumulators(bundle.manifest.buckets)
    programs.run(TRAIN, *given(bundle), sums=once)
    for rows in (8, 4, 4):
        programs.run(TRAIN, *given(bundle, rows), sums=twice)
    programs.run(TRAIN, *given(bundle, 4), sums=once)
    programs.run(TRAIN, *given(bundle, 4), sums=once)
    for bucket in bundle.manifest.buckets:
        np.testing.assert_array_equal(once.array(bucket.name), twice.array(bucket.name))


def test_new_shapes_are_compared_too() -> None:
    programs, other, bundle = compared(right)
    cpu = programs._cpu
    runs: list[str] = []
    original = cpu.run
    cpu.run = lambda program, *values, **settings: (runs.append(program), original(program, *values, **settings))[1]  # type: ignore[method-assign]
    for rows in (8, 8, 4, 2, 3, 5):
        programs.run(EVAL, *given(bundle, rows))
    assert len(runs) == COMPARED_SHAPES and other.runs == 6


def test_a_provider_of_the_wheel_trains_as_the_cpu_does() -> None:
    if AZURE not in ort.get_available_providers():
        pytest.skip(f"this onnxruntime has no {AZURE}")
    batch = {name: array[:8] for name, array in read_tensors(DATA).tensors.items()}
    losses = []
    for provider in (None, AZURE):
        with Trainer.open(BUNDLE, provider=provider, threads=1) as trainer:
            losses.append([trainer.step(batch) for _ in range(3)])
            trainer.evaluate(batch)
            programs = [(verdict.program, verdict.accepted) for verdict in trainer.verdicts]
        assert programs == ([] if provider is None else [(TRAIN, True), (EVAL, True)])
    assert losses[0] == losses[1]


def test_a_provider_that_is_not_there_is_refused() -> None:
    with pytest.raises(UnknownProvider, match=r"there are: (.*, )?CPUExecutionProvider"):
        Trainer.open(BUNDLE, provider="NoSuchExecutionProvider")
    with pytest.raises(BadSetting, match="runs on the CPU"):
        Trainer.open(BUNDLE, provider=AZURE, engine="ort-training")


def test_a_provider_that_onnxruntime_drops_is_an_error() -> None:
    """onnxruntime replaces a provider that it cannot use by the CPU, and prints a line."""
    bundle = Bundle.open(BUNDLE)
    with pytest.warns(UserWarning, match="not in available"), pytest.raises(RuntimeError, match="CUDAExecution"):
        Provider("CUDAExecutionProvider").session(str(bundle.file("eval.onnx")), ort.SessionOptions())
