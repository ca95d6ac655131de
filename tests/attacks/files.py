"""Attacks on the host by files: their paths, types and sizes."""

from __future__ import annotations

import io
import json
import os

import numpy as np

from tests.attacks.changes import header_of, joined, with_new_digest
from tests.attacks.stage import NAME, Stage
from tests.attacks.table import ANYBODY, DEVICE, attack

# Paths and kinds of files


@attack("path traversal: a sidecar that names the device `../../keys`", DEVICE, "bad-sidecar")
def traversal_by_device(stage: Stage) -> None:
    stage.leave(stage.good, stage.delivery(stage.good, device="../../keys"))


@attack("path traversal: folders of devices named `...`, `Pi-1`, `a b`, `-rf`", ANYBODY, "bad-name")
def traversal_by_folder(stage: Stage) -> None:
    for name in ("...", "Pi-1", "a b", "-rf", "x" * 65):
        stage.leave(stage.good, stage.delivery(stage.good), device=name)


@attack("path traversal: folders of rounds named `r3`, `r00000003`, `latest`", ANYBODY, "bad-name")
def traversal_by_round(stage: Stage) -> None:
    for name in ("r3", "r00000003", "latest"):
        (stage.fleet.remote / "inbox" / name / NAME).mkdir(parents=True)


@attack(r"path traversal: files named `..\x`, `*`, a hash in capitals", ANYBODY, "bad-name")
def traversal_by_file(stage: Stage) -> None:
    for name in (r"..\x.safetensors", "*.safetensors", f"{'AB' * 32}.safetensors", "update.pkl", "a\nb"):
        (stage.folder() / name).write_bytes(stage.good)


@attack("a file whose name is no text, and one that would clear a terminal", ANYBODY, "bad-name")
def unprintable_names(stage: Stage) -> None:
    for name in (b"\xff\xfe.safetensors", b"\x1b[2J.safetensors"):
        (stage.folder() / os.fsdecode(name)).write_bytes(stage.good)


@attack("a tensor whose name would clear a terminal", DEVICE, "wrong-tensors")
def unprintable_tensor(stage: Stage) -> None:
    stage.leave_signed(stage.with_tensors(lambda tensors: tensors.update({"\x1b[2J": np.zeros(1, np.float32)})))


@attack("symlink: an update that points to a secret", ANYBODY, "not-a-regular-file")
def symlink(stage: Stage) -> None:
    path = stage.leave_signed(stage.good)
    path.unlink()
    path.symlink_to(stage.fleet.host.keys / "host.json")


@attack("symlink: a sidecar that points to another", ANYBODY, "not-a-regular-file")
def symlinked_sidecar(stage: Stage) -> None:
    path = stage.leave_signed(stage.good).with_suffix(".sig")
    path.rename(stage.fleet.root / "elsewhere")
    path.symlink_to(stage.fleet.root / "elsewhere")


@attack("symlink: a device's folder that points into the host's workspace", ANYBODY, "stray-file")
def symlinked_folder(stage: Stage) -> None:
    stage.folder().rmdir()
    (stage.fleet.remote / "inbox" / "r000003" / NAME).symlink_to(stage.fleet.host.accepted / "r000003" / "pi-1")


@attack("hardlink: an update with a second name", ANYBODY, "not-a-regular-file")
def hardlink(stage: Stage) -> None:
    os.link(stage.leave_signed(stage.good), stage.fleet.root / "second-name")


@attack("a pipe that never answers", ANYBODY, "not-a-regular-file")
def pipe(stage: Stage) -> None:
    path = stage.leave_signed(stage.good)
    path.unlink()
    os.mkfifo(path)


@attack("a folder named like an update", ANYBODY, "stray-file")
def folder(stage: Stage) -> None:
    path = stage.leave_signed(stage.good)
    path.unlink()
    path.with_suffix(".sig").unlink()
    path.mkdir()


# Size


@attack("zip bomb: 50 MB of zeros in a small .npz, named as an update", DEVICE, "tensor-file-header")
def zip_bomb(stage: Stage) -> None:
    compressed = io.BytesIO()
    np.savez_compressed(compressed, zeros=np.zeros(50_000_000, np.uint8))
    stage.leave_signed(compressed.getvalue())


@attack("2 GB header: eight bytes that claim it", DEVICE, "tensor-file-header")
def huge_header(stage: Stage) -> None:
    stage.leave_signed((2 * 2**30).to_bytes(8, "little") + stage.good[8:])


@attack("a sparse file of 8 GB", ANYBODY, "too-large")
def sparse_file(stage: Stage) -> None:
    with stage.leave_signed(stage.good).open("r+b") as file:
        file.truncate(2**33)


@attack("a header of 100,000 brackets", DEVICE, "tensor-file-header")
def deep_header(stage: Stage) -> None:
    stage.leave_signed(joined(b'{"a":' + b"[" * 100_000))


@attack("a tensor of 2^62 by 2^62 by 0 elements", DEVICE, "tensor-file-header")
def overflowing_shape(stage: Stage) -> None:
    stage.leave_signed(_shaped(stage, [2**62, 2**62, 0]))


@attack("a tensor of 2^52 by 2^52 by 0 elements", DEVICE, "tensor-file-layout")
def overflowing_exact_shape(stage: Stage) -> None:
    stage.leave_signed(_shaped(stage, [2**52, 2**52, 0]))


@attack("a tensor of 5,000 axes, whose count of elements has as many digits", DEVICE, "tensor-file-header")
def many_axes(stage: Stage) -> None:
    stage.leave_signed(_shaped(stage, [9] * 5000))


@attack("a header of 1 MB with one list of sizes", DEVICE, "tensor-file-header")
def endless_shape(stage: Stage) -> None:
    stage.leave_signed(_shaped(stage, [9] * 300_000))


@attack("a tensor name of 900 kB that would clear a terminal, twice", DEVICE, "tensor-file-header")
def name_twice(stage: Stage) -> None:
    entry = json.dumps("\x1b[2J" + "x" * 450_000) + ":1"
    stage.leave_signed(joined(f"{{{entry},{entry}}}".encode()))


@attack("a tensor name with half of a surrogate pair", DEVICE, "tensor-file-header")
def half_a_pair(stage: Stage) -> None:
    stage.leave_signed(with_new_digest(stage.good.replace(b"head.bias", b"\\ud800bia")))


def _shaped(stage: Stage, shape: list[int]) -> bytes:
    """The good update with one tensor, of this shape and no bytes, with its digest."""
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    metadata = header_of(stage.good)["__metadata__"]
    return with_new_digest(joined(json.dumps({"__metadata__": metadata, "head.bias": entry}).encode()))
