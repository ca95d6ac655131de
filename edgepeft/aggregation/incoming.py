"""Read the updates of a round once each, in the order of their hashes, and check, weigh and clip them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepeft.aggregation.errors import AggregationError, ChangedFile, NoExamples, NonTrainableChanged
from edgepeft.aggregation.pairs import Float64s, PairTensors, pairs_of
from edgepeft.aggregation.report import CountedUpdate
from edgepeft.aggregation.settings import AggregationSettings
from edgepeft.aggregation.sparse import SparseChange, add_sparse, read_sparse
from edgepeft.intake.checks import parsed
from edgepeft.intake.refusal import REFUSALS, Refusal
from edgepeft_runtime.bundle.adapter_source import AdapterSource, load_adapter
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import BadSetting, CannotReadFile
from edgepeft_runtime.files.regular import read_regular
from edgepeft_runtime.files.tensorfile import Array, sha256_of
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.train.update import Update, check_origin, notice_unchanged


@dataclass(frozen=True)
class AdapterValues:
    """An adapter in float64, as averaged: whole tensors by name, sparse changes by the tensor that they change."""

    whole: dict[str, Float64s]
    sparse: dict[str, SparseChange]

    @classmethod
    def of(cls, tensors: Mapping[str, Array], manifest: Manifest) -> AdapterValues:
        """Return the values of a checked adapter or update."""
        parts = {name for spec in manifest.sparse for name in (spec.values, spec.indices)}
        whole = {name: array.astype(np.float64) for name, array in tensors.items() if name not in parts}
        sparse = {spec.tensor: read_sparse(tensors[spec.indices], tensors[spec.values]) for spec in manifest.sparse}
        return cls(whole, sparse)

    def distance(self, start: AdapterValues) -> float:
        """Return the L2 norm of the change since ``start``, over all tensors together."""
        squares = [np.square(array - start.whole[name]).sum() for name, array in self.whole.items()]
        squares += [
            np.square(add_sparse(change, start.sparse[name], -1.0)[1]).sum() for name, change in self.sparse.items()
        ]
        return float(np.sqrt(sum(squares)))

    def moved(self, origin: AdapterValues, to: AdapterValues, factor: float) -> AdapterValues:
        """Return ``to`` plus ``factor`` times the change since ``origin``."""
        whole = {name: to.whole[name] + factor * (array - origin.whole[name]) for name, array in self.whole.items()}
        sparse = {
            name: add_sparse(to.sparse[name], add_sparse(change, origin.sparse[name], -1.0), factor)
            for name, change in self.sparse.items()
        }
        return AdapterValues(whole, sparse)


@dataclass(frozen=True)
class Start:
    """The common start of devices: a bundle, an adapter of it, and that adapter's hash."""

    bundle: Bundle
    adapter: dict[str, Array]
    adapter_sha256: str
    values: AdapterValues
    pairs: tuple[PairTensors, ...]

    @classmethod
    def of(cls, bundle: Bundle | str | Path, adapter: AdapterSource | None) -> Start:
        """Open a bundle and an adapter of it; raises ``BundleError`` if one is damaged, or they do not fit."""
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        tensors, digest = load_adapter(opened, adapter)
        return cls(opened, tensors, digest, AdapterValues.of(tensors, opened.manifest), pairs_of(opened.manifest))

    def fits(self, base_sha256: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether an adapter of this base, with parameters of these shapes by name, is one of the bundle's."""
        own = {spec.name: spec.shape for spec in self.bundle.manifest.parameters}
        return self.bundle.base_sha256 == base_sha256 and own == shapes

    def non_trainable(self, rule: str) -> list[str]:
        """Return the parameters that devices must not change: those that do not train, and under ``ffa`` all A."""
        non_trainable = self.bundle.manifest.adapter.non_trainable
        return list(dict.fromkeys([*non_trainable, *(pair.a for pair in self.pairs if rule == "ffa")]))


@dataclass(frozen=True)
class Contribution:
    """The contribution of a device to the sum: its values, as if it had started from the round's ``start``."""

    update: CountedUpdate
    start: Start
    values: AdapterValues

    @classmethod
    def unchanged(cls, start: Start, weight: float) -> Contribution:
        """Return the contribution of a device that changed nothing; a negative weight subtracts."""
        return cls(CountedUpdate("", weight, 0.0, 1.0, 0, 0, None, None), start, start.values)


@dataclass(frozen=True)
class _File:
    sha256: str
    path: Path
    factor: float


class Incoming:
    """The updates of a round. They can be iterated over several times, with the same result.

    Args:
        updates: Paths, or factors for the weights by path.
        starts: Possible starts of the devices, the round's own first.
        settings: How updates are weighed and clipped.
        earlier: Possible starts of late devices, of the same bundles.
    """

    def __init__(
        self,
        updates: Iterable[str | Path] | Mapping[str | Path, float] | Mapping[str, float] | Mapping[Path, float],
        starts: Iterable[Start],
        settings: AggregationSettings,
        earlier: Iterable[Start] = (),
    ) -> None:
        self._settings = settings
        self._starts = tuple(starts)
        self._earlier = {(start.bundle.base_sha256, start.adapter_sha256): start for start in earlier}
        self._refused: dict[Path, Refusal] = {}
        factors = updates if isinstance(updates, Mapping) else dict.fromkeys(updates, 1.0)
        self._files = self._sorted({Path(path): float(factor) for path, factor in factors.items()})

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """The updates refused so far, by the names of their files."""
        return tuple(sorted(self._refused.values(), key=lambda refusal: (refusal.source, refusal.code)))

    @property
    def duplicates(self) -> int:
        """The number of files with the same content as another file."""
        return self._duplicates

    def __iter__(self) -> Iterator[Contribution]:
        """Yield all valid updates in the order of their hashes, read one at a time."""
        for file in self._files:
            if file.path in self._refused:
                continue
            try:
                yield self._contribution(file)
            except (*REFUSALS, AggregationError) as error:
                self._refused[file.path] = Refusal.of(file.path.name, error)

    def _sorted(self, factors: Mapping[Path, float]) -> list[_File]:
        files: dict[str, _File] = {}
        self._duplicates = 0
        for path, factor in factors.items():
            if not (np.isfinite(factor) and factor > 0):
                raise BadSetting(f"weight of {path.name}", factor, "a number above 0")
            try:
                file = _File(sha256_of(path), path, factor)
            except OSError as failure:
                self._refused[path] = Refusal.of(path.name, _unreadable(path, failure))
                continue
            self._duplicates += file.sha256 in files
            # Content that occurs with two weights counts with the smaller one, whatever the order.
            files[file.sha256] = min(file, files.get(file.sha256, file), key=_order)
        return [files[digest] for digest in sorted(files)]

    def _contribution(self, file: _File) -> Contribution:
        update = parsed(self._content(file), file.path.name)
        start = self._start_of(update)
        origin = self._earlier.get((update.base_sha256, update.adapter_sha256), start)
        check_origin(update, start.bundle.manifest, origin.adapter_sha256)
        _check_unchanged(update, origin, start.non_trainable(self._settings.rule))
        values = AdapterValues.of(update.parameters, start.bundle.manifest)
        norm, factor = values.distance(origin.values), 1.0
        if self._settings.clip is not None and norm > self._settings.clip:
            factor = self._settings.clip / norm
        if factor < 1 or origin is not start:
            values = values.moved(origin.values, start.values, factor)
        if norm == 0.0:
            notice_unchanged(str(file.path))
        return Contribution(_counted(file, update, self._weight(file, update), norm, factor), start, values)

    def _content(self, file: _File) -> bytes:
        """Return the bytes of a file, and verify that they match its hash."""
        try:
            content = read_regular(file.path, max(start.bundle.adapter_bytes for start in self._starts))
        except OSError as failure:
            raise _unreadable(file.path, failure) from failure
        if signatures.sha256(content) != file.sha256:
            raise ChangedFile(
                f"{file.path.name} was changed while it was read.",
                context=f"expected SHA-256 {file.sha256}",
                hint="aggregate copies that nobody writes to, as pull makes them.",
            )
        return content

    def _start_of(self, update: Update) -> Start:
        """Return the start whose parameters an update has, and among several the one that it names."""
        shapes = {name: array.shape for name, array in update.parameters.items()}
        fitting = [start for start in self._starts if start.fits(update.base_sha256, shapes)]
        named = [start for start in fitting if start.adapter_sha256 == update.adapter_sha256]
        # Without a match, the comparison with the round's own start produces the reason of the refusal.
        return (*named, *fitting, *self._starts)[0]

    def _weight(self, file: _File, update: Update) -> float:
        if self._settings.weights == "equal":
            return file.factor
        if update.num_examples == 0:
            raise NoExamples(
                f"{file.path.name} was trained on no example, so it has no weight.",
                context=None,
                hint="weigh all updates alike.",
            )
        return file.factor * min(update.num_examples, self._settings.examples_cap)


def _unreadable(path: Path, failure: OSError) -> CannotReadFile:
    context = failure.strerror or str(failure).replace(str(path), path.name)
    return CannotReadFile(f"Cannot read {path.name}.", context=context, hint=None)


def _check_unchanged(update: Update, start: Start, names: Iterable[str]) -> None:
    """Refuse an update that has changed one of these parameters."""
    for name in names:
        off = float(np.abs(update.parameters[name] - start.adapter[name]).max())
        if off > 0:
            raise NonTrainableChanged(
                "A non-trainable parameter has changed.",
                context=f"{name!r} has changed by up to {off:.3g}",
                hint="the rule ffa is for bundles of the method ffa; for others choose fedavg, svd or stack.",
            )


def _order(file: _File) -> tuple[float, str]:
    return file.factor, str(file.path)


def _counted(file: _File, update: Update, weight: float, norm: float, clipped: float) -> CountedUpdate:
    return CountedUpdate(
        sha256=file.sha256,
        weight=weight,
        norm=norm,
        clipped=clipped,
        num_examples=update.num_examples,
        steps=update.steps,
        loss_before=update.loss_before,
        loss_after=update.loss_after,
    )
