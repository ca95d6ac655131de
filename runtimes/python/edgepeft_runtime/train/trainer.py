"""The trainer: open a bundle, step, evaluate, predict, save; everything a device does with a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnxruntime

from edgepeft_runtime import version
from edgepeft_runtime.bundle.bundle import Bundle, checked_parameters
from edgepeft_runtime.data.batch import Batch, checked_batch, examples_in
from edgepeft_runtime.data.datasets import Data, Source, source_of
from edgepeft_runtime.data.values import first_not_finite
from edgepeft_runtime.engine.engine import Engine, Step
from edgepeft_runtime.engine.generate import Prompts, Sampling, generate
from edgepeft_runtime.engine.registry import PORTABLE, open_engine
from edgepeft_runtime.errors import BundleError, DataError, StateError, TrainingError
from edgepeft_runtime.files.strict_json import LARGEST
from edgepeft_runtime.files.tensorfile import Array, read_tensors, sha256_of, tensor_chunks
from edgepeft_runtime.shown import quoted
from edgepeft_runtime.train.accuracy import count_right
from edgepeft_runtime.train.checkpoint import Checkpoint, StateDirectory
from edgepeft_runtime.train.fit import fit, positive
from edgepeft_runtime.train.limits import Pause
from edgepeft_runtime.train.records import Evaluation, Progress, Record, Report
from edgepeft_runtime.train.run import Run
from edgepeft_runtime.train.selection import pick, to_pick
from edgepeft_runtime.train.update import Update, write_update

Adapter = str | Path | Mapping[str, Array]
"""The path of an adapter or an update, or its tensors by name."""


class Trainer:
    """Trains the adapter of one bundle; make one with :meth:`open`.

    Args:
        bundle: an opened bundle.
        engine: what runs its graphs.
        run: where the run stands.
        adapter_sha256: hash of the adapter file it started from.
        state: where to keep it, if anywhere.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, run: Run, adapter_sha256: str, state: StateDirectory | None = None
    ) -> None:
        self.bundle = bundle
        self.run = run
        """The run so far; replaced as a whole after each step."""
        self.resumed_fits = len(run.fits)
        """How many calls of ``fit`` the state held when it was opened: these are gone through again, not repeated."""
        self.finished_fits = 0
        """How many calls of ``fit`` have returned since."""
        self._engine = engine
        self._adapter_sha256 = adapter_sha256
        self._state = state

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | Path,
        *,
        state: str | Path | None = None,
        adapter: Adapter | None = None,
        seed: int = 0,
        threads: int | None = None,
        engine: str = PORTABLE,
    ) -> Self:
        """Open a bundle for training, evaluation or prediction.

        Args:
            bundle: the directory, or a bundle that is open already.
            state: a directory to keep the run in. If it holds a run, that run goes on.
            adapter: what to start from instead of the bundle's own adapter.
            seed: of the shuffling; equal seeds, data and threads give equal runs to the bit.
            threads: threads inside an operator; ``None`` leaves it to onnxruntime.
            engine: ``portable``, or ``ort-training`` where the bundle has the official artifacts and the environment
                the training build of onnxruntime; a run may go on with the other.

        Raises:
            BundleError: the bundle or the adapter is damaged or does not fit.
            TrainingError: there is no such engine here.
            StateError: the state is damaged, in use, or belongs to another bundle or adapter.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        _check_settings(seed, threads)
        parameters, adapter_sha256 = adapter_values(bundle, adapter)
        runs = open_engine(engine, bundle, threads)
        if state is None:
            return cls(bundle, runs, Run(runs.load(parameters), seed), adapter_sha256)
        directory = StateDirectory(state, bundle, adapter_sha256)
        try:
            kept = directory.load()
            run = Run(runs.load(parameters), seed) if kept is None else _resumed(kept, runs, seed, directory.path)
        except BaseException:
            directory.close()
            raise
        return cls(bundle, runs, run, adapter_sha256, directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the graphs and of the state directory. Does not save."""
        self._engine.close()
        if self._state is not None:
            self._state.close()

    @property
    def steps(self) -> int:
        """Optimizer steps taken in this run, before and after a resume."""
        return self.run.step

    @property
    def examples(self) -> int:
        """Examples trained on in this run, repeats counted."""
        return self.run.examples

    @property
    def history(self) -> tuple[Record, ...]:
        """One record per epoch of ``fit``, and one before training where there was held-out data."""
        return self.run.history

    @property
    def seed(self) -> int:
        """The seed of the shuffling."""
        return self.run.seed

    @property
    def keeps_state(self) -> bool:
        """Whether there is a state directory to save to."""
        return self._state is not None

    def parameters(self) -> dict[str, Array]:
        """The parameters as they stand, as arrays of their own."""
        return self._engine.arrays(self.run.values)[0]

    def step(self, batch: Batch, *more: Batch, lr: float | None = None) -> float:
        """One optimizer step.

        Args:
            batch: arrays by name, inputs and labels.
            more: further batches of the same step: the update is that of one large batch.
            lr: learning rate; ``None`` takes the bundle's.

        Returns:
            The mean loss before the update, over all labels that count.

        Raises:
            BatchError: a batch does not fit, or no label counts.
            TrainingError: the loss or the gradient is not finite. In both cases the parameters are as before.
        """
        self.run, step, _ = self.next_run((batch, *more), self.bundle.manifest.optimizer.lr if lr is None else lr)
        return step.loss_sum / step.loss_weight

    def next_run(self, batches: Sequence[Batch], lr: float) -> tuple[Run, Step, int]:
        """The run one optimizer step further (without taking it over), the step, and its number of examples."""
        if not (math.isfinite(lr) and lr >= 0):
            hint = "give a finite number, 0 or more."
            raise TrainingError("bad-setting", "The learning rate is out of range.", context=f"lr: {lr}", hint=hint)
        manifest = self.bundle.manifest
        arrays = [checked_batch(batch, manifest) for batch in batches]
        examples = sum(examples_in(batch, manifest) for batch in arrays)
        self.pick(batches)
        step = self._engine.train(self.run.values, arrays, lr=lr, step=self.run.step + 1)
        return self.run.after_step(step, examples), step, examples

    def pick(self, batches: Iterable[Batch]) -> None:
        """Pick which elements of sparse tensors train, by the gradient on these batches; :meth:`step` does it itself.

        Picked once, they stay; without sparse tensors there is nothing to do.

        Raises:
            BatchError: a batch does not fit.
            TrainingError: a gradient is not finite.
        """
        if not self.must_pick:
            return
        manifest, values = self.bundle.manifest, self.run.values
        indices = pick(self._engine, manifest, values, [checked_batch(batch, manifest) for batch in batches])
        held = self._engine.load(indices, {}).parameters
        self.run = replace(self.run, values=replace(values, parameters={**values.parameters, **held}))

    @property
    def must_pick(self) -> bool:
        """Whether elements that train are still to be picked, by the gradient on the first batches."""
        return bool(to_pick(self._engine, self.bundle.manifest, self.run.values))

    def fit(
        self,
        data: Data,
        *,
        epochs: int = 1,
        batch_size: int = 8,
        accumulate: int = 1,
        lr: float | None = None,
        schedule: str = "constant",
        warmup: int | float = 0,
        shuffle: bool = True,
        validate: Data | None = None,
        patience: int | None = None,
        save_every: int | None = 50,
        max_steps: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        pause: Callable[[], Pause | None] | None = None,
    ) -> Report:
        """Train for some epochs, and go on where an earlier process with the same settings stopped.

        Args:
            data: arrays by name, the path of an ``.npz`` file, a data set, batches, or a function of the epoch.
            epochs: passes over the data.
            batch_size: examples per batch; ready-made batches are taken as they are.
            accumulate: batches per optimizer step.
            lr: highest learning rate; ``None`` takes the bundle's.
            schedule: ``constant``, ``linear`` or ``cosine``.
            warmup: rise of the learning rate, as steps (int) or as a share of all steps (float).
            shuffle: draw a new order in each epoch; ready-made batches keep theirs.
            validate: held-out data, evaluated before training and after each epoch; the best adapter is kept.
            patience: stop after so many epochs without a better held-out loss.
            save_every: optimizer steps between checkpoints in the state directory; ``None``: after epochs only.
            max_steps: stop after so many optimizer steps.
            progress: called after each optimizer step.
            pause: asked before each optimizer step and each evaluation, as is
                :class:`~edgepeft_runtime.train.limits.Limits`. What it gives is waited for, or ends the call; the run
                is saved first, and goes on as if nothing had been.

        Returns:
            The report; that of the earlier process if it had finished. To train on, use another state directory.

        Raises:
            StateError: the state holds a run with other settings.
            BatchError, DataError, TrainingError: see :meth:`step`; the run stays where it was.
            KeyboardInterrupt: after saving.
        """
        return fit(
            self,
            data,
            epochs=epochs,
            batch_size=batch_size,
            accumulate=accumulate,
            lr=self.bundle.manifest.optimizer.lr if lr is None else lr,
            schedule=schedule,
            warmup=warmup,
            shuffle=shuffle,
            validate=validate,
            patience=patience,
            save_every=save_every,
            max_steps=max_steps,
            progress=progress,
            pause=pause,
        )

    def evaluate(self, data: Data, batch_size: int = 8) -> Evaluation:
        """Loss and, for class labels, accuracy over all of ``data``; changes nothing.

        Raises:
            DataError: there is nothing in it, or no label counts.
        """
        return self.evaluate_source(source_of(data, positive("batch_size", batch_size)))

    def evaluate_source(self, source: Source) -> Evaluation:
        """:meth:`evaluate` over batches that are cut already."""
        manifest = self.bundle.manifest
        loss_sum = loss_weight = 0.0
        examples = right = asked = 0
        for batch in source.batches(0):
            arrays = checked_batch(batch, manifest)
            forward = self._engine.evaluate(self.run.values, arrays)
            loss_sum, loss_weight = loss_sum + forward.loss_sum, loss_weight + forward.loss_weight
            examples += examples_in(arrays, manifest)
            counts = count_right(forward.outputs, arrays, manifest) or (0, 0)
            right, asked = right + counts[0], asked + counts[1]
        if loss_weight == 0.0:
            what = "every label is the ignored one." if examples else "the data gives no batch."
            raise DataError("no-data", "There is nothing to evaluate.", context=what, hint="pass labelled examples.")
        return Evaluation(loss_sum / loss_weight, right / asked if asked else None, examples)

    def predict(self, inputs: Batch, adapter: Adapter | None = None, batch_size: int | None = None) -> dict[str, Array]:
        """The model's outputs by name; changes nothing.

        Args:
            inputs: arrays by name; labels among them are left out.
            adapter: another adapter for this call alone; the base is not loaded again.
            batch_size: cut the first axis into batches of this size; ``None`` runs all at once.
        """
        values = self.run.values
        if adapter is not None:
            values = self._engine.load(adapter_values(self.bundle, adapter)[0], {})
        cut = [inputs] if batch_size is None else source_of(inputs, positive("batch_size", batch_size)).batches(0)
        batches = (checked_batch(batch, self.bundle.manifest, labels=False) for batch in cut)
        parts = [self._engine.infer(values, batch) for batch in batches]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts[1:] else parts[0]

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 64,
        adapter: Adapter | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Let a causal language model go on with texts; changes nothing.

        Args:
            prompts: token ids of a text, or of several, which may be of different length.
            max_new_tokens: tokens to generate for each; fewer where the model has no positions for more.
            adapter: another adapter for this call alone; the base is not loaded again.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn; 1 is as the model says.
            top_k: draw among so many likeliest tokens only.
            top_p: draw among the fewest likeliest tokens that have this probability together.
            seed: of the drawing; a prompt draws the same alone and among others.
            stop: tokens that end a text; ``None`` takes the bundle's.

        Returns:
            The new tokens of each text, the one that ended it included.

        Raises:
            BatchError: a prompt is empty, too long, or holds what is no token; the bundle is no causal language model.
            TrainingError: a setting is out of range.
        """
        values = self.run.values
        if adapter is not None:
            values = self._engine.load(adapter_values(self.bundle, adapter)[0], {})
        sampling = Sampling(positive("max_new_tokens", max_new_tokens), temperature, top_k, top_p, seed, stop)
        return generate(self._engine, self.bundle.manifest, values, prompts, sampling)

    def save(self) -> None:
        """Write a checkpoint to the state directory."""
        if self._state is None:
            hint = "open the trainer with state=DIRECTORY."
            raise StateError("no-state", "This run has no state directory to save to.", context=None, hint=hint)
        run = self.run
        parameters, state = self._finite_arrays()
        best = None if run.best is None else self._engine.arrays(run.best)[0]
        self._state.save(Checkpoint(parameters, state, best, run.to_json()))

    def resume(self) -> None:
        """Go back to the last checkpoint in the state directory, as :meth:`open` does; steps since then are lost.

        Raises:
            StateError: there is no state directory, no checkpoint in it, or it is damaged.
        """
        kept = None if self._state is None else self._state.load()
        if self._state is None or kept is None:
            hint = "open the trainer with state=DIRECTORY, and save first."
            raise StateError("no-state", "There is no checkpoint to resume from.", context=None, hint=hint)
        self.run = _resumed(kept, self._engine, self.run.seed, self._state.path)
        self.resumed_fits, self.finished_fits = len(self.run.fits), 0

    def save_update(self, path: str | Path) -> Path:
        """Write what the host merges: the parameters, and where they come from. Returns the path."""
        return write_update(path, self.update())

    def update(self) -> Update:
        """What :meth:`save_update` writes.

        Raises:
            TrainingError: a value has overflowed.
        """
        run = self.run
        held_out = run.held_out_before is not None
        return Update(
            parameters=self._finite_arrays()[0],
            base_sha256=self.bundle.base_sha256,
            adapter_sha256=self._adapter_sha256,
            provenance=self.bundle.manifest.provenance,
            num_examples=run.examples,
            steps=run.step,
            loss_before=run.held_out_before if held_out else run.loss_before,
            loss_after=run.held_out_after if held_out else run.loss_after,
            runtime=f"edgepeft_runtime {version.VERSION}, onnxruntime {onnxruntime.__version__}",
        )

    def _finite_arrays(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Parameters and state; what has overflowed must not replace a good file."""
        parameters, state = self._engine.arrays(self.run.values)
        for name, array in (*parameters.items(), *state.items()):
            place = first_not_finite(array)
            if place is not None:
                raise TrainingError(
                    "not-finite",
                    "The run holds a value that is not finite; nothing was written.",
                    context=f"tensor {name!r} at {list(place)}: {array[place]}",
                    hint="go back to the last checkpoint with a smaller learning rate.",
                )
        return parameters, state


def _check_settings(seed: int, threads: int | None) -> None:
    if not isinstance(seed, int) or not 0 <= seed <= LARGEST:
        message = f"seed must be a whole number from 0 to {LARGEST}: a checkpoint keeps it in JSON."
        raise TrainingError("bad-setting", message, context=f"found {quoted(seed)}", hint=None)
    if threads is not None:
        positive("threads", threads)


def adapter_values(bundle: Bundle, adapter: Adapter | None) -> tuple[dict[str, Array], str]:
    """The parameters of an adapter, checked, and the hash of its file."""
    if adapter is None:
        return bundle.adapter(), bundle.adapter_sha256
    if isinstance(adapter, Mapping):
        tensors = {name: np.asarray(array) for name, array in adapter.items()}
        source = "The adapter"
    else:
        tensors, source = (
            read_tensors(adapter, error=BundleError, most=bundle.adapter_bytes).tensors,
            f"The adapter {adapter}",
        )
    checked = checked_parameters(tensors, bundle.manifest, source, BundleError)
    return checked, tensor_chunks(checked)[1] if isinstance(adapter, Mapping) else sha256_of(adapter)


def _resumed(kept: Checkpoint, engine: Engine, seed: int, path: Path) -> Run:
    best = None if kept.best is None else engine.load(kept.best, {})
    run = Run.from_json(kept.run, engine.load(kept.parameters, kept.state), best)
    if run.seed != seed:
        raise StateError(
            "other-settings",
            f"The run in {path} has another seed.",
            context=f"seed: this run {seed}, the state {run.seed}",
            hint=f"pass seed={run.seed}, or use another state directory.",
        )
    return run
