"""A device's part: where its bundle and its texts are. All else is edgepeft's."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context

from edgepeft.flower.client import client_app


def bundle(context: Context) -> Path:
    return Path(str(context.node_config.get("bundle", context.run_config["bundle"])))


def texts(context: Context) -> Path:
    """The file that a device was started with; in a simulation, its partition."""
    if "texts" in context.node_config:
        return Path(str(context.node_config["texts"]))
    return Path(str(context.run_config["texts"])) / f"device-{context.node_config['partition-id']}.npz"


app = client_app(bundle, texts, threads=1)
