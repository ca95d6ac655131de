"""The line of a terminal that is being rewritten: at most one, which ends before anything else is written."""

from __future__ import annotations

import sys
from typing import TextIO

_open: Line | None = None


class Line:
    """One line on a stream. On a terminal it is rewritten; elsewhere each text is a line.

    Args:
        stream: Where it is written, by default standard error.
        silent: Write nothing.
    """

    def __init__(self, stream: TextIO | None = None, *, silent: bool = False) -> None:
        self._stream = sys.stderr if stream is None else stream
        self.silent = silent
        self.terminal = self._stream.isatty()
        self._width = 0

    def rewrite(self, text: str) -> None:
        """Replace the line on a terminal, and leave it unfinished."""
        global _open
        if not self.silent:
            if _open is not self:
                end_line()
            self._write("\r" + text.ljust(self._width))
            self._width, _open = len(text), self

    def write(self, text: str) -> None:
        """Write a text as a whole line, instead of an unfinished one."""
        if not self.silent:
            self._write(("\r" if self._width else "") + text.ljust(self._width) + "\n")
            self._closed()

    def end(self) -> None:
        """End an unfinished line."""
        if self._width:
            self._write("\n")
            self._closed()

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _closed(self) -> None:
        global _open
        self._width = 0
        if _open is self:
            _open = None


def end_line() -> None:
    """End the line that is being rewritten, if there is one."""
    if _open is not None:
        _open.end()
