"""How updates are combined: the rule, the weights, what protects against bad devices, and privacy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgepeft.aggregation.errors import NothingTrimmed
from edgepeft.errors import Contradiction
from edgepeft_runtime.errors import BadSetting

RULES = ("fedavg", "ffa", "svd", "stack")
WEIGHTS = ("equal", "examples")
ROBUST = ("median", "trimmed-mean")
EXAMPLES_CAP = 1000


@dataclass(frozen=True)
class Robust:
    """A statistic per coordinate that a few bad devices cannot move far (Yin et al., ICML 2018).

    It needs all values of a coordinate at once, so updates are read several times, a block of coordinates at a time.

    With fewer than five devices no such statistic is to be trusted: one bad device of three is a third of the fleet,
    and two that agree with one another look like the honest ones. Clip, and look at the norms in the report instead.

    Attributes:
        kind: ``median``, or ``trimmed-mean``: the mean without the lowest and the highest fraction.
        fraction: fraction of devices cut off at either end; at least that of the bad ones.
    """

    kind: str
    fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ROBUST:
            raise BadSetting("robust", self.kind, " or ".join(ROBUST))
        if self.kind == "trimmed-mean" and not 0 < self.fraction < 0.5:
            raise BadSetting("fraction of the trimmed mean", self.fraction, "a number between 0 and 0.5")

    @classmethod
    def parse(cls, text: str) -> Robust:
        """Read ``median`` or ``trimmed-mean=0.2``."""
        kind, _, fraction = text.partition("=")
        try:
            return cls(kind, float(fraction) if fraction else 0.0)
        except ValueError:
            raise BadSetting("robust", text, "median, or trimmed-mean=0.2") from None

    def cut(self, devices: int) -> int:
        """How many values are cut off at either end.

        Raises:
            AggregationError: none would be, so that nothing would be protected.
        """
        if self.kind == "median":
            return (devices - 1) // 2
        count = math.floor(self.fraction * devices + 1e-9)  # 0.29 * 100 is 28.999...
        if count == 0:
            raise NothingTrimmed(
                f"A trimmed mean of {self.fraction:g} cuts off nobody of {devices}.",
                context=f"it takes {math.ceil(1 / self.fraction)} devices to cut off one at either end",
                hint="wait for more updates, choose a larger fraction or the median, or clip norms instead.",
            )
        return count


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of devices (DP-FedAvg; McMahan et al., ICLR 2018): whole updates clipped, noise on the mean.

    Attributes:
        noise: standard deviation of the noise on the sum of the updates, as a multiple of the clipping norm.
        delta: of (epsilon, delta).
        rounds: how many rounds are accounted for together, this one among them, all with these settings.
        sampling: probability with which each update counts (Poisson sampling), drawn when updates are aggregated. Less
            of it spends less, as long as nobody learns whose update counted.
        seed: ``None`` draws from the system. A seed makes a run repeatable, for tests; who knows it can take the noise
            away again.
    """

    noise: float
    delta: float = 1e-5
    rounds: int = 1
    sampling: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (self.noise > 0 and math.isfinite(self.noise)):
            raise BadSetting("noise", self.noise, "a number above 0")
        if not 0 < self.delta < 1:
            raise BadSetting("delta", self.delta, "a number between 0 and 1")
        if self.rounds < 1:
            raise BadSetting("rounds", self.rounds, "1 or more")
        if not 0 < self.sampling <= 1:
            raise BadSetting("sampling", self.sampling, "a probability above 0")


@dataclass(frozen=True)
class Settings:
    """All of it; contradictions are refused. The fields are arguments of :func:`edgepeft.aggregate`."""

    rule: str = "fedavg"
    weights: str = "equal"
    examples_cap: int = EXAMPLES_CAP
    robust: Robust | None = None
    clip: float | None = None
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise BadSetting("rule", self.rule, " or ".join(RULES))
        if self.weights not in WEIGHTS:
            raise BadSetting("weights", self.weights, " or ".join(WEIGHTS))
        if self.examples_cap < 1:
            raise BadSetting("examples_cap", self.examples_cap, "1 or more")
        if self.clip is not None and not (self.clip > 0 and math.isfinite(self.clip)):
            raise BadSetting("clip", self.clip, "a number above 0")
        self._check_robust()
        self._check_privacy()

    def _check_robust(self) -> None:
        if self.robust is None:
            return
        if self.rule in ("svd", "stack"):
            raise _contradiction(
                f"robust {self.robust.kind}",
                f"rule {self.rule}",
                "it is taken per coordinate of A and B: choose fedavg.",
            )
        if self.weights != "equal":
            raise _contradiction(f"robust {self.robust.kind}", f"weights {self.weights}", "all devices count alike.")

    def _check_privacy(self) -> None:
        if self.privacy is None:
            return
        if self.clip is None:
            raise _contradiction("privacy", "no clip", "the noise is measured in clipping norms: give one.")
        if self.rule in ("svd", "stack"):
            raise _contradiction("privacy", f"rule {self.rule}", "noise belongs on a mean: choose fedavg or ffa.")
        if self.robust is not None:
            raise _contradiction("privacy", f"robust {self.robust.kind}", "noise belongs on a mean.")
        if self.weights != "equal":
            raise _contradiction("privacy", f"weights {self.weights}", "all devices count alike.")


def _contradiction(one: str, other: str, hint: str) -> Contradiction:
    return Contradiction(f"{one} and {other} do not go together.", context=None, hint=hint)
