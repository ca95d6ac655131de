"""The profile of a step: what was measured, and what would help."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from edgepeft_runtime.bundle.adapter_source import AdapterSource
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.checks import positive
from edgepeft_runtime.data.sources import Data
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.profiling.advice import Advice, advices
from edgepeft_runtime.profiling.page import page
from edgepeft_runtime.profiling.record import record
from edgepeft_runtime.profiling.summary import Summary, summarized
from edgepeft_runtime.profiling.text import table


@dataclass(frozen=True)
class Profile:
    """Where time and memory of a training step go.

    Attributes:
        bundle: name of the bundle's folder.
        summary: time and memory.
        advice: up to three things that would help, the most helpful first.
    """

    bundle: str
    summary: Summary
    advice: tuple[Advice, ...]

    def to_dict(self) -> Json:
        """Return plain JSON values."""
        advice = [asdict(advice) for advice in self.advice]
        return {"bundle": self.bundle, "advice": advice, **self.summary.to_dict()}

    def table(self) -> str:
        """Return the profile as text."""
        return table(self.summary, self.advice)

    def page(self) -> str:
        """Return the profile as one HTML page with charts, which needs no other file."""
        return page(self.bundle, self.summary, self.advice)


def profile(
    bundle: Bundle,
    data: Data,
    *,
    adapter: AdapterSource | None = None,
    batch_size: int = 8,
    steps: int = 10,
    threads: int | None = None,
) -> Profile:
    """Measure training steps on the user's own data. Nothing is changed or kept.

    Args:
        bundle: an opened bundle.
        data: as for ``Trainer.fit``. Its first batches are used, again and again where there are too few.
        adapter: the adapter; ``None`` stands for the bundle's own.
        batch_size: examples in a batch.
        steps: steps to measure, without the profiler and with it, after a first one each.
        threads: threads inside an operator; ``None`` leaves it to onnxruntime.

    Raises:
        SettingError: a setting is out of range.
        BatchError, DataError, TrainingError, BundleError: as in ``Trainer.step``.
    """
    positive("steps", steps)
    recording = record(
        bundle,
        data,
        adapter=adapter,
        batch_size=positive("batch_size", batch_size),
        steps=steps,
        threads=threads,
    )
    summary = summarized(bundle, recording)
    return Profile(bundle.path.resolve().name, summary, advices(bundle.manifest, summary))
