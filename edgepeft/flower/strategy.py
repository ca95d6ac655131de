"""A Flower ``Strategy`` that aggregates a round's answers like ``edgepeft aggregate``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from edgepeft.aggregation import Acceptance, Aggregate, AggregationSettings, aggregate, check_acceptance
from edgepeft.aggregation.errors import AggregationError, TooFewUpdates
from edgepeft.aggregation.incoming import Start
from edgepeft.aggregation.report import write_report
from edgepeft.flower import messages, rounds
from edgepeft.flower.messages import Training
from edgepeft.flower.receiving import receive, refuse
from edgepeft.flower.rounds import Rounds
from edgepeft.intake.refusal import Refusal
from edgepeft_runtime.bundle.adapter_source import load_adapter
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.sources import Data
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.errors import BadSetting, EdgepeftError, FileError, ForeignRound, TensorError, UpdateError
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.update import read_update

log = logging.getLogger("flwr")
Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


class AdapterStrategy(FedAvg):  # type: ignore[misc]  # flwr is not type-checked here
    """Sends an adapter to nodes, and combines their answers into the next one by ``edgepeft.aggregate``.

    Flower's FedAvg chooses the nodes. Each answer is checked like a delivered file, and written as one. The result of
    a round is bit-for-bit that of ``edgepeft aggregate`` on these files. Bad answers (an error, another base or round,
    wrong names, dtypes or shapes, values that are not finite, a norm that is too large) are refused by node, with a
    code and a reason, and the others count. No message of a node can end the run: a round without a result keeps its
    adapter.

    Rounds are kept in a folder (``Rounds``), and a server that was stopped resumes after
    the last one. Flower's own wrappers for differential privacy would add their noise after a round was written: use
    ``AggregationSettings(privacy=...)`` instead.

    Args:
        bundle: The bundle that the devices have, or its directory.
        out: The folder of the rounds.
        settings: How updates are combined: all of ``edgepeft.aggregate`` but the rule ``stack``, whose result fits
            no bundle. The ``sampling`` of ``Privacy`` draws among the answers: the nodes that were asked are not
            secret, but whose answers count is.
        training: How devices train.
        min_updates: A round with fewer good updates keeps its adapter.
        max_norm: Largest L2 norm of a device's change, over all tensors. Larger changes are refused, while
            ``AggregationSettings(clip=...)`` scales them down.
        held_out: Data of the server to evaluate each round on; a result with a higher loss is not accepted.
        tolerance: By how much that loss may rise; ``math.inf`` accepts every result.
        sampling: ``fraction_train``, ``min_train_nodes``, ``min_available_nodes`` and others of Flower's ``FedAvg``.
            Devices evaluate on data of their own only with a ``fraction_evaluate``.

    Raises:
        BundleError: The bundle is damaged.
        AggregationError: A setting is out of range.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        out: str | Path,
        *,
        settings: AggregationSettings | None = None,
        training: Training | None = None,
        min_updates: int = 1,
        max_norm: float | None = None,
        held_out: Data | None = None,
        tolerance: float = 0.0,
        **sampling: object,
    ) -> None:
        super().__init__(**{"fraction_evaluate": 0.0, **sampling})
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.rounds = Rounds(out)
        self._settings = AggregationSettings() if settings is None else settings
        self._training = Training() if training is None else training
        self._min_updates, self._max_norm = min_updates, max_norm
        self._held_out, self._tolerance = held_out, tolerance
        self._check()
        self._done = self.rounds.last
        self._round_start: Start | None = None
        self._evaluations: dict[str, Evaluation] = {}

    def _check(self) -> None:
        if self._settings.rule == "stack":
            raise BadSetting("rule", "stack", "fedavg, ffa or svd: a stack fits no bundle, so it starts no round")
        if self._min_updates < 1:
            raise BadSetting("min_updates", self._min_updates, "1 or more")
        if self._max_norm is not None and not self._max_norm > 0:
            raise BadSetting("max_norm", self._max_norm, "a number above 0")

    def adapter(self) -> dict[str, Array]:
        """Return the adapter of the newest round in the folder; before the first, the bundle's own.

        Raises:
            BundleError: The folder contains rounds of another bundle.
        """
        path = self.rounds.adapter()
        if path is None:
            return self.bundle.adapter()
        update = read_update(path)
        if update.base_sha256 != self.bundle.base_sha256:
            raise ForeignRound(
                f"The rounds in {self.rounds.path} belong to another bundle.",
                context=f"base of the rounds {update.base_sha256}\nbase of the bundle {self.bundle.base_sha256}",
                hint="choose another folder, or the bundle that these rounds started with.",
            )
        return load_adapter(self.bundle, update.parameters)[0]

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """Run the rounds up to ``num_rounds`` that the folder does not have yet.

        Args:
            grid: The ServerApp's grid.
            initial_arrays: The adapter that the first round starts from, instead of the bundle's own.
            num_rounds: Rounds in total, those of earlier runs included.
            timeout: Seconds to wait for the answers of a round.
            train_config: Further settings for the devices, which take precedence over ``training``.
            evaluate_config: Likewise, for evaluation.
            evaluate_fn: As in Flower; ``held_out`` needs none.

        Returns:
            Flower's result: the last adapter, and the metrics by the number of the round.

        Raises:
            AggregationError: Another server uses the folder, or it cannot be written.
            BundleError: The folder contains rounds of another bundle.
        """
        with self.rounds.locked():
            return self._run(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)

    def _run(
        self,
        grid: Grid,
        given: ArrayRecord | None,
        num_rounds: int,
        timeout: float,
        train_config: ConfigRecord | None,
        evaluate_config: ConfigRecord | None,
        evaluate_fn: Evaluate | None,
    ) -> Result:
        self._done = done = self.rounds.last
        own = given is None or self.rounds.adapter() is not None
        arrays = messages.to_record(self.adapter()) if own else given
        counted = None if evaluate_fn is None else _shifted(evaluate_fn, done)
        left = max(0, num_rounds - done)
        result = super().start(grid, arrays, left, timeout, train_config, evaluate_config, counted)
        result.arrays = result.arrays or arrays
        for name in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"):
            setattr(result, name, {done + number: metrics for number, metrics in getattr(result, name).items()})
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nodes to train from ``arrays``."""
        number = self._done + server_round
        self._round_start = self._start(arrays)
        terms = self._terms(number, self._round_start, config)
        calls: Iterable[Message] = super().configure_train(number, arrays, terms, grid)
        return calls

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nodes to evaluate ``arrays`` on data of their own."""
        number = self._done + server_round
        terms = self._terms(number, self._start(arrays), config)
        calls: Iterable[Message] = super().configure_evaluate(number, arrays, terms, grid)
        return calls

    def _start(self, arrays: ArrayRecord) -> Start:
        specs = self.bundle.manifest.parameters
        return Start.of(self.bundle, messages.read_arrays(arrays, specs, "The adapter"))

    def _terms(self, number: int, start: Start, config: ConfigRecord) -> ConfigRecord:
        training = replace(self._training, seed=self._training.seed + number)
        terms = messages.round_config(self.bundle, training)
        return ConfigRecord({**terms, **config, messages.ADAPTER: start.adapter_sha256})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine a round's answers into one adapter and write it, or write why the round keeps its adapter."""
        start, number = self._round_start, self._done + server_round
        assert start is not None, "Flower configures a round before it aggregates it"
        folder = self.rounds.open(number, start.adapter)
        files, refused = receive(replies, start, folder / rounds.UPDATES, self._max_norm)
        combined = self._combined(files, start, refused)
        if isinstance(combined, EdgepeftError):
            log.warning("round %d keeps its adapter (%s): %s", number, combined.code, combined.message)
            rounds.write_kept(folder, combined, refused, {"round": number})
            return None, MetricRecord({"updates": 0, "refused": len(refused), "kept": 1})
        verdict = self._judged(combined, start)
        return self._close(folder, number, combined, verdict), _metrics(combined, verdict)

    def _close(self, folder: Path, number: int, combined: Aggregate, verdict: Acceptance | None) -> ArrayRecord | None:
        """Write the result of a round; only the report, if its loss on held-out data is higher."""
        facts = {"round": number} if verdict is None else {"round": number, "held_out": _plain(verdict)}
        if verdict is None or verdict.accepted:
            combined.save(folder / rounds.ADAPTER, **facts)
            return messages.to_record(combined.parameters)
        log.warning("round %d keeps its adapter (%s)", number, _WORSE)
        write_report(folder / rounds.REPORT, combined.report.to_json({**facts, "kept": _WORSE}))
        return None

    def _combined(self, files: list[Path], start: Start, refused: list[Refusal]) -> Aggregate | EdgepeftError:
        """Return the aggregate, or the error that prevents it. Its refusals are added to ``refused``."""
        try:
            combined = aggregate(self.bundle, files, adapter=start.adapter, **vars(self._settings))
        except (AggregationError, UpdateError, FileError, TensorError) as error:
            return error
        refused += combined.report.refused
        good = len(combined.report.updates)
        if good < self._min_updates:
            message = f"{good} good updates are too few: {self._min_updates} are needed."
            return TooFewUpdates(message, context=None, hint="ask more nodes.")
        return replace(combined, report=replace(combined.report, refused=tuple(refused)))

    def _judged(self, combined: Aggregate, start: Start) -> Acceptance | None:
        """Return the verdict on held-out data, if there is any; the known evaluation of the start is reused."""
        if self._held_out is None:
            return None
        before = self._evaluations.get(start.adapter_sha256, start.adapter)
        verdict = check_acceptance(self.bundle, combined.parameters, self._held_out, before, tolerance=self._tolerance)
        _, digest = load_adapter(self.bundle, combined.parameters)
        self._evaluations = {start.adapter_sha256: verdict.before, digest: verdict.after}
        return verdict

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002  # Flower's signature
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Return the mean over the nodes' own data, weighted by examples up to ``examples_cap``."""
        evaluations: list[Evaluation] = []
        refused = 0
        for reply in replies:
            try:
                evaluations.append(messages.read_evaluation_reply(reply))
            except EdgepeftError as error:
                refuse(reply, error)
                refused += 1
        if not evaluations:
            return None
        weights = [min(evaluation.examples, self._settings.examples_cap) for evaluation in evaluations]
        means = {"loss": _mean([evaluation.loss for evaluation in evaluations], weights)}
        accuracies = [evaluation.accuracy for evaluation in evaluations if evaluation.accuracy is not None]
        if len(accuracies) == len(evaluations):
            means["accuracy"] = _mean(accuracies, weights)
        return MetricRecord({**means, "nodes": len(evaluations), "refused": refused})

    def summary(self) -> None:
        """Log how nodes are chosen, and how their updates are combined."""
        super().summary()
        log.info("\t└──> Rounds in %s, %d of them done; %s", self.rounds.path, self._done, self._settings)


_WORSE = "worse-than-before"


def _metrics(combined: Aggregate, verdict: Acceptance | None) -> MetricRecord:
    report = combined.report
    kept = verdict is not None and not verdict.accepted
    metrics: dict[str, int | float] = {
        "updates": len(report.updates),
        "refused": len(report.refused),
        "kept": int(kept),
        "change": report.change or 0.0,
    }
    if report.privacy is None:
        metrics["clipped"] = sum(update.clipped < 1 for update in report.updates)
        if report.merge_error is not None:
            metrics["merge-error"] = report.merge_error.relative
    if verdict is not None:
        current = verdict.before if kept else verdict.after
        metrics["held-out-loss"] = current.loss
        if current.accuracy is not None:
            metrics["held-out-accuracy"] = current.accuracy
    return MetricRecord(metrics)


def _plain(verdict: Acceptance) -> dict[str, object]:
    """Return a verdict as JSON values; a loss that is not finite is ``null``."""
    return {**asdict(verdict), "before": _plain_evaluation(verdict.before), "after": _plain_evaluation(verdict.after)}


def _plain_evaluation(evaluation: Evaluation) -> dict[str, object]:
    return {**asdict(evaluation), "loss": evaluation.loss if math.isfinite(evaluation.loss) else None}


def _mean(values: list[float], weights: list[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _shifted(evaluate: Evaluate, done: int) -> Evaluate:
    return lambda number, arrays: evaluate(done + number, arrays)
