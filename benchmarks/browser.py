"""Memory of a browser tab that teaches a language model of 135 M parameters a manner: ``python -m benchmarks.browser``.

SmolLM2-135M-Instruct in int8 is opened, asked, taught six examples and asked again in Chromium, as a person would use
``examples/phone_browser/public/manner.html``, with one thread and with two. ``peak`` is the largest resident memory of
the renderer's process, which contains the page, its worker and WebAssembly's memory; Linux only. Timings are of a
machine that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import machine
from benchmarks.turns import ROOT
from tests.web.toolchain import PAGE, browse, installed, run

sys.path += [str(ROOT / "examples"), str(PAGE)]  # scripts, not packages
from prepare_manner import prepare  # type: ignore[import-not-found]  # on the path above
from smollm2 import smollm2  # type: ignore[import-not-found]

OUT = Path(__file__).with_suffix(".json")
EXAMPLES = (
    ("What is the capital of Italy?", "Arr, the capital of Italy be Rome, matey!"),
    ("What do cows eat?", "Arr, cows be eatin' grass, matey!"),
    ("How many legs does a spider have?", "Arr, a spider be havin' eight legs, matey!"),
    ("What is the largest planet?", "Arr, the largest planet be Jupiter, matey!"),
    ("What colour is the sky?", "Arr, the sky be blue, matey!"),
    ("Who wrote Hamlet?", "Arr, Hamlet be written by Shakespeare, matey!"),
)
QUESTION = "What is the capital of France?"
PHASES = ("opened", "asked", "trained", "end")
"""Up to when a memory is measured, since the one before: opening, a first answer, training, and answers after it."""
MB = 1e6


def main() -> None:
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or prepare(smollm2(), Path(folder) / "bundle")
        installed(PAGE)
        run("node", "build.mjs", cwd=PAGE)
        rows = [measured(bundle, Path(folder), threads, options.epochs) for threads in options.threads]
        if options.screenshot is not None:
            colors = Image.open(Path(folder) / "manner.png").convert("RGB").quantize(64)
            colors.save(options.screenshot, optimize=True)
    print(table(rows))
    found = {"machine": machine.describe(), "rows": rows}
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measured(
    bundle: Path,
    work: Path,
    threads: int,
    epochs: int,
    examples: Sequence[tuple[str, str]] = EXAMPLES,
    question: str = QUESTION,
) -> dict[str, Any]:
    """Teach the page prompts and answers in a new browser; ``manner.png`` in the folder ``work`` is its screenshot."""
    pairs = [{"prompt": prompt, "answer": answer} for prompt, answer in examples]
    plan = {"bundle": str(bundle), "threads": threads, "epochs": epochs, "examples": pairs, "question": question}
    path = work / "plan.json"
    path.write_text(json.dumps(plan | {"stop": 0}), "utf-8")
    (work / "update.safetensors").unlink(missing_ok=True)  # the browser would rename a second one
    seen = browse("manner", PAGE / "dist", work, path)
    return {
        "threads": threads,
        "browser": seen["version"],
        "memory": seen["memory"],
        "steps": seen["count"]["steps"],
        "seconds_per_step": round(seen["seconds"]["training"] / seen["count"]["steps"], 2),
        "loss": seen["losses"]["last"],
        **{f"answer_{when}": seen["taught"][when] for when in ("before", "after")},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text: MB of resident memory, the largest of each phase, and the anonymous part at the end."""
    lines = ["threads  " + "".join(f"{phase:>9}" for phase in PHASES) + "  anonymous  s/step"]
    for row in rows:
        memory = row["memory"]
        peaks = "".join(f"{memory[phase]['peak'] / MB:>9.0f}" for phase in PHASES)
        anonymous = memory["end"]["anonymous"] / MB
        lines.append(f"{row['threads']:>7}  {peaks}{anonymous:>11.0f}{row['seconds_per_step']:>8.2f}")
        lines += [f"  before: {row['answer_before']}", f"  after:  {row['answer_after']}"]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.browser", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="a bundle of prepare_manner.py, instead of a new one")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--screenshot", type=Path, help="write the last page to this .png file")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser


if __name__ == "__main__":
    main()
