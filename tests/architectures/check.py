"""Trains a model directory by edgepeft and by transformers, and compares losses and merged outputs."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edgepeft
from edgepeft.methods import attach, by_name
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import LabelSpec, TensorSpec
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.files.tensorfile import read_tensors
from tests.architectures.configs import SMALL, Case, config_of

STEPS, LR, TOLERANCE = 5, 1e-3, 1e-4
EPS = 1e-5
"""AdamW's, so that a gradient that is 0 but for rounding (a bias before a softmax) does not become a step."""

Array = NDArray[Any]

_ASKED = {"image-text": {"return_loss": True}}
"""Arguments by which transformers computes a loss without labels."""

_LABELS = {"time-series-prediction": {"labels": "future_values"}}
"""Arguments of transformers for a label, where they have another name."""


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        status: ``right``, ``refused`` (with the code of the error), ``wrong`` or ``failed``.
        task: The task that the directory names.
        detail: Largest relative difference of a loss and of merged outputs, or the message.
    """

    status: str
    task: str
    detail: str


def check(case: Case) -> Result:
    """Prepare, train and merge a case. What edgepeft refuses is a result; other exceptions are failures."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _checked(case, Path(folder))
        except EdgepeftError as error:
            text = " ".join(f"{error.message} {error.context or ''}".split()).replace(f"{folder}/", "")
            return Result(f"refused {error.code}", case.task or "", text[:300])
        except Exception as error:  # whatever transformers raises
            return Result("failed", case.task or "", " ".join(f"{type(error).__name__}: {error}".split())[:300])


def _checked(case: Case, folder: Path) -> Result:
    model = write(case, folder / "model")
    source = edgepeft.load_source(model, task=case.task, max_length=case.fixed, fixed_length=case.fixed is not None)
    edgepeft.prepare(
        source,
        method=case.method,
        optimizer=AdamW(lr=LR, eps=EPS, weight_decay=0.0),
        out=folder / "bundle",
        generation=False,
    )
    bundle = Bundle.open(folder / "bundle")
    reference = _reference(case, model, bundle)
    feeds = list(batches(bundle.manifest, STEPS))
    if case.ends:
        _end(feeds)
    expected = list(_losses(reference, bundle.manifest, feeds))
    with Trainer.open(bundle) as trainer:
        found = [trainer.step(feed) for feed in feeds]
        update = trainer.save_update(folder / "update.safetensors")
    loss = max(abs(a - b) / max(abs(b), 1e-3) for a, b in zip(found, expected, strict=True))
    merged = edgepeft.merge(bundle, update, to="onnx", out=folder / "merged.onnx")
    output = _distance(merged, source.model, reference, feeds[0])
    detail = f"loss {loss:.1e}, merged {output:.1e}"
    return Result("right" if max(loss, output) <= TOLERANCE else "wrong", source.task or "", detail)


def write(case: Case, folder: Path) -> Path:
    """Write the directory of a model with random weights."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = getattr(transformers, case.name)(config_of(case)).eval()
    with torch.no_grad():  # zeros and ones hide errors
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if case.processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(case.processor))
    return folder


def _reference(case: Case, folder: Path, bundle: Bundle) -> nn.Module:
    """Return transformers' own class with the bundle's adapter."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, case.name).from_pretrained(folder, dtype=torch.float32)
    model = attach(by_name(case.method), model).eval()
    tensors = read_tensors(bundle.file("adapter.safetensors")).tensors
    state = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    return model


def _losses(model: nn.Module, manifest: Manifest, feeds: list[dict[str, Array]]) -> Iterator[float]:
    """Yield the losses that transformers computes, with AdamW on what trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, eps=EPS, weight_decay=0.0)
    names = _LABELS.get(manifest.task or "", {})
    for feed in feeds:
        optimizer.zero_grad()
        fed = {names.get(name, name): torch.from_numpy(array) for name, array in feed.items()}
        loss = model(**fed, **_ASKED.get(manifest.task or "", {})).loss
        loss.backward()
        optimizer.step()
        yield loss.item()


def batches(manifest: Manifest, count: int) -> Iterator[dict[str, Array]]:
    """Yield batches of changing sizes: token ids with padding, random values, labels."""
    for index in range(count):
        draw = np.random.default_rng(index)
        sizes = {name: _size(name, index) for name in manifest.dimensions}
        feed = {spec.name: _input(spec, sizes, draw) for spec in manifest.inputs}
        _pad(feed, manifest)
        feed |= {spec.name: _label(spec, manifest, sizes, feed, draw) for spec in manifest.labels}
        yield feed


def _size(name: str, index: int) -> int:
    if name == "batch":
        return 2 + index % 3
    return {"samples": 3000 + 320 * index, "decoder_sequence": 4 + index % 3}.get(name, 6 + 2 * (index % 3))


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes.get(dim, 2) if isinstance(dim, str) else dim for dim in spec.shape)


def _input(spec: TensorSpec, sizes: Mapping[str, int], draw: np.random.Generator) -> Array:
    shape = _shape(spec, sizes)
    if spec.dtype.startswith("float"):
        return draw.standard_normal(shape).astype(spec.dtype)
    if "mask" in spec.name:
        return np.ones(shape, spec.dtype)
    return draw.integers(4, 101, shape).astype(spec.dtype)


def _pad(feed: dict[str, Array], manifest: Manifest) -> None:
    """Let the last example end two tokens earlier."""
    mask, ids = feed.get("attention_mask"), feed.get("input_ids")
    if mask is not None and ids is not None and manifest.text is not None:
        mask[-1, ..., -2:] = 0
        ids[-1, ..., -2:] = manifest.text.pad_id


def _end(feeds: list[dict[str, Array]]) -> None:
    """Let each text end with the token of that meaning: 2 in small configurations."""
    for feed in feeds:
        lengths = feed["attention_mask"].sum(1)
        feed["input_ids"][np.arange(len(lengths)), lengths - 1] = SMALL["eos_token_id"]


def _label(
    spec: LabelSpec, manifest: Manifest, sizes: Mapping[str, int], feed: dict[str, Array], draw: np.random.Generator
) -> Array:
    shape = _shape(spec, sizes)
    if spec.dtype.startswith("float"):
        return draw.random(shape).astype(spec.dtype)
    if manifest.loss.kind == "causal_lm":
        labels = feed["input_ids"].copy()
    else:
        least = 1 if manifest.loss.kind == "ctc" else 0  # 0 is the blank
        labels = draw.integers(least, spec.classes or sizes.get("sequence", 4) - 3, shape).astype(spec.dtype)
    mask = feed.get("attention_mask")
    if mask is not None and mask.shape == labels.shape and spec.ignore_index is not None:
        labels[mask == 0] = spec.ignore_index
    return labels


def _distance(merged: Path, model: nn.Module, reference: nn.Module, feed: dict[str, Array]) -> float:
    """Return the largest relative difference of the merged file's outputs from those of the trained model."""
    session = onnxruntime.InferenceSession(merged)
    fed = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    arrays = {name: array for name, array in feed.items() if name in fed}
    found = session.run(None, arrays)
    inner = reference.get_base_model() if hasattr(reference, "get_base_model") else reference
    inner.__class__ = type(model)  # the head of the task, if it has one
    with torch.no_grad():
        result = reference(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    worst = 0.0
    for name, array in zip(names, found, strict=True):
        expected = _named(result, name)
        kept = _kept(feed, array.shape)
        assert array.shape == expected.shape
        worst = max(worst, float(np.abs(array - expected)[kept].max() / max(1.0, np.abs(expected[kept]).max())))
    return worst


def _named(result: Mapping[str, Tensor], name: str) -> Array:
    return result[name].numpy()


def _kept(feed: dict[str, Array], shape: tuple[int, ...]) -> Any:
    """Return what of an output is no padding."""
    mask = feed.get("attention_mask")
    return mask != 0 if mask is not None and shape[: mask.ndim] == mask.shape else ...
