"""``edgepeft join``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepeft.cli.options import PATH, ca_option, home_option

if TYPE_CHECKING:
    from edgepeft_runtime.data.batch import Batch

_EXAMPLES = 8
"""How many of the probe's examples are predicted."""


@click.command("join")
@click.argument("place")
@click.option("--bundle", type=PATH, required=True, help="The campaign's bundle.")
@home_option
@click.option("--identity", type=PATH, help="The file that `edgepeft keys add` wrote; needed the first time.")
@click.option("--probe", type=PATH, help="An .npz file of inputs to try the new adapter with.  [default: zeros]")
@ca_option
def command(
    place: str, bundle: Path, home: Path, identity: Path | None, probe: Path | None, ca_file: Path | None
) -> None:
    """Fetch the newest round at PLACE, a folder or an http(s):// address, and switch to its adapter if it is good.

    On any failure the device goes on with the adapter it has. `edgepeft train --home` trains from it.
    """
    from edgepeft_runtime.fleet.joining import join
    from edgepeft_runtime.fleet.slots import DeviceHome

    device = DeviceHome(home)
    if identity is not None:
        device.adopt(identity)
    found = join(place, bundle, device, batch=None if probe is None else _some(probe), ca_file=ca_file)
    if found.advice is not None:
        click.echo(f"note: {found.advice}", err=True)
    what = "switched to" if found.switched else "stays with"
    click.echo(f"{what} round {found.round.round} of {found.round.campaign}: {found.adapter}")


def _some(probe: Path) -> Batch:
    import numpy as np

    from edgepeft_runtime.data.datasets import read_npz

    data = read_npz(probe)
    return data.batch(np.arange(min(_EXAMPLES, len(data))))
