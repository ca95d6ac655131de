"""A text recognizer of rapidocr learns a font that it misreads: the Fraktur letters of STIX, which matplotlib ships.

The source is the package's ``.onnx`` file as it is. Words are rendered, LoRA trains on the device with ``ctc``, and the
error rate of characters is measured on words that were not trained, in Fraktur and in a font that it could read before.
The package has large dependencies, of which only the file is needed:

    python -m venv ocr && ocr/bin/pip install rapidocr-onnxruntime
    python examples/stories/ocr_font.py --packages ocr/lib/python3.*/site-packages
"""

from __future__ import annotations

import argparse
import keyword
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageDraw, ImageFont

import edgepeft
from edgepeft_export.losses import CTC
from edgepeft_runtime import Trainer

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FRAKTUR, HEIGHT = 0x1D51E, 48
TRAIN, TEST = 96, 48
EPOCHS, BATCH, LR = 4, 8, 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, required=True, help="site-packages with rapidocr-onnxruntime")
    model = parser.parse_args().packages / "rapidocr_onnxruntime" / "models" / "ch_PP-OCRv4_rec_infer.onnx"
    characters = alphabet(model)
    words = sorted({name for name in (*sys.stdlib_module_names, *keyword.kwlist) if name.isalpha() and name.islower()})
    words = [words[at] for at in np.random.default_rng(0).permutation(len(words))]
    train, test = words[:TRAIN], words[TRAIN : TRAIN + TEST]
    data, held_out, usual = (
        {"x": images(part, fraktur), "labels": targets(part, characters)}
        for part, fraktur in ((train, True), (test, True), (test, False))
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        edgepeft.prepare(
            model,
            {"x": torch.zeros(2, 3, HEIGHT, 64)},
            method=edgepeft.Lora(rank=4, alpha=8),
            loss=CTC(zero_infinity=True),
            out=work / "bundle",
        )
        with Trainer.open(work / "bundle") as trainer:
            before = [trainer.evaluate(part, 16, ["cer"]) for part in (held_out, usual)]
            trainer.fit(data, epochs=EPOCHS, batch_size=BATCH, lr=LR)
            after = [trainer.evaluate(part, 16, ["cer"]) for part in (held_out, usual)]
            scores = trainer.predict({"x": held_out["x"]})
            trainer.save_update(work / "update.safetensors")
        edgepeft.merge(work / "bundle", work / "update.safetensors", to="onnx", out=work / "merged.onnx")
        merged = onnxruntime.InferenceSession(work / "merged.onnx").run(None, {"x": held_out["x"]})[0]
    print(f"{TRAIN} words in Fraktur to train on, {TEST} others held out")
    for name, old, new in zip(("Fraktur", "DejaVu Sans"), before, after, strict=True):
        print(f"  {name}: characters wrong {old.metrics['cer'].value:.1%} -> {new.metrics['cer'].value:.1%}")
    print(f"  CTC loss on them: {after[0].loss:.4f}; PyTorch's of the same scores: {torch_loss(scores, held_out):.4f}")
    print(
        f"  the merged .onnx file differs from the device by at most {np.abs(merged - probabilities(scores)).max():.1e}"
    )


def alphabet(model: Path) -> list[str]:
    """The blank, the characters that the file lists, and a space."""
    listed = onnxruntime.InferenceSession(model).get_modelmeta().custom_metadata_map["character"].splitlines()
    return ["<blank>", *listed, " "]


def images(words: list[str], fraktur: bool) -> np.ndarray:
    """Words as the recognizer reads them: [words, 3, 48, width], BGR, -1 to 1, padded with 0."""
    drawn = [picture(word, fraktur) for word in words]
    batch = np.zeros((len(words), 3, HEIGHT, max(image.shape[2] for image in drawn)), np.float32)
    for row, image in zip(batch, drawn, strict=True):
        row[:, :, : image.shape[2]] = image
    return batch


def picture(word: str, fraktur: bool) -> np.ndarray:
    text = "".join(chr(FRAKTUR + ord(letter) - ord("a")) for letter in word) if fraktur else word
    font = ImageFont.truetype(FONTS / ("STIXGeneral.ttf" if fraktur else "DejaVuSans.ttf"), 34)
    image = Image.new("RGB", (font.getbbox(text)[2] + 16, HEIGHT), "white")
    ImageDraw.Draw(image).text((8, HEIGHT // 2), text, font=font, fill="black", anchor="lm")
    return np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1


def targets(words: list[str], characters: list[str]) -> np.ndarray:
    """Indices of characters, padded with -100."""
    labels = np.full((len(words), max(map(len, words))), -100)
    for row, word in zip(labels, words, strict=True):
        row[: len(word)] = [characters.index(letter) for letter in word]
    return labels


def probabilities(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """The file's own output, after its Softmax."""
    return outputs[list(outputs)[1]]


def torch_loss(outputs: dict[str, np.ndarray], data: dict[str, np.ndarray]) -> float:
    scores, labels = torch.from_numpy(next(iter(outputs.values()))), torch.from_numpy(data["labels"])
    lengths = (labels >= 0).sum(1)
    frames = torch.full((len(labels),), scores.shape[1])
    return float(
        torch.nn.functional.ctc_loss(scores.log_softmax(2).transpose(0, 1), labels.clamp(min=0), frames, lengths)
    )


if __name__ == "__main__":
    main()
