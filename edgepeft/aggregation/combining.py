"""Many updates of one round to one adapter."""

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
from edgepeft.aggregation.settings import EXAMPLES_CAP, Privacy, Robust, Settings
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
        bundle: what it belongs to.
        parameters: as an update has them; of a stack, pairs have the sum of all ranks.
        report: what was done.
    """

    bundle: Bundle
    parameters: dict[str, Array]
    report: AggregateReport

    @property
    def is_stack(self) -> bool:
        """Whether it is for a merged export alone: no bundle has room for it."""
        return self.report.rule == "stack"

    def save(self, path: str | Path, **more: object) -> Path:
        """Write it, with its digest, and the report as JSON beside it (``round.safetensors``, ``round.json``).

        The file is an update of the bundle: ``merge`` takes it, and ``Trainer.open(adapter=path)`` starts a next round
        from it. A stack is taken by ``merge`` alone.

        Args:
            path: of the update.
            more: further facts for the report; plain JSON values.

        Returns:
            ``path``.

        Raises:
            UpdateError, AggregationError: a file cannot be written.
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
        # Noise on the values is worth nothing beside exact counts of what they were learned from.
        taken = () if self.report.privacy is not None else self.report.updates
        return Update(
            parameters=self.parameters,
            base_sha256=self.bundle.base_sha256,
            # Whatever round it is of: whoever merges it has the bundle, not the adapters in between.
            adapter_sha256=self.bundle.adapter_sha256,
            provenance=self.bundle.manifest.provenance,
            num_examples=sum(update.num_examples for update in taken),
            steps=max((update.steps for update in taken), default=0),
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

    It is the start plus the weighted mean of what devices changed since, in float64, summed in the order of the files'
    hashes: the order of ``updates`` does not matter, nor does one that comes twice, and a second run on the same
    machine gives the same bits. One update alone comes back as it is: to the bit under ``fedavg``, ``ffa`` and
    ``stack``; under ``svd`` its products come back, to float32's rounding.

    Updates are read one at a time. Memory does not grow with their number, but for ``stack``, whose result does. The
    robust statistics read them all again for every block of 128 MB.

    Args:
        bundle: what the devices trained, or its directory.
        updates: paths of updates, or a factor for the weight of each by its path. They are read twice, and not to be
            changed meanwhile: give those that ``pull`` has copied and verified. What is damaged, foreign, stale or not
            finite is refused by name, and the others count.
        adapter: what the devices started from, where that is not the bundle's own adapter: an earlier aggregate.
        earlier: adapters of earlier rounds, from which late updates may have started: what they have changed since is
            added to this round's adapter. Give them less weight.
        others: further bundles of the same base with pairs of other ranks, each with what its devices started from, for
            the rules ``svd`` and ``stack``. Scales (alpha / rank) may differ too.
        rule: for LoRA pairs; all other tensors are averaged.
            ``fedavg``: A and B averaged, each by itself, and the error of that reported.
            ``ffa``: devices leave A as it is (the method ``ffa``), and the mean of B is exact; another A is refused.
            ``svd``: the pair of the bundle's rank that is nearest to the mean of the products.
            ``stack``: exactly the mean of the products, of the sum of all ranks, for ``merge`` alone.
        weights: ``equal``, or ``examples``: by what devices say they have trained on, up to ``examples_cap``. A device
            may say what it likes.
        examples_cap: see ``weights``.
        robust: ``median``, ``trimmed-mean=0.2``, or a :class:`Robust`: instead of the mean, for all tensors. Not to be
            trusted with fewer than five devices.
        clip: changes whose L2 norm, over all tensors, is larger are shortened to it.
        privacy: noise on the mean of clipped changes, of updates that are sampled in secret. The adapter and its report
            then carry no counts, losses, norms or hashes of updates. Without it nothing is promised: what devices send
            can tell about their data.

    Raises:
        AggregationError: no update is good, settings contradict one another, or the rule does not fit.
        BundleError: a bundle or the adapter is damaged.
    """
    robust = Robust.parse(robust) if isinstance(robust, str) else robust
    settings = Settings(rule, weights, examples_cap, robust, clip, privacy)
    start = Start.of(bundle, adapter)
    starts = [start, *(_other(Start.of(*other), start, settings) for other in others)]
    if privacy is not None:
        check_indices(start)
    incoming = Incoming(updates, starts, settings, [Start.of(start.bundle, before) for before in earlier])
    mechanism = None if privacy is None else Mechanism(privacy)
    result, taken = _combined(incoming, start, settings, mechanism)
    spent = None
    if mechanism is not None and clip is not None:
        spent = mechanism.add_noise(result, clip, len(taken), start.non_trainable(rule))
    parameters = _parameters(result, start.bundle)
    return Aggregate(start.bundle, parameters, _report(start, settings, incoming, taken, result, parameters, spent))


def _other(other: Start, start: Start, settings: Settings) -> Start:
    """A bundle that differs from the target in the ranks and scales of its pairs alone."""
    if settings.rule not in ("svd", "stack"):
        raise MixedRanks(
            f"The rule {settings.rule} cannot mix bundles.",
            context="A and B of different ranks have no mean; their products have.",
            hint="choose svd or stack.",
        )
    bases = [found.bundle.base_sha256 for found in (start, other)]
    halves = {name for pair in start.pairs for name in (pair.a, pair.b)}
    shapes = [{s.name: s.sizes for s in found.bundle.manifest.parameters} for found in (start, other)]
    same = shapes[0].keys() == shapes[1].keys() and all(
        shapes[0][name] == shapes[1][name] for name in shapes[0].keys() - halves
    )
    if bases[0] != bases[1] or not same or start.bundle.manifest.sparse:
        raise OtherModel(
            f"The bundle {other.bundle.path} is of another model than {start.bundle.path}.",
            context=f"bases {bases[1]} and {bases[0]}" if bases[0] != bases[1] else "other parameters",
            hint="prepare both from the same model, with the same method and targets, and other ranks.",
        )
    return other


def _combined(
    incoming: Incoming, start: Start, settings: Settings, mechanism: Mechanism | None
) -> tuple[Result, list[CountedUpdate]]:
    if settings.robust is not None:
        return _robust(incoming, start, settings.robust)
    combiners, taken, counted = combiners_of(start, settings.rule), list[CountedUpdate](), 0.0
    for item in incoming:
        taken.append(item.taken)
        if mechanism is None or mechanism.counts():
            _add(combiners, item)
            counted += item.taken.weight
    _check_some(taken, incoming)
    total = sum(update.weight for update in taken)
    if settings.privacy is not None:
        _check_alike(taken, "Noise against what one device can change")
        if settings.privacy.sampling < 1.0:
            total *= settings.privacy.sampling
            _add(combiners, Contribution.unchanged(start, total - counted))
    result = Result()
    for combiner in combiners:
        combiner.finish(total, result)
    return result, taken


def _add(combiners: Iterable[Combiner], item: Contribution) -> None:
    for combiner in combiners:
        combiner.add(item)


def _robust(incoming: Incoming, start: Start, robust: Robust) -> tuple[Result, list[CountedUpdate]]:
    taken = [item.taken for item in incoming]
    _check_some(taken, incoming)
    _check_alike(taken, "A robust statistic")
    return coordinatewise.combine(incoming, start, robust, len(taken)), taken


def _check_alike(taken: list[CountedUpdate], what: str) -> None:
    if any(update.weight != taken[0].weight for update in taken):
        raise Contradiction(f"{what} takes no weights.", context=None, hint="give paths alone.")


def _check_some(taken: list[CountedUpdate], incoming: Incoming) -> None:
    if taken:
        return
    refused = map(str, incoming.refused[:5])
    raise NoUpdates(
        "There is no good update to aggregate.",
        context="\n".join(refused) or "none was given.",
        hint="pull updates of this bundle and this round first; --adapter names what a later round started from.",
    )


def _parameters(result: Result, bundle: Bundle) -> dict[str, Array]:
    """The result in the manifest's order and dtypes."""
    found: dict[str, Array] = {**result.tensors, **result.indices}
    parameters = {
        spec.name: np.ascontiguousarray(found[spec.name].astype(spec.dtype)).reshape(found[spec.name].shape)
        for spec in bundle.manifest.parameters
    }
    if not all(bool(np.isfinite(array).all()) for array in parameters.values()):
        raise MeanOverflows(
            "The mean of the updates is too large for the adapter's dtype.",
            context=None,
            hint="clip the updates, or look at their norms.",
        )
    return parameters


def _report(
    start: Start,
    settings: Settings,
    incoming: Incoming,
    taken: list[CountedUpdate],
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
        cut=None if settings.robust is None else settings.robust.cut(len(taken)),
        clip=settings.clip,
        base_sha256=start.bundle.base_sha256,
        adapter_sha256=start.adapter_sha256,
        updates=tuple(taken),
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
    lost, whole = (
        float(np.sqrt(sum((scales[name] * norms[side]) ** 2 for name, norms in result.errors.items())))
        for side in (0, 1)
    )
    each = {name: _fraction(*norms) for name, norms in result.errors.items()}
    return ProductError(_fraction(lost, whole), each)


def _fraction(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
