"""Aggregate the updates of a round into one adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edgepeft.aggregation import robust as coordinatewise
from edgepeft.aggregation.combiners import Combiner, Result, combiners_of
from edgepeft.aggregation.errors import MeanOverflows, MixedRanks, NoUpdates, OtherModel
from edgepeft.aggregation.incoming import AdapterValues, Contribution, Incoming, Start
from edgepeft.aggregation.privacy import Mechanism, check_indices
from edgepeft.aggregation.report import AggregateReport, CountedUpdate, ProductError, Spent, write_report
from edgepeft.aggregation.settings import EXAMPLES_CAP, AggregationSettings, Privacy, Robust
from edgepeft.aggregation.stacked import write_stack
from edgepeft.errors import Contradiction
from edgepeft_runtime.bundle.adapter_source import AdapterSource
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.tensorfile import Array, sha256_of
from edgepeft_runtime.train.update import Update, write_update
from edgepeft_runtime.version import VERSION

BundleLike: TypeAlias = Bundle | str | Path
Updates: TypeAlias = Iterable[str | Path] | Mapping[str | Path, float] | Mapping[str, float] | Mapping[Path, float]


@dataclass(frozen=True)
class Aggregate:
    """One adapter made of many updates.

    Attributes:
        bundle: The bundle that it belongs to.
        parameters: Values as in an update; in a stack, pairs have the sum of all ranks.
        report: The report of the aggregation.
    """

    bundle: Bundle
    parameters: dict[str, Array]
    report: AggregateReport

    @property
    def is_stack(self) -> bool:
        """Whether it is a stack, which fits no bundle and can only be merged."""
        return self.report.rule == "stack"

    def save(self, path: str | Path, **more: object) -> Path:
        """Write the update, and the report as JSON beside it (``round.safetensors``, ``round.json``).

        The file is an update of the bundle: ``merge`` accepts it, and ``Trainer.open(adapter=path)`` starts the next
        round from it. A stack is for ``merge`` alone.

        Args:
            path: Path of the update.
            more: Further facts for the report; plain JSON values.

        Returns:
            ``path``.

        Raises:
            UpdateError, AggregationError: A file cannot be written.
        """
        path = Path(path)
        if self.is_stack:
            write_stack(path, self.parameters, self.bundle)
        else:
            write_update(path, self._update())
        write_report(
            path.with_suffix(".json"), self.report.to_json({"file": path.name, "sha256": sha256_of(path), **more})
        )
        return path

    def _update(self) -> Update:
        # Exact counts of examples and steps would reveal what the noise on the values protects.
        updates = () if self.report.privacy is not None else self.report.updates
        return Update(
            parameters=self.parameters,
            base_sha256=self.bundle.base_sha256,
            # The bundle's adapter in every round: a host that merges has the bundle, not the adapters in between.
            adapter_sha256=self.bundle.adapter_sha256,
            provenance=self.bundle.manifest.provenance,
            num_examples=sum(update.num_examples for update in updates),
            steps=max((update.steps for update in updates), default=0),
            runtime=f"edgepeft {VERSION} aggregate, numpy {np.__version__}",
        )


def aggregate(
    bundle: BundleLike,
    updates: Updates,
    *,
    adapter: AdapterSource | None = None,
    earlier: Iterable[AdapterSource] = (),
    others: Iterable[tuple[BundleLike, AdapterSource | None]] = (),
    rule: str = "fedavg",
    weights: str = "equal",
    examples_cap: int = EXAMPLES_CAP,
    robust: Robust | str | None = None,
    clip: float | None = None,
    privacy: Privacy | None = None,
) -> Aggregate:
    """Make one adapter of the updates of a round.

    The result is the start plus the weighted mean of the devices' changes, in float64, summed in the order of the
    files' hashes. So the order of ``updates`` does not matter, duplicates count once, and a second run on the same
    machine is bit-for-bit the same. A single update is reproduced bit for bit under ``fedavg``, ``ffa`` and ``stack``;
    under ``svd`` its products are reproduced up to float32 rounding.

    Updates are read one at a time, so memory does not grow with their number, except for ``stack``, whose result does.
    The robust statistics read all updates again for every block of 128 MB.

    Args:
        bundle: The bundle that the devices trained, or its directory.
        updates: Paths of updates, or a factor for the weight of each by its path. They are read twice and must not
            change meanwhile: give those that ``pull`` has copied and verified. Updates that are damaged, foreign, stale
            or not finite are refused by name, and the others count.
        adapter: The adapter that the devices started from, such as an earlier aggregate; by default the bundle's own.
        earlier: Adapters of earlier rounds, from which late updates may have started. Their changes are added to this
            round's adapter. Give them less weight.
        others: Further bundles of the same base whose pairs have other ranks, each with the adapter that its devices
            started from, for the rules ``svd`` and ``stack``. Scales (alpha / rank) may differ too.
        rule: Rule for LoRA pairs; all other tensors are averaged.
            ``fedavg``: A and B are averaged separately, and the error of that is reported.
            ``ffa``: Devices do not change A (the method ``ffa``), so the mean of B is exact; another A is refused.
            ``svd``: The pair of the bundle's rank that is nearest to the mean of the products.
            ``stack``: Exactly the mean of the products, with the sum of all ranks, for ``merge`` alone.
        weights: ``equal``, or ``examples``: the number of examples that a device claims, up to ``examples_cap``.
        examples_cap: Largest number of examples that counts.
        robust: ``median``, ``trimmed-mean=0.2``, or a ``Robust``, in place of the mean of every coordinate. Do not
            trust it with fewer than five devices.
        clip: Largest L2 norm of a change over all tensors; larger changes are scaled down to it.
        privacy: Noise on the mean of clipped changes, of updates that are sampled in secret. The adapter and its report
            then contain no counts, losses, norms or hashes of updates. Without it, updates can leak information about
            the devices' data.

    Raises:
        AggregationError: There is no valid update, settings contradict each other, or the rule does not fit.
        BundleError: A bundle or the adapter is damaged.
    """
    robust = Robust.parse(robust) if isinstance(robust, str) else robust
    settings = AggregationSettings(rule, weights, examples_cap, robust, clip, privacy)
    start = Start.of(bundle, adapter)
    starts = [start, *(_other(Start.of(*other), start, settings) for other in others)]
    if privacy is not None:
        check_indices(start)
    incoming = Incoming(updates, starts, settings, [Start.of(start.bundle, before) for before in earlier])
    mechanism = None if privacy is None else Mechanism(privacy)
    result, counted = _combined(incoming, start, settings, mechanism)
    spent = None
    if mechanism is not None and clip is not None:
        spent = mechanism.add_noise(result, clip, len(counted), start.non_trainable(rule))
    parameters = _parameters(result, start.bundle)
    return Aggregate(start.bundle, parameters, _report(start, settings, incoming, counted, result, parameters, spent))


def _other(other: Start, start: Start, settings: AggregationSettings) -> Start:
    """Check that a bundle differs from the target only in the ranks and scales of its pairs."""
    if settings.rule not in ("svd", "stack"):
        raise MixedRanks(
            f"The rule {settings.rule} cannot mix bundles.",
            context="A and B of different ranks have no mean; their products have.",
            hint="choose svd or stack.",
        )
    bases = [side.bundle.base_sha256 for side in (start, other)]
    halves = {name for pair in start.pairs for name in (pair.a, pair.b)}
    shapes = [{s.name: s.sizes for s in side.bundle.manifest.parameters} for side in (start, other)]
    same = shapes[0].keys() == shapes[1].keys() and all(
        shapes[0][name] == shapes[1][name] for name in shapes[0].keys() - halves
    )
    if bases[0] != bases[1] or not same or start.bundle.manifest.sparse:
        raise OtherModel(
            f"The bundles {other.bundle.path} and {start.bundle.path} are made from different models.",
            context=f"bases {bases[1]} and {bases[0]}" if bases[0] != bases[1] else "other parameters",
            hint="prepare both from the same model, with the same method and targets, and other ranks.",
        )
    return other


def _combined(
    incoming: Incoming, start: Start, settings: AggregationSettings, mechanism: Mechanism | None
) -> tuple[Result, list[CountedUpdate]]:
    if settings.robust is not None:
        return _robust(incoming, start, settings.robust)
    combiners, updates, counted = combiners_of(start, settings.rule), list[CountedUpdate](), 0.0
    for item in incoming:
        updates.append(item.update)
        if mechanism is None or mechanism.counts():
            _add(combiners, item)
            counted += item.update.weight
    _check_some(updates, incoming)
    total = sum(update.weight for update in updates)
    if settings.privacy is not None:
        _check_alike(updates, "Noise that hides the change of a single device")
        if settings.privacy.sampling < 1.0:
            total *= settings.privacy.sampling
            _add(combiners, Contribution.unchanged(start, total - counted))
    result = Result()
    for combiner in combiners:
        combiner.finish(total, result)
    return result, updates


def _add(combiners: Iterable[Combiner], item: Contribution) -> None:
    for combiner in combiners:
        combiner.add(item)


def _robust(incoming: Incoming, start: Start, robust: Robust) -> tuple[Result, list[CountedUpdate]]:
    updates = [item.update for item in incoming]
    _check_some(updates, incoming)
    _check_alike(updates, "A robust statistic")
    return coordinatewise.combine(incoming, start, robust, len(updates)), updates


def _check_alike(updates: list[CountedUpdate], purpose: str) -> None:
    if any(update.weight != updates[0].weight for update in updates):
        raise Contradiction(f"{purpose} needs equal weights.", context=None, hint="pass paths without factors.")


def _check_some(updates: list[CountedUpdate], incoming: Incoming) -> None:
    if updates:
        return
    refused = map(str, incoming.refused[:5])
    raise NoUpdates(
        "There is no valid update to aggregate.",
        context="\n".join(refused) or "there are no files of updates.",
        hint="pull updates of this bundle and this round first; --adapter names a later round's start.",
    )


def _parameters(result: Result, bundle: Bundle) -> dict[str, Array]:
    """Return the result in the manifest's order and dtypes."""
    arrays: dict[str, Array] = {**result.tensors, **result.indices}
    parameters = {
        spec.name: np.ascontiguousarray(arrays[spec.name].astype(spec.dtype)).reshape(arrays[spec.name].shape)
        for spec in bundle.manifest.parameters
    }
    if not all(bool(np.isfinite(array).all()) for array in parameters.values()):
        raise MeanOverflows(
            "The mean of the updates is too large for the adapter's dtype.",
            context=None,
            hint="clip the updates, or inspect their norms.",
        )
    return parameters


def _report(
    start: Start,
    settings: AggregationSettings,
    incoming: Incoming,
    updates: list[CountedUpdate],
    result: Result,
    parameters: Mapping[str, Array],
    spent: Spent | None,
) -> AggregateReport:
    stacked = settings.rule == "stack"
    change = None if stacked else AdapterValues.of(parameters, start.bundle.manifest).distance(start.values)
    return AggregateReport(
        rule=settings.rule,
        weights=settings.weights,
        robust=None if settings.robust is None else settings.robust.kind,
        cut=None if settings.robust is None else settings.robust.cut(len(updates)),
        clip=settings.clip,
        base_sha256=start.bundle.base_sha256,
        adapter_sha256=start.adapter_sha256,
        updates=tuple(updates),
        duplicates=incoming.duplicates,
        refused=incoming.refused,
        change=change,
        merge_error=_merge_error(result, start),
        sparse=result.sparse,
        privacy=spent,
    )


def _merge_error(result: Result, start: Start) -> ProductError | None:
    if not result.errors:
        return None
    scales = {pair.layer: pair.scale for pair in start.pairs}
    error, total = (
        float(np.sqrt(sum((scales[name] * norms[side]) ** 2 for name, norms in result.errors.items())))
        for side in (0, 1)
    )
    each = {name: _fraction(*norms) for name, norms in result.errors.items()}
    return ProductError(_fraction(error, total), each)


def _fraction(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
