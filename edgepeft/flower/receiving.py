"""The answers of a round: each good one becomes an update's file, the others are refused by node."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message

from edgepeft.aggregation.incoming import Start, Values
from edgepeft.aggregation.report import Refused
from edgepeft.flower.messages import read_update_reply
from edgepeft_runtime.errors import UpdateError
from edgepeft_runtime.train.update import Update, check_update, write_update

log = logging.getLogger("flwr")


def receive(
    replies: Iterable[Message], start: Start, folder: Path, max_norm: float | None
) -> tuple[list[Path], list[Refused]]:
    """Write each good answer to a folder, as an update named for its node.

    Args:
        replies: the answers of the nodes, or what Flower says in their place.
        start: what they were asked to start from.
        folder: where to write to.
        max_norm: largest L2 norm of a change; ``None``: any.

    Raises:
        UpdateError: a file cannot be written.
    """
    files: list[Path] = []
    refused: list[Refused] = []
    for reply in replies:
        path = folder / f"{reply.metadata.src_node_id}.safetensors"
        try:
            update = _checked(reply, start, path, math.inf if max_norm is None else max_norm)
        except UpdateError as error:
            refused.append(refuse(reply, error))
        else:
            files.append(write_update(path, update))
    return files, refused


def refuse(reply: Message, error: UpdateError) -> Refused:
    """Say in the log which node was refused, and why."""
    found = Refused.of(Path(str(reply.metadata.src_node_id)), error)
    log.warning("node %s refused (%s): %s", found.file, found.reference, found.reason)
    return found


def _checked(reply: Message, start: Start, path: Path, max_norm: float) -> Update:
    """The update of an answer: of this base and round, with the bundle's tensors, finite, and not too far away."""
    update = read_update_reply(reply, start.bundle)
    check_update(update, start.bundle, adapter_sha256=start.adapter_sha256)
    if path.exists():
        raise UpdateError("second-answer", "The node has answered already.", context=None, hint=None)
    norm = Values.of(update.parameters, start.bundle.manifest).distance(start.values)
    if not norm <= max_norm:
        facts = f"norm {norm:.6g}; at most {max_norm:.6g}"
        raise UpdateError("norm-too-large", "The update changes too much.", context=facts, hint=None)
    return update
