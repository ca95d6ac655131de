"""Collect the facts of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepeft.report.page import page
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.errors import ForeignState
from edgepeft_runtime.profiling.profile import Profile, profile
from edgepeft_runtime.train.saved import SavedRun, read_run
from edgepeft_runtime.train.trainer import Trainer


@dataclass(frozen=True)
class RunReport:
    """The facts of a run.

    Attributes:
        run: The run, as its state directory has it.
        bundle: Its bundle, if it was given.
        evaluation: Figures of the run's adapter on the data that was given.
        profile: Where the time and memory of a step on that data go.
    """

    run: SavedRun
    bundle: Bundle | None = None
    evaluation: Evaluation | None = None
    profile: Profile | None = None

    def page(self) -> str:
        """Return the report as one HTML page, which needs no other file."""
        return page(self.run, self.bundle, self.evaluation, self.profile)


def report(
    state: str | Path,
    bundle: str | Path | Bundle | None = None,
    data: Dataset | None = None,
    *,
    batch_size: int = 8,
    profile_steps: int = 0,
) -> RunReport:
    """Report on the run in a state directory.

    Args:
        state: The state directory.
        bundle: The run's bundle, for what was trained, frozen and kept.
        data: Labelled data of the bundle, by which the run's adapter is evaluated: ``edgepeft.data.load``.
        batch_size: Examples per batch of the evaluation and the profile.
        profile_steps: Steps to measure on the data; 0 measures none.

    Raises:
        StateError: There is no run, or it belongs to another bundle.
        BundleError: The bundle is damaged.
    """
    run = read_run(state)
    if bundle is None:
        return RunReport(run)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if run.graphs_sha256 != opened.graphs_sha256:
        raise ForeignState(
            f"The state in {run.path} belongs to another bundle.",
            context=f"graphs_sha256: this bundle {opened.graphs_sha256}, the state {run.graphs_sha256}",
            hint="give the bundle that the run was started with.",
        )
    if data is None:
        return RunReport(run, opened)
    with Trainer.open(opened, state=state, seed=run.seed) as trainer:
        metrics = ("confusion",) if _has_classes(opened) else ()
        evaluation = trainer.evaluate(data, batch_size, metrics)
        parameters = trainer.parameters()
    found = None
    if profile_steps:
        found = profile(opened, data, adapter=parameters, batch_size=batch_size, steps=profile_steps)
    return RunReport(run, opened, evaluation, found)


def _has_classes(bundle: Bundle) -> bool:
    """Whether each example has one of several classes, which a confusion matrix can count."""
    labels = bundle.manifest.labels
    return bundle.manifest.loss.kind == "cross_entropy" and len(labels) == 1 and len(labels[0].shape) == 1
