"""A Flower ``Strategy`` around edgepeft's aggregation: what a server does with the answers of a round."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from edgepeft.aggregation import Aggregate, Settings, Verdict, aggregate, check_acceptance
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
from edgepeft_runtime.data.datasets import Data
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.errors import BadSetting, EdgepeftError, FileError, ForeignRound, TensorError, UpdateError
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.update import read_update

log = logging.getLogger("flwr")
Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


class AdapterStrategy(FedAvg):  # type: ignore[misc]  # flwr is not type-checked here
    """Sends an adapter round, and makes the next one of what comes back, by :func:`edgepeft.aggregate`.

    Flower's FedAvg chooses the nodes. Each answer is checked as a delivered file is, and written as one; the round's
    result is to the bit that of ``edgepeft aggregate`` on these files. Answers that are of no use (an error, another
    base or round, wrong names, dtypes or shapes, values that are not finite, a norm that is too large) are refused by
    node, with a code and a reason, and the others count. Nothing that a node sends ends the run: where a round comes to
    nothing, its adapter stays.

    Rounds are kept in a folder (:class:`~edgepeft.flower.rounds.Rounds`), and a server that was stopped goes on behind
    the last one: unlike those of Flower, they outlive it. Flower's own wrappers for differential privacy would add
    their noise after a round was written: use ``Settings(privacy=...)``.

    Args:
        bundle: what the devices have, or its directory.
        out: the folder of the rounds.
        settings: how updates are combined; all of :func:`edgepeft.aggregate` but the rule ``stack``, which fits no
            bundle. The ``sampling`` of ``Privacy`` is drawn among the answers: which nodes were asked is no secret,
            whose answer counts is.
        training: how devices train.
        min_updates: with fewer good updates, a round keeps its adapter.
        max_norm: largest L2 norm of a device's change, over all tensors; larger ones are refused, where
            ``Settings(clip=...)`` shortens them.
        held_out: data of the server's, to evaluate each round on; one that raises its loss is not taken.
        tolerance: by how much that loss may grow; ``math.inf`` takes every round.
        sampling: ``fraction_train``, ``min_train_nodes``, ``min_available_nodes`` and the like, as Flower's ``FedAvg``
            has them. Devices are asked to evaluate on data of their own only with a ``fraction_evaluate``.

    Raises:
        BundleError: the bundle is damaged.
        AggregationError: a setting is out of range.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        out: str | Path,
        *,
        settings: Settings | None = None,
        training: Training | None = None,
        min_updates: int = 1,
        max_norm: float | None = None,
        held_out: Data | None = None,
        tolerance: float = 0.0,
        **sampling: Any,
    ) -> None:
        super().__init__(**{"fraction_evaluate": 0.0, **sampling})
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.rounds = Rounds(out)
        self._settings = Settings() if settings is None else settings
        self._training = Training() if training is None else training
        self._min_updates, self._max_norm = min_updates, max_norm
        self._held_out, self._tolerance = held_out, tolerance
        self._check()
        self._done = self.rounds.last
        self._begun: Start | None = None
        self._evaluations: dict[str, Evaluation] = {}

    def _check(self) -> None:
        if self._settings.rule == "stack":
            raise BadSetting("rule", "stack", "fedavg, ffa or svd: a stack fits no bundle, so it starts no round")
        if self._min_updates < 1:
            raise BadSetting("min_updates", self._min_updates, "1 or more")
        if self._max_norm is not None and not self._max_norm > 0:
            raise BadSetting("max_norm", self._max_norm, "a number above 0")

    def adapter(self) -> dict[str, Array]:
        """What the newest round in the folder came to; the bundle's own adapter before the first.

        Raises:
            BundleError: the folder holds rounds of another bundle.
        """
        path = self.rounds.adapter()
        if path is None:
            return self.bundle.adapter()
        update = read_update(path)
        if update.base_sha256 != self.bundle.base_sha256:
            raise ForeignRound(
                f"The rounds in {self.rounds.path} belong to another bundle.",
                context=f"base of the rounds {update.base_sha256}\nbase of the bundle {self.bundle.base_sha256}",
                hint="choose another folder, or the bundle that these rounds were begun with.",
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
            grid: Flower's, of the ServerApp.
            initial_arrays: what the first round starts from, instead of the bundle's own adapter.
            num_rounds: rounds in all, those of earlier runs included.
            timeout: seconds to wait for the answers of a round.
            train_config: further settings for the devices; they come before those of ``training``.
            evaluate_config: likewise, for evaluation.
            evaluate_fn: as Flower has it; ``held_out`` needs none.

        Returns:
            Flower's result: the last adapter, and the metrics by the number of the round.

        Raises:
            AggregationError: another server is at the folder, or nothing can be written there.
            BundleError: the folder holds rounds of another bundle.
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
            setattr(result, name, {done + number: found for number, found in getattr(result, name).items()})
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nodes to train from ``arrays``."""
        number = self._done + server_round
        self._begun = self._start(arrays)
        terms = self._terms(number, self._begun, config)
        asked: Iterable[Message] = super().configure_train(number, arrays, terms, grid)
        return asked

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nodes what ``arrays`` are worth on data of their own."""
        number = self._done + server_round
        terms = self._terms(number, self._start(arrays), config)
        asked: Iterable[Message] = super().configure_evaluate(number, arrays, terms, grid)
        return asked

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
        """Make one adapter of a round's answers, and write it, or say why the round keeps the one it has."""
        start, number = self._begun, self._done + server_round
        assert start is not None, "Flower configures a round before it aggregates it"
        folder = self.rounds.open(number, start.adapter)
        files, refused = receive(replies, start, folder / rounds.UPDATES, self._max_norm)
        found = self._combined(files, start, refused)
        if isinstance(found, EdgepeftError):
            log.warning("round %d keeps its adapter (%s): %s", number, found.code, found.message)
            rounds.write_kept(folder, found, refused, {"round": number})
            return None, MetricRecord({"updates": 0, "refused": len(refused), "kept": 1})
        verdict = self._judged(found, start)
        return self._close(folder, number, found, verdict), _metrics(found, verdict)

    def _close(self, folder: Path, number: int, found: Aggregate, verdict: Verdict | None) -> ArrayRecord | None:
        """Write what a round came to; only the report, where it makes held-out data worse."""
        facts = {"round": number} if verdict is None else {"round": number, "held_out": _plain(verdict)}
        if verdict is None or verdict.accepted:
            found.save(folder / rounds.ADAPTER, **facts)
            return messages.to_record(found.parameters)
        log.warning("round %d keeps its adapter (%s)", number, _WORSE)
        write_report(folder / rounds.REPORT, found.report.to_json({**facts, "kept": _WORSE}))
        return None

    def _combined(self, files: list[Path], start: Start, refused: list[Refusal]) -> Aggregate | EdgepeftError:
        """The aggregate, or why there is none; what only it could refuse comes to the others."""
        try:
            found = aggregate(self.bundle, files, adapter=start.adapter, **vars(self._settings))
        except (AggregationError, UpdateError, FileError, TensorError) as error:
            return error
        refused += found.report.refused
        good = len(found.report.updates)
        if good < self._min_updates:
            message = f"{good} good updates are too few: it takes {self._min_updates}."
            return TooFewUpdates(message, context=None, hint="ask more nodes.")
        return replace(found, report=replace(found.report, refused=tuple(refused)))

    def _judged(self, found: Aggregate, start: Start) -> Verdict | None:
        """What held-out data says, if there is any; what is known of the start is not computed again."""
        if self._held_out is None:
            return None
        before = self._evaluations.get(start.adapter_sha256, start.adapter)
        verdict = check_acceptance(self.bundle, found.parameters, self._held_out, before, tolerance=self._tolerance)
        _, digest = load_adapter(self.bundle, found.parameters)
        self._evaluations = {start.adapter_sha256: verdict.before, digest: verdict.after}
        return verdict

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002  # Flower's signature
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """The mean over the nodes' own data, weighted by examples up to the settings' cap; ``None`` without answers."""
        found: list[Evaluation] = []
        refused = 0
        for reply in replies:
            try:
                found.append(messages.read_evaluation_reply(reply))
            except EdgepeftError as error:
                refuse(reply, error)
                refused += 1
        if not found:
            return None
        weights = [min(evaluation.examples, self._settings.examples_cap) for evaluation in found]
        means = {"loss": _mean([evaluation.loss for evaluation in found], weights)}
        accuracies = [evaluation.accuracy for evaluation in found if evaluation.accuracy is not None]
        if len(accuracies) == len(found):
            means["accuracy"] = _mean(accuracies, weights)
        return MetricRecord({**means, "nodes": len(found), "refused": refused})

    def summary(self) -> None:
        """Log how nodes are chosen, and how their updates are combined."""
        super().summary()
        log.info("\t└──> Rounds in %s, %d of them done; %s", self.rounds.path, self._done, self._settings)


_WORSE = "worse-than-before"


def _metrics(found: Aggregate, verdict: Verdict | None) -> MetricRecord:
    report = found.report
    kept = verdict is not None and not verdict.accepted
    metrics: dict[str, int | float] = {
        "updates": len(report.updates),
        "refused": len(report.refused),
        "kept": int(kept),
        "change": report.change or 0.0,
    }
    if report.privacy is None:
        metrics["clipped"] = sum(taken.clipped < 1 for taken in report.updates)
        if report.merge_error is not None:
            metrics["merge-error"] = report.merge_error.relative
    if verdict is not None:
        stands = verdict.before if kept else verdict.after
        metrics["held-out-loss"] = stands.loss
        if stands.accuracy is not None:
            metrics["held-out-accuracy"] = stands.accuracy
    return MetricRecord(metrics)


def _plain(verdict: Verdict) -> dict[str, Any]:
    """As JSON has it: a loss that is not finite is ``null``."""
    plain = asdict(verdict)
    for side in ("before", "after"):
        if not math.isfinite(plain[side]["loss"]):
            plain[side]["loss"] = None
    return plain


def _mean(values: list[float], weights: list[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _shifted(evaluate: Evaluate, done: int) -> Evaluate:
    return lambda number, arrays: evaluate(done + number, arrays)
