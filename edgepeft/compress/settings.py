"""Settings of pruning, and their text on the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from edgepeft.compress.errors import BadPruneSetting, PruneError
from edgepeft_runtime.files.schema import Json

SCORES = ("magnitude", "taylor", "wanda")
LEAST_MASK = 0.05
"""Smallest fraction of single weights that a mask may remove, because ``merge`` recognizes masked weights by zeros."""


@dataclass(frozen=True)
class Pruning:
    """The structures and weights to remove. All fractions are in [0, 1) and apply to every layer.

    Attributes:
        heads: Fraction of attention heads; with grouped-query attention, of whole key/value groups.
        ffn: Fraction of feed-forward neurons.
        channels: Fraction of convolution channels.
        weights: Fraction of single weights to set to zero in each matrix or kernel: 0, or at least 0.05.
        n_m: ``(n, m)``: n of every m consecutive weights along the inputs stay; excludes ``weights``.
        score: The measure of importance. ``magnitude`` (L2 norm) needs no data; ``taylor`` (first order, Molchanov et
            al., CVPR 2019) and ``wanda`` (weight times norm of its input, Sun et al., ICLR 2024) need calibration data.
        keep: Names or patterns of modules that are not pruned, nor anything coupled to them.

    Raises:
        PruneError: A value is out of range.
    """

    heads: float = 0.0
    ffn: float = 0.0
    channels: float = 0.0
    weights: float = 0.0
    n_m: tuple[int, int] | None = None
    score: str = "magnitude"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("heads", "ffn", "channels", "weights"):
            if not 0 <= getattr(self, name) < 1:
                raise _setting(name, getattr(self, name), "choose a fraction with 0 <= fraction < 1.")
        if 0 < self.weights < LEAST_MASK:
            raise _setting("weights", self.weights, f"choose 0, or at least {LEAST_MASK}.")
        if self.n_m is not None and not 0 < self.n_m[0] < self.n_m[1]:
            raise _setting("pattern", "{}:{}".format(*self.n_m), "choose 0 < n < m, such as 2:4.")
        if self.n_m is not None and 1 - self.n_m[0] / self.n_m[1] < LEAST_MASK:
            raise _setting(
                "pattern", "{}:{}".format(*self.n_m), f"a mask removes at least {LEAST_MASK} of the weights."
            )
        if self.n_m is not None and self.weights:
            raise _setting("pattern", "{}:{}".format(*self.n_m), "give either weights or pattern.")
        if self.score not in SCORES:
            raise _setting("score", self.score, f"choose one of {', '.join(SCORES)}.")

    @classmethod
    def parse(cls, text: str) -> Pruning:
        """Parse ``heads=0.25,ffn=0.3,channels=0.3,weights=0.5,pattern=2:4,score=wanda,keep=*.0.*``.

        ``keep`` may be given several times.

        Raises:
            PruneError: A key is unknown or given twice, or a value cannot be read.
        """
        given: Json = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, _, value = (piece.strip() for piece in part.partition("="))
            if key == "keep":
                given["keep"] = (*given.get("keep", ()), value)
                continue
            name = "n_m" if key == "pattern" else key
            if name in given:
                raise _setting(key, value, "give each setting once.")
            given[name] = _read(key, value)
        return cls(**given)

    @property
    def is_empty(self) -> bool:
        """Whether the settings remove nothing."""
        return not (self.heads or self.ffn or self.channels or self.weights or self.n_m)

    def as_provenance(self) -> Json:
        """Return the settings that differ from the defaults, as JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: value for name, value in values.items() if value != getattr(Pruning, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def is_kept(name: str, keep: tuple[str, ...]) -> bool:
    """Whether a module is excluded by its name, an ancestor's name, or a pattern."""
    return any(name == p or name.startswith(f"{p}.") or fnmatchcase(name, p) for p in keep)


def _read(key: str, value: str) -> Any:
    try:
        if key in ("heads", "ffn", "channels", "weights"):
            return float(value)
        if key == "pattern":
            n, m = value.split(":")
            return int(n), int(m)
    except ValueError as error:
        raise _setting(key, value, "write a fraction (heads=0.25) or a pattern (pattern=2:4).") from error
    if key == "score":
        return value
    raise BadPruneSetting(
        f"There is no pruning setting '{key}'.",
        context=None,
        hint="there are heads, ffn, channels, weights, pattern, score and keep, such as heads=0.25,ffn=0.3.",
    )


def _setting(name: str, value: object, hint: str) -> PruneError:
    return BadPruneSetting(f"{name}={value} is not a pruning setting.", context=None, hint=hint)
