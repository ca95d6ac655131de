"""The folder in which the mistakes are made: models, bundles, data, updates, and some that are damaged."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgepeft.cli.app import run
from tests.support.bundles import Trained

NET = """
import torch
from torch import nn


def make():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4)


def fails():
    return open("weights.pt")


def model_alone():
    return nn.Linear(4, 2)
"""
ROWS = [("a good film", "yes"), ("an awful film", "no"), ("the story was fine", "yes"), ("a bad end", "no")] * 4
FILES = {
    "net.py": NET,
    "reviews.csv": "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS),
    "empty.csv": "",
    "header.csv": "text,label\n",
    "comma.csv": "text,label\nfine, but too long,yes\n",
    "quote.csv": 'text,label\n"never closed,yes\nbad,no\n',
    "twice.csv": "text,text,label\na,b,yes\n",
    "classes.csv": "text,label\na good film,maybe\n",
    "indices.csv": "text,label\na good film,2\n",
    "mixed.csv": "text,label\na good film,yes\na bad film,0\n",
    "unlabelled.csv": "text,label\na good film,\n",
    "stars.csv": "review,stars\na good film,yes\n",
    "broken.jsonl": '{"text": "good", "label": "yes"}\n{"text": "bad", "label": no}\n',
    "numbers.jsonl": '{"text": 42, "label": "yes"}\n',
    "object.json": '{"text": "good", "label": "yes"}\n',
    "upper.csv": "Text,Label\na good film,yes\n",
    "no_header.csv": "a good film,yes\na bad film,no\n",
    "pickled.pkl": "",
    "thousands.csv": 'a,b,c,label\n"1,000",2,3,0.5\n',
    "missing.csv": "a,b,c,label\n1,2,nan,0.5\n",
    "rows.csv": "a,b,c,label\n1,2,many,0.5\n",
    "narrow.csv": "a,b,label\n1,2,0.5\n",
    "notes.txt": "a good film\n",
    "reviews.xlsx": "PK",
    "classifier.pt": "PK",
    "text.onnx": "this is no model\n",
    "photos/cat/1.png": "no image\n",
    "loose/1.png": "no image\n",
    "no_model/notes.txt": "",
    "half_model/config.json": '{"model_type": "bert", ',
    "old_adapter/adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "meta/llama"}',
    "unanswered.jsonl": '{"prompt": "Is it good?", "answer": ""}\n',
    "numbered.jsonl": '{"prompt": 42, "answer": "yes"}\n',
    "response.csv": "prompt,response\nIs it good?,yes\n",
    "turns.jsonl": '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n',
    "notes.safetensors": "this is no update\n",
    "afile": "",
}


def build(folder: Path, text: Trained, images: Trained, regression: Trained, causal: Trained) -> None:
    """Fill the folder. The bundles are copied."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, "utf-8")
    (folder / "latin.csv").write_bytes("text,label\ncafé,yes\n".encode("latin-1"))
    (folder / "wide.csv").write_bytes("text,label\ngood,yes\n".encode("utf-16"))
    (folder / "zeros.csv").write_bytes("text,label\ngood,yes\n".encode("utf-16-le"))
    (folder / "cut.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"a good film,yes\n" * 99)[:-9])
    (folder / "gone.csv").symlink_to("elsewhere.csv")
    (folder / "loop.csv").symlink_to("loop.csv")
    (folder / "collected").mkdir()
    assert text.model is not None
    shutil.copytree(text.model, folder / "model")
    bundles = {"bundle": text, "camera": images, "sensor": regression, "chat": causal}
    for name, trained in bundles.items():
        shutil.copytree(trained.bundle, folder / name)
        shutil.copy(trained.update, folder / f"{name}.safetensors")
    _models(folder)
    _damaged(folder)
    write_image(folder / "split" / "train" / "dark" / "1.png")
    np.savez(folder / "holes.npz", input=np.full((4, 3), np.nan, np.float32), labels=np.zeros((4, 2), np.float32))
    np.savez(folder / "whole.npz", input=np.ones((4, 3), np.int64), labels=np.zeros((4, 2), np.float32))
    np.savez(folder / "unequal.npz", input=np.ones((4, 3), np.float32), labels=np.zeros((5, 2), np.float32))
    np.savez(folder / "unnamed.npz", np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32))
    np.savez(folder / "arrays.npz", input_ids=np.ones((4, 3), np.int64), labels=np.zeros(4, np.int64))
    np.savez(folder / "floats.npz", input=np.ones((4, 5), np.float32), labels=np.zeros((4, 2), np.float32))
    np.savez(folder / "sensed.npz", input=np.ones((4, 3), np.float32), labels=np.zeros((4, 2), np.float32))
    write_image(folder / "pictures" / "purple" / "1.png")
    _trained(folder)


def _models(folder: Path) -> None:
    shutil.copytree(folder / "model", folder / "no_weights")
    (folder / "no_weights" / "model.safetensors").unlink()
    shutil.copytree(folder / "model", folder / "bare_model")
    config = json.loads((folder / "bare_model" / "config.json").read_text("utf-8"))
    (folder / "bare_model" / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    weights = numpy_helper.from_array(np.ones((4, 3), np.float32), "classifier.weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "classifier.weight"], ["scores"], "scores")],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", 3])],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "net.onnx")


def _damaged(folder: Path) -> None:
    """Bundles of another version, with an unreadable manifest, a changed byte, and a missing file."""
    for name in ("newer", "unreadable", "flipped", "lost"):
        shutil.copytree(folder / "bundle", folder / name)
    manifest = folder / "newer" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text("utf-8")), "version": 99}), "utf-8")
    (folder / "unreadable" / "manifest.json").write_text("{", "utf-8")
    weights = folder / "flipped" / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    (folder / "lost" / "train.onnx").unlink()


def _trained(folder: Path) -> None:
    """A finished run, for mistakes about its settings, and a fleet of one device."""
    calls = (
        "train bundle --data reviews.csv --update mine.safetensors --epochs 1",
        "keys new birds --workspace host",
        "keys add phone --workspace host --out phone.json",
        "publish bundle stick --workspace host",
        "join stick --device phone --identity phone.json --bundle bundle",
    )
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for call in calls:
            assert run(call.split()) == 0, call


def write_image(path: Path) -> None:
    """Write a grey picture of 8 by 8 pixels."""
    from PIL import Image

    path.parent.mkdir(parents=True)
    Image.new("L", (8, 8), 128).save(path)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[bool]:
    """Mount a full disk and a read-only one below the folder, where that is allowed; yield whether it is."""
    full, readonly = folder / "full_disk", folder / "readonly"
    done = [path for path, options in ((full, "size=8k"), (readonly, "ro,size=8k")) if _mount(path, options)]
    try:
        if full in done:
            with contextlib.suppress(OSError):
                (full / "others").write_bytes(bytes(8192))
        yield len(done) == 2
    finally:
        for path in done:
            subprocess.run(["umount", path], check=True)


def _mount(path: Path, options: str) -> bool:
    path.mkdir()
    try:
        return (
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], capture_output=True).returncode == 0
        )
    except OSError:
        return False
