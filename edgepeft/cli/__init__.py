"""The command ``edgepeft``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edgepeft.cli.exit_codes import INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code; Ctrl-C while it is being imported leaves no traceback."""
    try:
        from edgepeft.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run(arguments)


__all__ = ["main"]
