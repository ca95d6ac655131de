"""Names of the engines and of what they keep. Importing this does not import onnxruntime: the help stays fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepeft_runtime.checks import require
from edgepeft_runtime.errors import UnknownEngine
from edgepeft_runtime.names import did_you_mean

if TYPE_CHECKING:
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.engine.engine import Engine

PORTABLE, ORT_TRAINING = "portable", "ort-training"
ENGINES = (PORTABLE, ORT_TRAINING)
NO_CACHE, ACTIVATIONS = CACHES = ("none", "activations")
"""Values that an engine may keep between epochs."""


def check_engine(name: str) -> None:
    """Refuse a name that is not an engine's."""
    if name not in ENGINES:
        raise UnknownEngine(
            f"There is no engine named {name!r}.",
            context=f"there are: {', '.join(ENGINES)}",
            hint=did_you_mean(name, ENGINES),
        )


def open_engine(name: str, bundle: Bundle, threads: int | None, provider: str | None = None) -> Engine:
    """Create the engine of that name, for the portable one with another execution provider than the CPU.

    Raises:
        TrainingError: there is no such engine or provider.
        SettingError: the engine runs on the CPU alone.
    """
    check_engine(name)
    if name == PORTABLE:
        from edgepeft_runtime.engine.portable import PortableEngine
        from edgepeft_runtime.engine.providers import provider_of

        return PortableEngine(bundle, threads=threads, provider=None if provider is None else provider_of(provider))
    require("provider", provider, provider is None, f"no provider: the engine {ORT_TRAINING} runs on the CPU")
    from edgepeft_runtime.engine.ort_training.engine import OrtTrainingEngine

    return OrtTrainingEngine(bundle, threads=threads)
