"""Flower's processes on this machine: a SuperLink and nodes, as on several ones."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

Process: TypeAlias = subprocess.Popen[bytes]

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
APP = Path(__file__).parents[2] / "examples" / "flower"
CONNECTION = '[superlink]\ndefault = "there"\n[superlink.there]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'


class Engine:
    """Starts the processes of Flower, each with its log in a folder.

    Args:
        python: the interpreter of the environment with Flower.
        folder: The directory of its files.
        packages: where edgepeft is imported from.
    """

    def __init__(self, python: Path, folder: Path, packages: list[Path]) -> None:
        self._bin, self._folder = python.parent, folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        path = {
            "PATH": os.pathsep.join([str(self._bin), kept["PATH"]]),
            "PYTHONPATH": os.pathsep.join(map(str, packages)),
        }
        self._environment = {**kept, **QUIET, **path, "FLWR_HOME": str(folder)}
        self._port = _free_port()
        (folder / "config.toml").write_text(CONNECTION.format(port=self._port))

    @contextmanager
    def superlink(self) -> Iterator[Process]:
        """The server's daemon, without a database."""
        options = ["--insecure", "--disable-runtime-dependency-installation", "--host", "127.0.0.1"]
        with self._running("superlink", "flower-superlink", *options, "--port", str(self._port)) as process:
            _wait_for(process, f"http://127.0.0.1:{self._port}/health", self._log("superlink"))
            yield process

    @contextmanager
    def nodes(self, configs: list[dict[str, Path]]) -> Iterator[list[Process]]:
        """A device's daemon for each configuration."""
        with ExitStack() as stack:
            found = []
            for number, config in enumerate(configs):
                given = " ".join(f'{name}="{value}"' for name, value in config.items())
                options = ["--insecure", "--superlink", f"127.0.0.1:{self._port}", "--port", str(_free_port())]
                command = ["flower-supernode", *options, "--node-config", given]
                found.append(stack.enter_context(self._running(f"node{number}", *command)))
            yield found

    def run(self, config: dict[str, object]) -> str:
        """Run the example's app to its end; returns what it logs."""
        given = " ".join(
            f"{name}={value}" if isinstance(value, int) else f'{name}="{value}"' for name, value in config.items()
        )
        command = [str(self._bin / "flwr"), "run", str(APP), "there", "--stream", "--run-config", given]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False, timeout=120)
        return done.stdout + done.stderr

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    @contextmanager
    def _running(self, name: str, *command: str) -> Iterator[Process]:
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
            try:
                yield process
            finally:
                process.terminate()
                process.wait(60)


def memory_of(process: Process) -> float:
    """Proportional set size of a process and its children, in MB (proc(5)); what they share counts once."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
    lines = (Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines() for pid in [process.pid, *children])
    return sum(int(line.split()[1]) for found in lines for line in found if line.startswith("Pss:")) / 1000


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _wait_for(process: Process, address: str, log: Path) -> None:
    while True:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
