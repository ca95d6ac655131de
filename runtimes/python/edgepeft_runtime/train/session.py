"""A run in this process: its values, the engine that changes them, and the directory that keeps them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from edgepeft_runtime.bundle.adapter_source import AdapterSource, load_adapter
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.checks import MOST_THREADS, positive, require
from edgepeft_runtime.data.batch import Batch, checked_batch, examples_in
from edgepeft_runtime.data.sources import Source
from edgepeft_runtime.engine.activations import owner_of
from edgepeft_runtime.engine.engine import Engine, Step
from edgepeft_runtime.engine.evaluate import Evaluation, evaluate
from edgepeft_runtime.engine.registry import NO_CACHE, open_engine
from edgepeft_runtime.engine.row_store import RowStore
from edgepeft_runtime.errors import BadSetting, Diverged, OtherSettings
from edgepeft_runtime.files.durable import writing
from edgepeft_runtime.files.finite import first_not_finite
from edgepeft_runtime.files.strict_json import LARGEST
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.metrics.registry import MetricLike
from edgepeft_runtime.notices import notice
from edgepeft_runtime.train.checkpoint import ACTIVATIONS, Checkpoint, StateDirectory
from edgepeft_runtime.train.options import FitOptions
from edgepeft_runtime.train.records import FitReport
from edgepeft_runtime.train.run import FitState, Run
from edgepeft_runtime.train.selection import pick, to_pick


class Session:
    """The state that a trainer and its training loop share.

    Args:
        bundle: an opened bundle.
        engine: runs its graphs.
        run: the run so far.
        adapter_sha256: hash of the adapter file that the run started from.
        directory: keeps checkpoints; ``None`` keeps none.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, run: Run, adapter_sha256: str, directory: StateDirectory | None = None
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.run = run
        """The run so far; replaced as a whole after each step."""
        self.adapter_sha256 = adapter_sha256
        self._directory = directory
        self._resumed_fits = len(run.fits)
        self._finished_fits = 0
        self._rows: RowStore | None = None

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | Path,
        state: str | Path | None,
        adapter: AdapterSource | None,
        seed: int,
        threads: int | None,
        engine: str,
        provider: str | None,
    ) -> Self:
        """Open a bundle, and resume the run in the state directory if there is one: see ``Trainer.open``."""
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        valid = isinstance(seed, int) and 0 <= seed <= LARGEST
        require("seed", seed, valid, f"a whole number from 0 to {LARGEST}: a checkpoint keeps it in JSON")
        if threads is not None:
            positive("threads", threads, MOST_THREADS)
        parameters, adapter_sha256 = load_adapter(bundle, adapter)
        opened = open_engine(engine, bundle, threads, provider)
        run = Run(opened.load(parameters), seed)
        if state is None:
            return cls(bundle, opened, run, adapter_sha256)
        session = cls(bundle, opened, run, adapter_sha256, StateDirectory(state, bundle, adapter_sha256))
        try:
            session._restore()
        except BaseException:
            session.close()
            raise
        return session

    def close(self) -> None:
        """Release the graphs and the state directory, without saving."""
        self.engine.close()
        if self._directory is not None:
            self._directory.close()

    def next_run(self, batches: Sequence[Batch], lr: float) -> tuple[Run, Step, int]:
        """Compute one optimizer step, without changing ``run``.

        Returns:
            The run after the step, the step, and its number of examples.
        """
        require("lr", lr, math.isfinite(lr) and lr >= 0, "a finite learning rate, 0 or more")
        manifest = self.bundle.manifest
        arrays = [checked_batch(batch, manifest) for batch in batches]
        examples = sum(examples_in(batch, manifest) for batch in arrays)
        self.pick(batches)
        step = self.engine.train(self.run.state, arrays, lr=lr, step=self.run.step + 1)
        return self.run.after_step(step, examples), step, examples

    @property
    def must_pick(self) -> bool:
        """Whether the elements that train are still to be picked, by the gradient on the first batches."""
        return bool(to_pick(self.engine, self.bundle.manifest, self.run.state))

    def pick(self, batches: Iterable[Batch]) -> None:
        """Pick the elements that train, unless they are picked already: see ``Trainer.pick``."""
        if not self.must_pick:
            return
        manifest, state = self.bundle.manifest, self.run.state
        picked = pick(self.engine, manifest, state, [checked_batch(batch, manifest) for batch in batches])
        parameters = {**state.parameters, **self.engine.load(picked, {}).parameters}
        self.run = replace(self.run, state=replace(state, parameters=parameters))

    def evaluate(self, source: Source, metrics: Sequence[MetricLike] = ()) -> Evaluation:
        """Evaluate the current parameters: see ``edgepeft_runtime.engine.evaluate.evaluate``."""
        return evaluate(self.engine, self.bundle.manifest, self.run.state, source, metrics)

    def start_fit(self, settings: Mapping[str, object]) -> FitReport | None:
        """Make a call of ``fit`` the current one: a saved call to resume or to extend, or a new one.

        Returns:
            The report, if an earlier process finished this call; the caller then returns it.

        Raises:
            StateError: the state directory contains a run with other settings.
        """
        fits = self.run.fits
        if self._finished_fits < self._resumed_fits:
            saved = fits[self._finished_fits]
            if saved is fits[-1] and _adds_epochs(saved, settings):
                _notice_more_epochs(saved, settings)
                self.run = self.run.with_more_epochs(settings)
                return None
            _check_same(saved.settings, settings)
            return None if saved.stopped is None else self.end_fit(saved)
        unfinished = bool(fits) and fits[-1].stopped is None
        if unfinished and fits[-1].settings == settings:
            return None
        # Within one process, new settings after an interrupt are intended: the interrupted call ends here.
        if unfinished:
            fits = (*fits[:-1], replace(fits[-1], stopped="interrupted"))
        self.run = replace(self.run, fits=(*fits, FitState(settings)), best=None)
        return None

    def end_fit(self, fit: FitState) -> FitReport:
        """Count a call of ``fit`` as finished and return its report."""
        self._finished_fits += 1
        return fit.report()

    def finite_arrays(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return parameters and optimizer state.

        Raises:
            TrainingError: a value is not finite. It must not replace a good file.
        """
        parameters, optimizer = self.engine.arrays(self.run.state)
        for name, array in (*parameters.items(), *optimizer.items()):
            index = first_not_finite(array)
            if index is not None:
                raise Diverged(
                    "The run contains a value that is not finite; nothing was written.",
                    context=f"tensor {name!r} at {list(index)}: {array[index]}",
                    hint="go back to the last checkpoint with a smaller learning rate.",
                )
        return parameters, optimizer

    @contextmanager
    def keeping(self, options: FitOptions) -> Iterator[None]:
        """Keep in the state directory what ``options.cache`` names, while this context lasts.

        Raises:
            SettingError: there is no state directory.
            TrainingError: the bundle or the engine has nothing that can be kept.
        """
        if options.cache == NO_CACHE:
            yield
            return
        if self._directory is None:
            raise BadSetting("cache", options.cache, f"{NO_CACHE}, or open the trainer with a state directory")
        owner = owner_of(self.bundle, self.engine.arrays(self.run.state)[0])
        with closing(RowStore(self._directory.path / ACTIVATIONS, owner, options.cache_bytes)) as self._rows:
            try:
                self.engine.keep_activations(self._rows)
                yield
            finally:
                self.engine.keep_activations(None)
                self._rows = None

    def save(self) -> Path | None:
        """Write a checkpoint to the state directory, and return the directory; ``None`` if there is none."""
        if self._directory is None:
            return None
        parameters, optimizer = self.finite_arrays()
        if self._rows is not None:
            with writing(self._directory.path / ACTIVATIONS):
                self._rows.sync()
        best = None if self.run.best is None else self.engine.arrays(self.run.best)[0]
        self._directory.save(Checkpoint(parameters, optimizer, best, self.run.to_json()))
        return self._directory.path

    def resume(self) -> bool:
        """Go back to the last checkpoint, and to the start of the calls of ``fit``; return whether there is one."""
        resumed = self._restore()
        self._finished_fits = 0 if resumed else self._finished_fits
        return resumed

    def _restore(self) -> bool:
        saved = None if self._directory is None else self._directory.load()
        if self._directory is None or saved is None:
            return False
        best = None if saved.best is None else self.engine.load(saved.best, {})
        run = Run.from_json(saved.run, self.engine.load(saved.parameters, saved.optimizer), best)
        if run.seed != self.run.seed:
            raise OtherSettings(
                f"The run in {self._directory.path} has another seed.",
                context=f"seed: this run {self.run.seed}, the state {run.seed}",
                hint=f"pass seed={run.seed}, or use another state directory.",
            )
        self.run, self._resumed_fits = run, len(run.fits)
        return True


def _adds_epochs(saved: FitState, settings: Mapping[str, object]) -> bool:
    """Return whether the settings are those of a saved call but for more epochs, and what follows from their number."""
    before, after = saved.settings.get("epochs"), settings["epochs"]
    more = isinstance(before, int) and isinstance(after, int) and after > before
    return more and set(_differing(saved.settings, settings)) <= {"epochs", "total_steps", "warmup"}


def _notice_more_epochs(saved: FitState, settings: Mapping[str, object]) -> None:
    text = f"the run has {settings['epochs']} epochs now instead of {saved.settings['epochs']}"
    if saved.stopped is not None and saved.best is not None:
        text += f"; it continues from the adapter of epoch {saved.history[saved.best].epoch}, which was kept"
    if settings["schedule"] != "constant":
        text += f"; the learning rate continues on the {settings['schedule']} schedule of the longer run"
    notice(f"{text}. Resume it with the new number.")


def _differing(saved: Mapping[str, object], settings: Mapping[str, object]) -> list[str]:
    return [name for name in {**settings, **saved} if saved.get(name) != settings.get(name)]


def _check_same(saved: Mapping[str, object], settings: Mapping[str, object]) -> None:
    names = _differing(saved, settings)
    if names:
        raise OtherSettings(
            "The state directory contains a run with other settings or other data.",
            context="\n".join(f"{name}: this run {settings.get(name)}, the state {saved.get(name)}" for name in names),
            hint="use the settings and data that the run was started with, or restart it in another state directory.",
        )
