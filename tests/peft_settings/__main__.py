"""Check adapters of peft, and write the page.

``python -m tests.peft_settings`` tries all settings, and writes ``docs/PEFT.md``. It fails where a loss is wrong.
"""

from __future__ import annotations

import argparse
import sys

from tests.architectures.check import Result
from tests.peft_settings.cases import CASES
from tests.peft_settings.check import check
from tests.peft_settings.page import PAGE, page


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.peft_settings", description=__doc__)
    parser.add_argument("--only", default="", help="Cases with this in their names. The page is not written.")
    options = parser.parse_args()
    results: dict[str, Result] = {}
    for case in CASES:
        if options.only in case.name:
            results[case.name] = check(case)
            print(case.name, results[case.name].status, results[case.name].detail, flush=True)
    if not options.only:
        PAGE.write_text(page(CASES, results), encoding="utf-8")
    return int(any(result.status in ("wrong", "failed") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
