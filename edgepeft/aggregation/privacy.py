"""Differential privacy: sampled devices, noise on the mean of clipped updates, and the resulting epsilon."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from edgepeft.aggregation.combiners import Result
from edgepeft.aggregation.errors import PrivateIndices
from edgepeft.aggregation.incoming import Start
from edgepeft.aggregation.report import Spent
from edgepeft.aggregation.settings import Privacy


def check_indices(start: Start) -> None:
    """Refuse elements that devices pick by their own data, because noise on values cannot hide the choice."""
    for spec in start.bundle.manifest.sparse:
        if start.values.sparse[spec.tensor][0].size == 0:
            raise PrivateIndices(
                "Indices that devices pick by their own data leak information about it, whatever the noise.",
                context=f"sparse tensor {spec.tensor!r} has no indices yet",
                hint="pick them on the workstation, with proxy data (edgepeft pick), before the first round.",
            )


class Mechanism:
    """The sampled Gaussian mechanism, for one round.

    Each update counts with the probability ``sampling``, independently of the others, and the choice stays
    secret. The accounting depends on both. The sum is divided by the expected number of updates, not by the actual one.
    """

    def __init__(self, privacy: Privacy) -> None:
        self._privacy = privacy
        self._draw = np.random.default_rng(privacy.seed)

    def counts(self) -> bool:
        """Whether the next update counts."""
        return self._privacy.sampling == 1.0 or bool(self._draw.random() < self._privacy.sampling)

    def add_noise(self, result: Result, clip: float, devices: int, unchanged: Collection[str]) -> Spent:
        """Add the noise, in place, and account for it.

        Args:
            result: The means. Indices do not change.
            clip: The norm to which updates were clipped.
            devices: Number of updates, including those that did not count.
            unchanged: Names of tensors that no device changes, which get no noise.
        """
        privacy = self._privacy
        deviation = privacy.noise * clip / (privacy.sampling * devices)
        for name in sorted(result.tensors.keys() - set(unchanged)):
            result.tensors[name] = result.tensors[name] + self._draw.normal(0.0, deviation, result.tensors[name].shape)
        return _spent(privacy, deviation)


def _spent(privacy: Privacy, deviation: float) -> Spent:
    return Spent(epsilon(privacy), privacy.delta, privacy.noise, deviation, privacy.rounds, privacy.sampling)


def epsilon(privacy: Privacy) -> float:
    """Return the epsilon for ``privacy.delta``, by Rényi accounting (``dp-accounting``).

    Neighbouring fleets differ in one device's update, which is present or replaced by no change.
    """
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    event: dp_event.DpEvent = dp_event.GaussianDpEvent(privacy.noise)
    if privacy.sampling < 1.0:
        event = dp_event.PoissonSampledDpEvent(privacy.sampling, event)
    accountant = RdpAccountant()
    accountant.compose(event, privacy.rounds)
    return float(accountant.get_epsilon(privacy.delta))
