"""Receive the answers of a round: each good one becomes an update file, the others are refused by node."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message

from edgepeft.aggregation.incoming import AdapterValues, Start
from edgepeft.flower.errors import SecondAnswer
from edgepeft.flower.messages import read_update_reply
from edgepeft.intake.checks import check_norm
from edgepeft.intake.refusal import Refusal
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.train.update import Update, check_origin, write_update

log = logging.getLogger("flwr")


def receive(
    replies: Iterable[Message], start: Start, folder: Path, max_norm: float | None
) -> tuple[list[Path], list[Refusal]]:
    """Write each good answer to a folder, as an update file named after its node.

    Args:
        replies: The answers of the nodes, or Flower's errors instead.
        start: The adapter that the nodes were asked to start from.
        folder: Folder to write the files to.
        max_norm: Largest L2 norm of a change; ``None``: any.

    Raises:
        UpdateError: A file cannot be written.
    """
    files: list[Path] = []
    refused: list[Refusal] = []
    for reply in replies:
        path = folder / f"{reply.metadata.src_node_id}.safetensors"
        try:
            update = _checked(reply, start, path, math.inf if max_norm is None else max_norm)
        except EdgepeftError as error:
            refused.append(refuse(reply, error))
        else:
            files.append(write_update(path, update))
    return files, refused


def refuse(reply: Message, error: EdgepeftError) -> Refusal:
    """Log and return the refusal of a node."""
    refusal = Refusal.of(reply.metadata.src_node_id, error)
    log.warning("node %s refused (%s): %s", refusal.source, refusal.code, refusal.reason)
    return refusal


def _checked(reply: Message, start: Start, path: Path, max_norm: float) -> Update:
    """Return the update of an answer, after the checks 3 and 4 of ``edgepeft.intake.checks``."""
    update = read_update_reply(reply, start.bundle)
    check_origin(update, start.bundle.manifest, start.adapter_sha256)
    if path.exists():
        raise SecondAnswer("The node has answered already.", context=None, hint=None)
    check_norm(AdapterValues.of(update.parameters, start.bundle.manifest).distance(start.values), max_norm)
    return update
