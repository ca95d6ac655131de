"""Updates as they come in: in the order of their hashes, each once, checked, one at a time, clipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepeft.aggregation.errors import bad_setting
from edgepeft.aggregation.pairs import Float64s, PairTensors, pairs_of
from edgepeft.aggregation.report import Refused, Taken
from edgepeft.aggregation.settings import Settings
from edgepeft.aggregation.sparse import Sparse, add_sparse, read_sparse
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import UpdateError
from edgepeft_runtime.files.tensorfile import Array, sha256_of
from edgepeft_runtime.train.trainer import Adapter, adapter_values
from edgepeft_runtime.train.update import Update, check_update, notice_unchanged, read_update


@dataclass(frozen=True)
class Values:
    """An adapter in float64, by what is averaged: whole tensors by name, sparse changes by the tensor they change."""

    whole: dict[str, Float64s]
    sparse: dict[str, Sparse]

    @classmethod
    def of(cls, tensors: Mapping[str, Array], manifest: Manifest) -> Values:
        """The values of a checked adapter or update."""
        parts = {name for spec in manifest.sparse for name in (spec.values, spec.indices)}
        whole = {name: array.astype(np.float64) for name, array in tensors.items() if name not in parts}
        sparse = {spec.tensor: read_sparse(tensors[spec.indices], tensors[spec.values]) for spec in manifest.sparse}
        return cls(whole, sparse)

    def distance(self, start: Values) -> float:
        """The L2 norm of the change since ``start``, of all tensors together."""
        squares = [np.square(array - start.whole[name]).sum() for name, array in self.whole.items()]
        squares += [
            np.square(add_sparse(change, start.sparse[name], -1.0)[1]).sum() for name, change in self.sparse.items()
        ]
        return float(np.sqrt(sum(squares)))

    def moved(self, began: Values, to: Values, factor: float) -> Values:
        """``to``, and ``factor`` times the change since ``began``."""
        whole = {name: to.whole[name] + factor * (array - began.whole[name]) for name, array in self.whole.items()}
        sparse = {
            name: add_sparse(to.sparse[name], add_sparse(change, began.sparse[name], -1.0), factor)
            for name, change in self.sparse.items()
        }
        return Values(whole, sparse)


@dataclass(frozen=True)
class Start:
    """What devices started from: a bundle, an adapter of it, and that adapter's hash."""

    bundle: Bundle
    adapter: dict[str, Array]
    adapter_sha256: str
    values: Values
    pairs: tuple[PairTensors, ...]

    @classmethod
    def of(cls, bundle: Bundle | str | Path, adapter: Adapter | None) -> Start:
        """Raises BundleError where one of them is damaged, or the adapter is not of the bundle."""
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        tensors, digest = adapter_values(opened, adapter)
        return cls(opened, tensors, digest, Values.of(tensors, opened.manifest), pairs_of(opened.manifest))

    def still(self, rule: str) -> list[str]:
        """Names of the parameters that devices leave as they are: those that do not train, and under ``ffa`` all A."""
        non_trainable = self.bundle.manifest.adapter.non_trainable
        return list(dict.fromkeys([*non_trainable, *(pair.a for pair in self.pairs if rule == "ffa")]))


@dataclass(frozen=True)
class Contribution:
    """What one device gives to the sum: values, as though it had started from the round's ``start``."""

    taken: Taken
    start: Start
    values: Values

    @classmethod
    def unchanged(cls, start: Start, weight: float) -> Contribution:
        """What a device gives that has changed nothing; a weight below 0 takes as much away."""
        return cls(Taken("", weight, 0.0, 1.0, 0, 0, None, None), start, start.values)


@dataclass(frozen=True)
class _File:
    sha256: str
    path: Path
    factor: float


class Incoming:
    """The updates of a round, which can be gone through several times with the same result.

    Args:
        updates: paths, or a factor for the weight of each by its path.
        starts: what the devices may have started from, the first of them the round's own.
        earlier: what late ones may have started from, of the same bundles.
        settings: how updates are weighed and clipped.
    """

    def __init__(
        self,
        updates: Iterable[str | Path] | Mapping[str | Path, float] | Mapping[str, float] | Mapping[Path, float],
        starts: Iterable[Start],
        settings: Settings,
        earlier: Iterable[Start] = (),
    ) -> None:
        self._settings = settings
        self._starts = {start.bundle.base_sha256: start for start in starts}
        self._target = next(iter(self._starts.values()))
        self._still = {base: start.still(settings.rule) for base, start in self._starts.items()}
        self._earlier = {(start.bundle.base_sha256, start.adapter_sha256): start for start in earlier}
        self._refused: dict[Path, Refused] = {}
        factors = updates if isinstance(updates, Mapping) else dict.fromkeys(updates, 1.0)
        self._files = self._sorted({Path(path): float(factor) for path, factor in factors.items()})

    @property
    def refused(self) -> tuple[Refused, ...]:
        """What was left out so far, by the names of the files."""
        return tuple(sorted(self._refused.values(), key=lambda refused: (refused.file, refused.reference)))

    @property
    def duplicates(self) -> int:
        """Files whose content another file has too."""
        return self._duplicates

    def __iter__(self) -> Iterator[Contribution]:
        """All good updates in the order of their hashes, read one at a time."""
        for file in self._files:
            if file.path in self._refused:
                continue
            try:
                yield self._contribution(file)
            except UpdateError as error:
                self._refused[file.path] = Refused.of(file.path, error)

    def _sorted(self, factors: Mapping[Path, float]) -> list[_File]:
        found: dict[str, _File] = {}
        self._duplicates = 0
        for path, factor in factors.items():
            if not (np.isfinite(factor) and factor > 0):
                raise bad_setting(f"weight of {path.name}", factor, "a number above 0")
            try:
                digest = sha256_of(path)
            except OSError as failure:
                self._refused[path] = Refused(path.name, "cannot-read-file", str(failure.strerror))
                continue
            self._duplicates += digest in found
            # Whichever comes first: the same content with two weights counts with the smaller one.
            found[digest] = min(_File(digest, path, factor), found.get(digest, _File(digest, path, factor)), key=_order)
        return [found[digest] for digest in sorted(found)]

    def _contribution(self, file: _File) -> Contribution:
        update = read_update(file.path, most=max(start.bundle.adapter_bytes for start in self._starts.values()))
        start = self._starts.get(update.base_sha256, self._target)  # a foreign one is refused by the target's name
        began = self._earlier.get((update.base_sha256, update.adapter_sha256), start)
        check_update(update, start.bundle, adapter_sha256=began.adapter_sha256)
        if sha256_of(file.path) != file.sha256:
            raise UpdateError(
                "changed-file",
                f"{file.path} was changed while it was read.",
                context=f"expected SHA-256 {file.sha256}",
                hint="aggregate copies that nobody writes to, as pull makes them.",
            )
        _check_still(update, began, self._still[start.bundle.base_sha256])
        values = Values.of(update.parameters, start.bundle.manifest)
        norm, factor = values.distance(began.values), 1.0
        if self._settings.clip is not None and norm > self._settings.clip:
            factor = self._settings.clip / norm
        if factor < 1 or began is not start:
            values = values.moved(began.values, start.values, factor)
        if norm == 0.0:
            notice_unchanged(str(file.path))
        return Contribution(_taken(file, update, self._weight(file, update), norm, factor), start, values)

    def _weight(self, file: _File, update: Update) -> float:
        if self._settings.weights == "equal":
            return file.factor
        if update.num_examples == 0:
            raise UpdateError(
                "no-examples",
                f"{file.path} was trained on no example, so it has no weight.",
                context=None,
                hint="weigh all updates alike.",
            )
        return file.factor * min(update.num_examples, self._settings.examples_cap)


def _check_still(update: Update, start: Start, names: Iterable[str]) -> None:
    """Refuse a device that has changed one of these."""
    for name in names:
        off = float(np.abs(update.parameters[name] - start.adapter[name]).max())
        if off > 0:
            raise UpdateError(
                "held-has-changed",
                "A parameter has changed that devices have to leave as it is.",
                context=f"{name!r} has changed by up to {off:.3g}",
                hint="the rule ffa is for bundles of the method ffa: for others choose fedavg, svd or stack.",
            )


def _order(file: _File) -> tuple[float, str]:
    return file.factor, str(file.path)


def _taken(file: _File, update: Update, weight: float, norm: float, clipped: float) -> Taken:
    return Taken(
        sha256=file.sha256,
        weight=weight,
        norm=norm,
        clipped=clipped,
        num_examples=update.num_examples,
        steps=update.steps,
        loss_before=update.loss_before,
        loss_after=update.loss_after,
    )
