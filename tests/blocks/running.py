"""Run the blocks of a page in an empty folder."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.blocks import given, outputs
from tests.blocks.environments import Environments
from tests.blocks.pages import Block

END = "\x04"
_READER = f"""
import json, linecache, sys, traceback
for line in sys.stdin:
    name, code = json.loads(line)
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    failed = 0
    try:
        exec(compile(code, name, "exec"), globals())
    except BaseException:
        failed = 1
        traceback.print_exc(file=sys.stdout)
    print({END!r} + str(failed), flush=True)
"""


@dataclass(frozen=True)
class Failure(Exception):
    """A block failed, or printed something else than its page says."""

    block: Block
    reason: str
    printed: str

    def __str__(self) -> str:
        return f"{self.block.page}:{self.block.line}: {self.reason}\n{self.block.code}\n--- printed:\n{self.printed}"


@dataclass
class Run:
    """A page's folder and processes: the Python blocks of one environment share a process, as a notebook's cells do."""

    folder: Path
    environments: Environments
    _readers: dict[tuple[str, ...], subprocess.Popen[str]] = field(default_factory=dict)

    def run(self, block: Block) -> str:
        """Run one block and return what it printed.

        Raises:
            Failure: It failed, or did not print what its page says.
        """
        for name in block.given:
            given.write(name, self.folder)
        if block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, "utf-8")
            return ""
        failed, printed = self._shell(block) if block.language == "sh" else self._python(block)
        if failed:
            raise Failure(block, "it fails", printed)
        if lines := outputs.missing(block.output or "", printed):
            raise Failure(block, "it does not print: " + "; ".join(lines), printed)
        return printed

    def close(self) -> None:
        """End the processes."""
        for reader in self._readers.values():
            assert reader.stdin is not None
            reader.stdin.close()
            reader.wait()

    def _shell(self, block: Block) -> tuple[bool, str]:
        """Run the block's lines but for ``pip install``, which has been done; standard output, then the errors."""
        code = "\n".join(line for line in block.code.splitlines() if not line.startswith("pip install"))
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", code],
            cwd=self.folder,
            env=self.environments.variables(block.requirements),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return done.returncode != 0, done.stdout + done.stderr

    def _python(self, block: Block) -> tuple[bool, str]:
        reader = self._readers.get(block.requirements)
        if reader is None:
            variables = self.environments.variables(block.requirements)
            reader = self._readers[block.requirements] = subprocess.Popen(
                [str(self.environments.programs(block.requirements) / "python"), "-c", _READER],
                cwd=self.folder,
                env=variables | {"MPLBACKEND": "agg"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert reader.stdin is not None and reader.stdout is not None
        print(json.dumps([f"{block.page}:{block.line}", block.code]), file=reader.stdin, flush=True)
        lines: list[str] = []
        for line in reader.stdout:
            before, end, failed = line.partition(END)
            lines.append(before)
            if end:
                return failed.strip() != "0", "".join(lines)
        return True, "".join(lines) + f"the process ended with {reader.wait()}"
