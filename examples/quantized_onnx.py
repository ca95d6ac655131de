"""Fine-tune models that exist only as quantized ``.onnx`` files, with LoRA attached to their graphs.

The files are made with ``onnxruntime.quantization``: one in calibrated QDQ format with 8-bit weights and activations,
one with dynamically quantized activations, and one with 4-bit blocks. Each is prepared, fine-tuned on inverted and
rotated digits, and merged into an ``.onnx`` file. The quantized bytes do not change.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from device import parse_device_python, run
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from shifted_digits import Digits, learn, load
from torch import Tensor, nn

import edgepeft
from edgepeft_export.optimizers import AdamW

SOURCES = ("qdq", "dynamic", "int4")


def main() -> None:
    device = parse_device_python(__doc__ or "")
    logging.disable(logging.WARNING)  # the quantizers talk about every node
    torch.manual_seed(0)
    home, away, test = load()
    model = Patches().eval()
    learn(model, home)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        np.savez(work / "train.npz", image=away[0], labels=away[1])
        export(model, work / "fp32.onnx")
        quantize(work, home)
        rows = [adapt(work / f"{name}.onnx", work, device, test) for name in SOURCES]
        print(f"{'file':9} {'before':>7} {'after':>7} {'integer tensors':>15} {'their bytes':>12}")
        for row in rows:
            print("{:9} {:7.3f} {:7.3f} {:15} {:>12}".format(*row))


class Patches(nn.Module):
    """Rows of an image, each embedded by a convolution, mixed by linear layers: 79,050 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.mix = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(16 * 64, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        rows = self.stem(image).flatten(2).transpose(1, 2)
        return self.head(self.dense(self.mix(rows)))


def export(model: nn.Module, path: Path) -> None:
    axes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (torch.zeros(2, 1, 8, 8),), path, dynamic_shapes=axes, opset_version=18, verbose=False)
    file = onnx.load(path)
    del file.graph.value_info[:]  # onnxruntime's quantizers infer shapes again
    onnx.save(file, path)


def quantize(work: Path, home: Digits) -> None:
    """The files that this story starts from."""
    source = work / "fp32.onnx"
    quantize_static(
        source, work / "qdq.onnx", Reader(home), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8,
        reduce_range=True, per_channel=True,
    )  # fmt: skip
    quantize_dynamic(source, work / "dynamic.onnx", weight_type=QuantType.QUInt8)
    blocks = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=True, accuracy_level=4)
    blocks.process()
    blocks.model.save_model_to_file(str(work / "int4.onnx"))


class Reader(CalibrationDataReader):
    """Digits as they are: what the ranges of the activations are taken from."""

    def __init__(self, home: Digits) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"image": home[0][:256]}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def adapt(source: Path, work: Path, device: Path, test: Digits) -> tuple[str, float, float, int, str]:
    """Prepare, fine-tune, merge: name, accuracy before and after, integer tensors, whether their bytes are the same."""
    name = source.stem
    bundle, update, merged = work / f"{name}.bundle", work / f"{name}.safetensors", work / f"{name}.merged.onnx"
    prepared = edgepeft.prepare(source, method=edgepeft.Lora(rank=8), optimizer=AdamW(lr=5e-3), out=bundle)
    print(f"workstation: prepared {source.name}; {prepared.trainable:,} parameters train")
    run(
        device, "train", bundle, "--data", work / "train.npz", "--state", work / f"{name}.state", "--update", update,
        "--epochs", "20", "--batch-size", "32", "--schedule", "cosine",
    )  # fmt: skip
    edgepeft.merge(bundle, update, to="onnx", out=merged)
    before, after = integers(source), integers(merged)
    same = before <= after
    assert before and same
    return name, accuracy(source, test), accuracy(merged, test), len(before), "identical" if same else "changed"


def accuracy(model: Path, test: Digits) -> float:
    images, labels = test
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores = session.run(None, {"image": images})[0]
    return float((scores.argmax(1) == labels).mean())


def integers(model: Path) -> set[bytes]:
    """The contents of the matrices and kernels that are kept in 4 or 8 bits."""
    kinds = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}
    tensors = [value.const_value for value in ir.load(model).graph.initializers.values()]
    return {t.tobytes() for t in tensors if t is not None and t.dtype in kinds and len(t.shape) > 1}


if __name__ == "__main__":
    main()
