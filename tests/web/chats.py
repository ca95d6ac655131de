"""A small chat model for the pages, and a server of a fleet that collects its adapters."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

import edgepeft
from edgepeft.sync import Keys, Workspace, publish
from edgepeft.sync.links import link_of
from edgepeft_runtime.bundle.specs import TextSpec
from tests.fleet.servers import serving
from tests.support.bundles import FIELDS, LONGEST, PAD, write_tokenizer
from tests.support.networks import tiny_llama

MODULES = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head")


def small_bundle(folder: Path) -> Path:
    """Prepare a small Llama in segments, whose weights the page's worker reads from its private file system."""
    ids = torch.randint(0, 100, (2, 6), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return edgepeft.prepare(
            tiny_llama(),
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            loss="causal_lm",
            method=edgepeft.Lora(
                rank=8, target_modules=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head")
            ),
            compression=edgepeft.Compression(weights="input"),
            preprocessing=edgepeft.Preprocessing(
                TextSpec(LONGEST, PAD, FIELDS), write_tokenizer(folder / "tokenizer.json")
            ),
            out=folder / "bundle",
        ).bundle


@dataclass(frozen=True)
class Invited:
    """A host that serves a round, the link of its phone, and the port that the page is to have."""

    host: Workspace
    link: str
    port: int


@contextmanager
def inviting(bundle: Path, folder: Path, port: int | None = None) -> Iterator[Invited]:
    """Serve round 1 of a bundle to a page of this machine, at a free port by default."""
    if port is None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
    host, origin = Workspace(folder / "host"), f"http://localhost:{port}"
    Keys(host).create("chats")
    identity = Keys(host).add("phone-1", folder / "phone-1.json")
    publish(bundle, host, [])
    with serving(host, origins=[origin]) as server:
        yield Invited(host, link_of(identity, f"{origin}/manner.html", f"http://127.0.0.1:{server}"), port)
