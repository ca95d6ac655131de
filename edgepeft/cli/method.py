"""Options that say what trains, and the method they come to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgepeft.cli.method_settings import configured
from edgepeft.cli.options import names
from edgepeft.methods.registry import METHODS

if TYPE_CHECKING:
    from edgepeft.methods import Method
    from edgepeft.sources.load import Source

F = TypeVar("F", bound=Callable[..., Any])

_SETTINGS = {"lora": ("rank", "alpha", "target_modules"), "freeze": ("train", "freeze")}
"""The options that belong to a method."""


def source_options(command: F) -> F:
    """What is prepared, and what of it trains."""
    for option in (
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of new tensors' first values."
        ),
        click.option(
            "--max-length", type=click.IntRange(2), help="Longest text in tokens.  [default: the model's, at most 128]"
        ),
        click.option(
            "--loss", metavar="NAME|FILE.onnx", help="cross_entropy, causal_lm, mse, l1, bce_with_logits, or a graph."
        ),
        click.option(
            "--outputs",
            metavar="A,B",
            callback=names,
            help="Outputs to keep, or any tensors of an .onnx; the loss reads the first.  [default: the model's]",
        ),
        click.option("--classes", metavar="A,B,C", callback=names, help="Names of the classes, by label."),
        click.option("--task", help="text-classification, causal-lm, …  [default: what the model directory says]"),
        click.option(
            "--freeze", metavar="PATTERN", multiple=True, help="Freeze what matches; again for more patterns."
        ),
        click.option(
            "--train",
            metavar="PATTERN",
            multiple=True,
            help="Train what matches: parameters, modules, or initializers of an .onnx.",
        ),
        click.option(
            "--target-modules",
            metavar="A,B,C",
            callback=names,
            help="Modules that get LoRA pairs.  [default: peft's choice]",
        ),
        click.option("--alpha", type=float, help="Scale of LoRA.  [default: twice the rank]"),
        click.option("--rank", type=click.IntRange(1), help="Rank of LoRA.  [default: 8]"),
        click.option(
            "--method", type=click.Choice(list(METHODS)), help="What trains.  [default: lora for a model directory]"
        ),
        click.option(
            "--setting",
            "method_settings",
            metavar="NAME=VALUE",
            multiple=True,
            help="A setting of the method, as rate=0.02; again for more. `edgepeft methods` lists them.",
        ),
        click.argument("source"),
    ):
        command = option(command)
    return command


def chosen_method(
    source: str, method: str | None, given: dict[str, Any], settings: Sequence[str] = ()
) -> Method | str | None:
    """The method that the options come to; ``None`` takes what the source itself marks as trainable.

    The name alone is that of the adapter which the source is: it trains on with the settings it has.

    Args:
        source: as on the command line.
        method: as on the command line.
        given: the options of all methods by name; what was left out is ``None`` or empty.
        settings: further settings of the method, ``name=value``.

    Raises:
        click.UsageError: an option that does not belong to the method.
    """
    set_ = {name: value for name, value in given.items() if value not in (None, ())}
    if settings and method is None:
        raise click.UsageError("--setting goes with --method.")
    if method == "sift" and source.endswith(".onnx"):
        _refuse(set_, ("train",), "--method sift")
        return configured("sift", {}, settings)
    if source.endswith(".onnx"):
        # Its initializers are named by --train; of the methods, LoRA alone is attached on a graph.
        if method not in (None, "lora"):
            raise click.UsageError(
                f"--method {method} needs a torch model; an .onnx file takes --method lora, or --train."
            )
        _refuse(set_, ("train", *_SETTINGS["lora"]), "an .onnx file")
        options = {name: value for name, value in set_.items() if name != "train"}
        if method is None and not options:
            return None
        return configured("lora", options, settings)
    if is_adapter_directory(source) and not set_ and not settings:
        return method
    if method is None:
        if set_.keys() & set(_SETTINGS["freeze"]):
            method = "freeze"
        elif Path(source).is_dir() or set_:
            method = "lora"
        else:
            return None
    _refuse(set_, _SETTINGS.get(method, ()), f"--method {method}")
    return configured(method, set_, settings)


def is_adapter_directory(source: str) -> bool:
    """Whether the source is an adapter of peft, told without importing torch."""
    path = Path(source)
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def loaded_source(source: str, **settings: Any) -> Source:
    """``edgepeft.load_source`` without the warnings that libraries address to their programmers."""
    from edgepeft.sources.load import load_source

    warnings.filterwarnings("ignore", category=FutureWarning)
    return load_source(source, **settings)


def _refuse(given: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in given:
        if name not in known:
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with {what}.")
