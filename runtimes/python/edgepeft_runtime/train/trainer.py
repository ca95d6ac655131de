"""The trainer: everything that a device does with a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import onnxruntime

from edgepeft_runtime import version
from edgepeft_runtime.bundle.adapter_source import AdapterSource, load_adapter
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.checks import positive
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.data.sources import Data, source_of
from edgepeft_runtime.engine.compared import Verdict
from edgepeft_runtime.engine.engine import TrainState
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.engine.generate import Prompts, Sampling, generate
from edgepeft_runtime.engine.predict import predict
from edgepeft_runtime.engine.registry import PORTABLE
from edgepeft_runtime.errors import NoState, StateError
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.metrics.registry import MetricLike
from edgepeft_runtime.train.fit import fit
from edgepeft_runtime.train.options import FitOptions, keywords_of
from edgepeft_runtime.train.records import EpochRecord, FitReport
from edgepeft_runtime.train.session import Session
from edgepeft_runtime.train.update import Update, write_update


class Trainer:
    """Trains the adapter of one bundle; create one with ``open``."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | Path,
        *,
        state: str | Path | None = None,
        adapter: AdapterSource | None = None,
        seed: int = 0,
        threads: int | None = None,
        engine: str = PORTABLE,
        provider: str | None = None,
    ) -> Self:
        """Open a bundle for training, evaluation or prediction.

        Args:
            bundle: the directory, or an opened bundle.
            state: directory that keeps the run. If it contains a run, that run is resumed.
            adapter: what to start from instead of the bundle's own adapter.
            seed: seed of the shuffling. Runs with equal seeds, data and threads are bit-for-bit equal.
            threads: threads inside an operator; ``None`` leaves it to onnxruntime.
            engine: ``portable``, or ``ort-training`` where the bundle has the official artifacts and the environment
                has the training build of onnxruntime. Each engine can resume the other's runs.
            provider: an execution provider of onnxruntime, such as ``XnnpackExecutionProvider``, or the Python package
                of a plug-in, such as ``onnxruntime_ep_webgpu``. It runs the programs in which it agrees with the CPU:
                see ``verdicts``. ``None`` stands for the CPU.

        Raises:
            BundleError: the bundle or the adapter is damaged, or they do not fit together.
            SettingError: a setting is out of range.
            TrainingError: the engine or the provider is not available here.
            StateError: the state is damaged, in use, or belongs to another bundle or adapter.
        """
        return cls(Session.open(bundle, state, adapter, seed, threads, engine, provider))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the graphs and the state directory, without saving."""
        self.session.close()

    @property
    def bundle(self) -> Bundle:
        """The bundle whose adapter is trained."""
        return self.session.bundle

    @property
    def steps(self) -> int:
        """Optimizer steps taken in this run, also before it was resumed."""
        return self.session.run.step

    @property
    def examples(self) -> int:
        """Examples trained on in this run, repeats counted."""
        return self.session.run.examples

    @property
    def history(self) -> tuple[EpochRecord, ...]:
        """One record per epoch of ``fit``, and one before training where there was held-out data."""
        return self.session.run.history

    @property
    def seed(self) -> int:
        """The seed of the shuffling."""
        return self.session.run.seed

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """For each program that has run with a ``provider``: whether it agreed with the CPU, and the figures.

        For up to three shapes of a batch, a program runs on both. The losses may differ by 1e-3, relatively, and
        outputs and gradients by 1e-2 of their norm. A program that differs more, or fails, runs on the CPU.
        """
        return self.session.engine.verdicts

    def parameters(self) -> dict[str, Array]:
        """Return copies of the current parameters by name."""
        return self.session.engine.arrays(self.session.run.state)[0]

    def step(self, batch: Batch, *more: Batch, lr: float | None = None) -> float:
        """Take one optimizer step.

        Args:
            batch: arrays by name, inputs and labels; or a tuple of them in the manifest's order.
            more: further batches of the same step. The update is that of one large batch.
            lr: learning rate; ``None`` stands for the bundle's.

        Returns:
            The mean loss before the update, over all labels that are not ignored.

        Raises:
            BatchError: a batch does not fit, or every label is ignored.
            TrainingError: the loss or the gradient is not finite. In both cases the parameters stay as they were.
        """
        rate = self.bundle.manifest.optimizer.lr if lr is None else lr
        self.session.run, step, _ = self.session.next_run((batch, *more), rate)
        return step.loss_sum / step.loss_weight

    def pick(self, batches: Iterable[Batch]) -> None:
        """Pick which elements of sparse tensors train, by the gradient on these batches.

        ``step`` and ``fit`` do it themselves. Elements are picked once; without sparse tensors this does
        nothing.

        Raises:
            BatchError: a batch does not fit.
            TrainingError: a gradient is not finite.
        """
        self.session.pick(batches)

    @property
    def must_pick(self) -> bool:
        """Whether the elements that train are still to be picked."""
        return self.session.must_pick

    @keywords_of(FitOptions)
    def fit(self, data: Data, options: FitOptions) -> FitReport:
        """Train for some epochs, or resume where an earlier process with the same settings stopped.

        With more ``epochs`` than before and all else equal, a saved run continues with its optimizer state. With a
        constant learning rate and without held-out data, the results are those of one run with that many epochs.

        Settings are passed by name, ``trainer.fit(data, epochs=3, lr=1e-3)``: see
        ``edgepeft_runtime.FitOptions``.

        Data is one of these. Values have the manifest's names, or come in its order, inputs before labels.

        - arrays by name, a tuple of arrays, or the path of an ``.npz`` file;
        - a data frame (pandas, polars), or a ``datasets.Dataset``, by the names of columns;
        - examples: a map-style data set of torch, or a list of tuples or dicts; sequences of tokens are padded;
        - batches: a ``DataLoader``, a list, or a function from the epoch to its batches, in their own size and order;
        - a stream of examples: an ``IterableDataset``, or a function from the epoch to its examples, of which each
          batch draws among the next 1,024;
        - an object with ``__len__`` and ``batch(rows)``, such as those of ``edgepeft.data.load``, which reads tables,
          texts and images.

        Only data whose examples have an index, and functions of the epoch, make resumed runs bit-for-bit equal: a
        shuffling ``DataLoader`` draws another order.

        Returns:
            The report. If an earlier process finished this call, it is that report.

        Raises:
            StateError: the state directory contains a run with other settings.
            SettingError: a setting is out of range.
            BatchError, DataError, TrainingError: as in ``step``; the run stays where it was.
            KeyboardInterrupt: after saving.
        """
        return fit(self.session, data, options)

    def evaluate(self, data: Data, batch_size: int = 8, metrics: Sequence[MetricLike] = ()) -> Evaluation:
        """Return the loss, for class labels the accuracy, and further metrics over all of ``data``.

        Args:
            data: labelled data, as for ``fit``.
            batch_size: examples per batch.
            metrics: names (``f1``, ``auc``, ``recall@5``; ``edgepeft_runtime.METRICS`` has all), or functions of
                all outputs and of all inputs and labels, two dicts of arrays, that return a number.

        Raises:
            SettingError: a metric is unknown, or not defined for the bundle's loss.
            BatchError: a batch does not fit.
            DataError: there are no batches, or every label is ignored.
        """
        source = source_of(data, self.bundle.manifest, positive("batch_size", batch_size))
        return self.session.evaluate(source, metrics)

    def predict(
        self, inputs: Batch, adapter: AdapterSource | None = None, batch_size: int | None = None
    ) -> dict[str, Array]:
        """Return the model's outputs by name.

        Args:
            inputs: arrays by name. Labels among them are left out.
            adapter: another adapter for this call alone. The base model is not loaded again.
            batch_size: cut the first axis into batches of this size; ``None`` runs all examples at once.

        Raises:
            BatchError: the inputs do not fit the bundle.
            BundleError: the adapter is damaged, or does not fit the bundle.
        """
        return predict(self.session.engine, self.bundle.manifest, self._state(adapter), inputs, batch_size)

    @keywords_of(Sampling)
    def generate(self, prompts: Prompts, sampling: Sampling) -> list[list[int]]:
        """Continue texts with a causal language model.

        ``prompts`` are token ids of a text, or of several texts, which may differ in length. Settings are passed by
        name, ``trainer.generate(ids, max_new_tokens=16)``: see ``Sampling``.

        Returns:
            The new tokens of each text, including the one that ended it.

        Raises:
            BatchError: a prompt is empty, too long, or contains an id that is not a token; or the bundle is not a
                causal language model.
            SettingError: a setting is out of range.
        """
        return generate(self.session.engine, self.bundle.manifest, self._state(sampling.adapter), prompts, sampling)

    def _state(self, adapter: AdapterSource | None) -> TrainState:
        """Return the current state, or that of another adapter."""
        if adapter is None:
            return self.session.run.state
        return self.session.engine.load(load_adapter(self.bundle, adapter)[0], {})

    def save(self) -> None:
        """Write a checkpoint to the state directory.

        Raises:
            StateError: there is no state directory, or it cannot be written.
            TrainingError: a value is not finite.
        """
        if self.session.save() is None:
            raise _no_state("This run has no state directory to save to.", "open the trainer with state=DIRECTORY.")

    def resume(self) -> None:
        """Go back to the last checkpoint in the state directory. Steps since then are lost.

        Raises:
            StateError: there is no state directory, no checkpoint in it, or it is damaged.
        """
        if not self.session.resume():
            hint = "open the trainer with state=DIRECTORY, and save first."
            raise _no_state("There is no checkpoint to resume from.", hint)

    def save_update(self, path: str | Path) -> Path:
        """Write the update that the host merges, and return the path."""
        return write_update(path, self.update())

    def update(self) -> Update:
        """Return what ``save_update`` writes: the parameters, and where they come from.

        Raises:
            TrainingError: a value is not finite.
        """
        run = self.session.run
        held_out = run.held_out_before is not None
        return Update(
            parameters=self.session.finite_arrays()[0],
            base_sha256=self.bundle.base_sha256,
            adapter_sha256=self.session.adapter_sha256,
            provenance=self.bundle.manifest.provenance,
            num_examples=run.examples,
            steps=run.step,
            loss_before=run.held_out_before if held_out else run.loss_before,
            loss_after=run.held_out_after if held_out else run.loss_after,
            runtime=f"edgepeft_runtime {version.VERSION}, onnxruntime {onnxruntime.__version__}",
        )


def _no_state(message: str, hint: str) -> StateError:
    return NoState(message, context=None, hint=hint)
