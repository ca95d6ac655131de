"""Make all mistakes, and write the page."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.mistakes.cases import all_mistakes
from tests.mistakes.mistake import Answer, Mistake, made
from tests.mistakes.page import page
from tests.mistakes.world import build, mounted
from tests.support import bundles


def main() -> int:
    """Return 1 if an answer does not lead to the right call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="file to write")
    parser.add_argument("--show", action="store_true", help="print every answer")
    options = parser.parse_args()
    answers: dict[Mistake, Answer] = {}
    with tempfile.TemporaryDirectory() as made_in, tempfile.TemporaryDirectory() as folder:
        base, world = Path(made_in), Path(folder)
        build(world, bundles.text(base), bundles.images(base), bundles.regression(base), bundles.causal(base))
        with mounted(world) as allowed:
            if not allowed:
                print("two mistakes need the right to mount a disk", file=sys.stderr)
                return 1
            for mistake in all_mistakes():
                answers[mistake] = made(mistake, world)
    bad = [mistake for mistake, answer in answers.items() if not right(mistake, answer)]
    for mistake in list(answers) if options.show else bad:
        answer = answers[mistake]
        print(f"$ edgepeft {mistake.call}\n{answer.error}\n[{answer.code}]{' BAD: ' if mistake in bad else ''}", end="")
        print(" ".join(word for word in mistake.words if word not in answer.error), end="\n\n")
    print(f"{len(answers)} mistakes, {len(bad)} bad answers")
    if options.page and not bad:
        options.page.write_text(page(answers), encoding="utf-8")
    return int(bool(bad))


def right(mistake: Mistake, answer: Answer) -> bool:
    """Whether the exit code is right, and the answer contains all that leads to the right call."""
    return answer.code == mistake.code and all(word in answer.error for word in mistake.words)


if __name__ == "__main__":
    sys.exit(main())
