"""Every method on every network: the table in ``docs/METHODS.md``.

A cell is supported where five steps have torch's losses (1e-4) and the update merged into ONNX has torch's outputs
(1e-4). ``python -m tests.matrix`` tries all of them and writes the page.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

import edgepeft
from edgepeft.compress import Pruning
from edgepeft.compress import prune as cut
from edgepeft.methods import Method, attach, by_name
from edgepeft.methods.registry import METHODS
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import EdgepeftError
from tests.support.exports import shared
from tests.support.networks import NETWORKS, Network, to_numpy, torch_loss
from tests.support.training import Trained, check_merged, train_both
from tests.zoo import convolution, recurrent, tabular, transformers

PAGE = Path(__file__).parents[1] / "docs" / "METHODS.md"
STEPS, LR = 5, 0.05
SPARSIFIED = "gradient_sparsification"

ALL: dict[str, Network] = {
    **{name: network for name, network in NETWORKS.items() if name != "minilm"},
    **transformers.NETWORKS,
    **convolution.NETWORKS,
    **recurrent.NETWORKS,
    **tabular.NETWORKS,
}
TITLES = {
    "bert": "encoder (BERT)",
    "gpt2": "decoder (GPT-2)",
    "llama": "decoder (Llama, grouped queries, rotary)",
    "neox": "decoder (GPT-NeoX)",
    "vit": "ViT",
    "cnn": "CNN (depthwise, batch norm, residual)",
    "t5": "translation (T5)",
    "m2m": "translation (M2M100)",
    "moe": "mixture of experts",
    "residual-cnn": "CNN (group norm, dilation, groups)",
    "lstm": "LSTM (2 layers, both directions, lengths)",
    "gru": "GRU (2 layers, both directions)",
    "cnn_gru": "CNN + GRU on frames",
    "mlp": "MLP on rows",
    "recommender": "recommender (tables + MLP)",
}
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"rank": 2} for name in ("lora", "rslora", "dora", "ffa", "shared")},
    **{name: {"tokens": 3} for name in ("prefix", "prompt", "ptuning")},
    "vera": {"rank": 4},
    "adapter": {"reduction": 4.0},
    "sift": {"rate": 0.05},
    "freeze": {"last_blocks": 1},
}
ROWS = (*METHODS, SPARSIFIED)

Change: TypeAlias = Callable[[int], None]


@dataclass(frozen=True)
class Cell:
    """What came of a method on a network: ``error`` is the reference of the error that refuses it."""

    method: str
    network: str
    error: str | None = None
    message: str = ""


def try_cell(method: str, name: str, folder: Path) -> Cell:
    """Train and merge, and compare with torch. A refusal is a result too."""
    torch.manual_seed(0)
    try:
        _check(method, ALL[name], folder)
    except EdgepeftError as error:
        return Cell(method, name, error.code, error.message)
    return Cell(method, name)


def _check(method: str, network: Network, folder: Path) -> None:
    oracles = {"sift": _check_sift, SPARSIFIED: _check_sparsified, "ffa": _check_frozen_a}
    if method in oracles:
        oracles[method](network, folder)
        return
    model = network.model()
    if method == "pruned":
        model, _ = cut(model, Pruning(weights=0.5))
    trained = train_both(attach(_method(method), model), network, folder, STEPS, LR)
    check_merged(trained, network, folder)


def _method(name: str) -> Method:
    return by_name(name, **SETTINGS.get(name, {}))


def _check_sift(network: Network, folder: Path) -> None:
    """The oracle: whole weights, whose gradients are zero outside the elements that were largest in the first batch."""
    method = _method("sift")
    bundle = _prepared(network, folder, method=method, optimizer=SGD(lr=LR, momentum=0.9))
    sparse = {spec.tensor for spec in Bundle.open(bundle).manifest.sparse}
    model = attach(method, network.model()).eval()
    masks: dict[str, torch.Tensor] = {}

    def keep_largest(_step: int) -> None:
        for name in sparse:
            gradient = model.get_parameter(name).grad
            if name not in masks:
                count = int(SETTINGS["sift"]["rate"] * gradient.numel()) + 1
                largest = gradient.abs().flatten().topk(count).indices
                masks[name] = torch.zeros(gradient.numel()).scatter(0, largest, 1.0).view_as(gradient)
            gradient *= masks[name]

    _compare(bundle, model, network, folder, keep_largest)


def _check_frozen_a(network: Network, folder: Path) -> None:
    """The oracle: the same pairs, and an optimizer without A."""
    bundle = _prepared(network, folder, method=_method("ffa"), optimizer=SGD(lr=LR, momentum=0.9))
    torch.manual_seed(0)
    model = attach(_method("ffa"), network.model()).eval()
    for name in Bundle.open(bundle).manifest.adapter.non_trainable:
        model.get_parameter(name).requires_grad_(False)
    _compare(bundle, model, network, folder, lambda _step: None)


def _check_sparsified(network: Network, folder: Path) -> None:
    """The oracle: the largest fifth of gradient plus memory reaches the optimizer, bucket by bucket."""
    method = (
        by_name("bitfit")
        if any(name.endswith(".bias") for name, _ in network.model().named_parameters())
        else _method("lora")
    )
    bundle = _prepared(network, folder, method=method, optimizer=SGD(lr=LR, momentum=0.9, gradient_fraction=0.2))
    torch.manual_seed(0)
    model = attach(method, network.model()).eval()
    buckets = Bundle.open(bundle).manifest.buckets
    memory = {bucket.name: torch.zeros(bucket.size) for bucket in buckets}

    def keep_largest(_step: int) -> None:
        for bucket in buckets:
            gradients = [model.get_parameter(name).grad for name in bucket.members]
            total = memory[bucket.name] + torch.cat([gradient.reshape(-1) for gradient in gradients])
            bound = total.abs().topk(max(1, round(0.2 * bucket.size))).values.min()
            applied = torch.where(total.abs() < bound, 0.0, total)
            memory[bucket.name] = total - applied
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, part in zip(gradients, applied.split(sizes), strict=True):
                gradient.copy_(part.view_as(gradient))

    _compare(bundle, model, network, folder, keep_largest)


def _prepared(network: Network, folder: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    out = folder / "bundle"
    return edgepeft.prepare(network.model(), network.example(), loss=network.loss, out=out, **settings).bundle


def _compare(bundle: Path, model: nn.Module, network: Network, folder: Path, change: Change) -> None:
    """Losses and merged outputs of the device and of torch, which changes its gradients before each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LR, momentum=0.9)
    with Trainer.open(bundle) as trainer:
        for step, (inputs, labels) in enumerate(network.batches(STEPS)):
            optimizer.zero_grad()
            loss = torch_loss(model, inputs, labels, network.loss)
            loss.backward()
            change(step)
            optimizer.step()
            found = trainer.step(to_numpy(inputs, labels))
            assert abs(found - loss.item()) <= 1e-4 * abs(loss.item()), (step, found, loss.item())
        update = trainer.save_update(folder / "update.safetensors")
    check_merged(Trained(bundle, update, model), network, folder)


def page(cells: list[Cell]) -> str:
    """The text of ``docs/METHODS.md``."""
    by_place = {(cell.method, cell.network): cell for cell in cells}
    reasons = list(dict.fromkeys((cell.error, cell.method, cell.message) for cell in cells if cell.error))
    lines = [
        "# Methods and networks",
        "",
        "Generated by `python -m tests.matrix`; `make slow` tests every cell.",
        "",
        "✓: five training steps have PyTorch's losses (1e-4 relative), and the update merged into an `.onnx` model has",
        "PyTorch's outputs (1e-4). Other cells contain the code of the error with the default settings.",
        "`edgepeft doctor MODEL --methods` checks your own model, and `edgepeft methods` lists the settings.",
        "",
        f"| network | {' | '.join(ROWS)} |",
        f"|---|{'---|' * len(ROWS)}",
    ]
    for name in ALL:
        found = [by_place[row, name] for row in ROWS]
        lines.append(f"| {TITLES[name]} | {' | '.join(cell.error or '✓' for cell in found)} |")
    lines += ["", "## Errors", ""]
    lines += [f"- `{error}`, {method}: {message}" for error, method, message in reasons]
    return "\n".join(lines) + "\n"


def expected(method: str, name: str) -> str | None:
    """The error that the page has for a cell; ``None`` where it is supported."""
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    columns = [part.strip() for part in rows[0].strip("|").split("|")]
    row = next(line for line in rows if line.startswith(f"| {TITLES[name]} |"))
    found = [part.strip() for part in row.strip("|").split("|")][columns.index(method)]
    return None if found == "✓" else found


def grid() -> Iterator[tuple[str, str]]:
    """Every cell."""
    return ((method, name) for name in ALL for method in ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    cells = []
    with tempfile.TemporaryDirectory() as exports, shared(Path(exports)):
        for method, name in grid():
            with tempfile.TemporaryDirectory() as folder:
                cells.append(try_cell(method, name, Path(folder)))
            print(f"{name:13} {method:24} {cells[-1].error or 'ok'}", flush=True)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(page([replace(cell, message=cell.message.rstrip(".")) for cell in cells]), encoding="utf-8")


if __name__ == "__main__":
    main()
