"""Options of the source and of the method, and the method that they choose."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from edgepeft.cli.choice import Choice
from edgepeft.cli.declared import Declared
from edgepeft.cli.options import names
from edgepeft.methods.registry import DEFAULT, METHODS
from edgepeft_export.losses.registry import LOSSES
from edgepeft_export.losses.registry import by_name as loss_by_name
from edgepeft_export.losses.weighted import is_sum

if TYPE_CHECKING:
    from edgepeft.methods import Method
    from edgepeft.sources.source import Source

F = TypeVar("F", bound=Callable[..., object])

METHOD, LOSS = Declared(METHODS), Declared(LOSSES)


def _loss(_context: click.Context, _option: click.Parameter, loss: str | None) -> str | None:
    """Refuse an unknown loss before a model is loaded."""
    if loss is not None and not loss.endswith(".onnx"):
        _ = loss_by_name(loss) if is_sum(loss) else LOSSES.find(loss)
    return loss


def source_options(command: F) -> F:
    """Add the source, the method with its settings, and the options of the loss and the outputs."""
    for option in (
        METHOD.settings,
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of new tensors' initial values."
        ),
        click.option(
            "--max-length", type=click.IntRange(2), help="Longest text in tokens.  [default: the model's, at most 128]"
        ),
        click.option(
            "--fixed-length",
            is_flag=True,
            help="Pad all texts to --max-length, for models that run for one length alone.",
        ),
        click.option(
            "--loss",
            metavar="NAME|SUM|FILE.onnx",
            callback=_loss,
            help=f"{', '.join(LOSSES)}, a sum such as 'cross_entropy(kind) + 0.3 * huber(size)', or a graph."
            "  [default: the source's]",
        ),
        click.option(
            "--outputs",
            metavar="A,B",
            callback=names,
            help="Outputs to keep, or any tensors of an .onnx; the loss reads the first.  [default: the model's]",
        ),
        click.option("--classes", metavar="A,B,C", callback=names, help="Names of the classes, by label."),
        click.option("--task", help="Task such as text-classification.  [default: the model directory's]"),
        click.option(
            "--method",
            type=Choice(list(METHODS)),
            help=f"Fine-tuning method.  [default: {DEFAULT} for a model directory or .gguf]",
        ),
        click.argument("source"),
    ):
        command = option(command)
    return command


def chosen_method(
    source: str, method: str | None, given: dict[str, object]
) -> tuple[Method | str | None, tuple[str, ...]]:
    """Return the method that the options choose, and patterns of the initializers of an ``.onnx`` file to train.

    The method ``None`` trains what the source itself marks as trainable. If the source is an adapter directory, only
    the name is returned: the adapter keeps its settings.

    Args:
        source: As on the command line.
        method: As on the command line.
        given: Settings of methods, by name.

    Raises:
        click.UsageError: The method does not have a setting, or the settings do not determine the method.
    """
    patterns = given.pop("train", ()) if source.endswith(".onnx") else ()
    assert isinstance(patterns, tuple)
    if is_adapter_directory(source) and not given:
        return method, patterns
    name = method or _default(source, given)
    return None if name is None else METHOD.make(name, given), patterns


def _default(source: str, given: Mapping[str, object]) -> str | None:
    """Return the method to use if none is named: the one that has all the settings that were given."""
    if not given:
        return DEFAULT if Path(source).is_dir() or source.endswith(".gguf") else None
    fitting = [name for name, cls in METHODS.items() if given.keys() <= cls.declared().keys()]
    if DEFAULT not in fitting and len(fitting) != 1:
        METHOD.refuse(next(iter(given)), "needs --method")
    return DEFAULT if DEFAULT in fitting else fitting[0]


def is_adapter_directory(source: str) -> bool:
    """Return whether the source is an adapter directory of peft, without importing torch."""
    path = Path(source)
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def loaded_source(
    source: str,
    *,
    task: str | None,
    classes: tuple[str, ...] | None,
    max_length: int | None,
    fixed_length: bool,
    seed: int,
    template: str | None = None,
) -> Source:
    """Call ``edgepeft.load_source`` without the warnings that libraries address to developers."""
    from edgepeft.sources.load import load_source

    warnings.filterwarnings("ignore", category=FutureWarning)
    return load_source(
        source,
        task=task,
        classes=classes,
        max_length=max_length,
        fixed_length=fixed_length,
        template=template,
        seed=seed,
    )
