"""``edgepeft join``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepeft.cli.options import ca_option, device_option
from edgepeft.cli.paths import PATH
from edgepeft.cli.screen.verbosity import say

if TYPE_CHECKING:
    from edgepeft_runtime.data.batch import Batch

_EXAMPLES = 8
"""Number of the probe's examples to predict."""


@click.command("join")
@click.argument("remote")
@click.option("--bundle", type=PATH, help="The campaign's bundle, if it was copied here by other means.")
@device_option
@click.option("--identity", type=PATH, help="File that `edgepeft keys add` wrote; needed the first time.")
@click.option("--probe", type=PATH, help="An .npz file of inputs to try the new adapter with.  [default: zeros]")
@ca_option
def command(
    remote: str, bundle: Path | None, device: Path, identity: Path | None, probe: Path | None, ca_file: Path | None
) -> None:
    """Fetch the latest round from REMOTE, a folder or an http(s):// address, and switch to it if it works.

    A round that was published --with-bundle includes its bundle; files that the device has are not fetched again. On
    any failure the device keeps its adapter. `edgepeft train --device` trains from it.
    """
    from edgepeft_runtime.fleet.device_directory import DeviceDirectory
    from edgepeft_runtime.fleet.joining import join

    directory = DeviceDirectory(device)
    if identity is not None:
        directory.adopt(identity)
    joined = join(remote, directory, bundle, batch=None if probe is None else _probe_batch(probe), ca_file=ca_file)
    if joined.advice is not None:
        say(f"note: {joined.advice}", err=True)
    what = "switched to" if joined.switched else "stays with"
    say(f"{what} round {joined.round.round} of {joined.round.campaign}: {joined.adapter}")
    if joined.bundle is not None:
        say(f"bundle: {joined.bundle}")


def _probe_batch(probe: Path) -> Batch:
    import numpy as np

    from edgepeft_runtime.data.datasets import read_npz

    data = read_npz(probe)
    return data.batch(np.arange(min(_EXAMPLES, len(data))))
