"""Settings of an aggregation: the rule, the weights, robust statistics, and privacy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgepeft.aggregation.errors import NothingTrimmed
from edgepeft.errors import Contradiction
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.settings import Settings, setting

RULES = ("fedavg", "ffa", "svd", "stack")
WEIGHTS = ("equal", "examples")
ROBUST = ("median", "trimmed-mean")
EXAMPLES_CAP = 1000


@dataclass(frozen=True)
class Robust(Settings):
    """A statistic per coordinate that a few bad devices cannot move far (Yin et al., ICML 2018).

    It needs all values of a coordinate at once, so updates are read several times, a block of coordinates at a time.

    Do not trust such a statistic with fewer than five devices: one bad device of three is a third of the fleet, and two
    that agree with each other look honest. Clip and check the norms in the report instead.

    A trimmed mean cuts off the lowest and the highest fraction, which must be at least the fraction of bad devices.
    """

    kind: str = setting("median", "Statistic of each coordinate.", choices=ROBUST)
    fraction: float = setting(0.0, "Fraction of devices that is cut off at either end.", minimum=0, below=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "trimmed-mean" and not self.fraction:
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
        """Return how many values are cut off at either end.

        Raises:
            AggregationError: There are too few devices to cut off any.
        """
        if self.kind == "median":
            return (devices - 1) // 2
        count = math.floor(self.fraction * devices + 1e-9)  # 0.29 * 100 is 28.999...
        if count == 0:
            raise NothingTrimmed(
                f"A trimmed mean of {self.fraction:g} cuts off none of {devices} devices.",
                context=f"at least {math.ceil(1 / self.fraction)} devices are needed to cut off one at either end",
                hint="wait for more updates, choose a larger fraction or the median, or clip norms instead.",
            )
        return count


@dataclass(frozen=True)
class Privacy(Settings):
    """Differential privacy of devices (DP-FedAvg; McMahan et al., ICLR 2018): whole updates clipped, noise on the mean.

    Attributes:
        noise: Standard deviation of the noise on the sum of the updates, as a multiple of the clipping norm.
        delta: The delta of (epsilon, delta).
        rounds: Number of rounds that are accounted for together, with this one, all with these settings.
        sampling: Probability with which each update counts (Poisson sampling), drawn when updates are aggregated. A
            smaller one spends less, as long as nobody learns whose update counted.
        seed: Seed of the noise, for tests; whoever knows it can remove the noise. ``None`` draws from the system.
    """

    noise: float
    delta: float = setting(1e-5, "Delta of (epsilon, delta).", above=0, below=1)
    rounds: int = setting(1, "Rounds that are accounted for together.", minimum=1)
    sampling: float = setting(1.0, "Probability with which an update counts.", above=0, maximum=1)
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.noise > 0 and math.isfinite(self.noise)):
            raise BadSetting("noise", self.noise, "a number above 0")


@dataclass(frozen=True)
class AggregationSettings(Settings):
    """The settings of ``edgepeft.aggregate``, which describes them; contradictions are refused."""

    rule: str = setting("fedavg", "Rule for LoRA pairs.", choices=RULES)
    weights: str = setting("equal", "Weights of the updates.", choices=WEIGHTS)
    examples_cap: int = setting(EXAMPLES_CAP, "Largest number of examples that counts.", minimum=1)
    robust: Robust | None = None
    clip: float | None = setting(None, "Largest L2 norm of a change.", above=0)
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_robust()
        self._check_privacy()

    def _check_robust(self) -> None:
        if self.robust is None:
            return
        if self.rule in ("svd", "stack"):
            raise _contradiction(
                f"robust {self.robust.kind}",
                f"rule {self.rule}",
                "it applies to each coordinate of A and B: choose fedavg.",
            )
        if self.weights != "equal":
            raise _contradiction(f"robust {self.robust.kind}", f"weights {self.weights}", "all devices count alike.")

    def _check_privacy(self) -> None:
        if self.privacy is None:
            return
        if self.clip is None:
            raise _contradiction("privacy", "no clip", "the noise is a multiple of the clipping norm: set clip.")
        if self.rule in ("svd", "stack"):
            raise _contradiction("privacy", f"rule {self.rule}", "noise belongs on a mean: choose fedavg or ffa.")
        if self.robust is not None:
            raise _contradiction("privacy", f"robust {self.robust.kind}", "noise belongs on a mean.")
        if self.weights != "equal":
            raise _contradiction("privacy", f"weights {self.weights}", "all devices count alike.")


def _contradiction(first: str, second: str, hint: str) -> Contradiction:
    return Contradiction(f"{first} and {second} do not go together.", context=None, hint=hint)
