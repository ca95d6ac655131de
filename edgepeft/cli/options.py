"""Arguments and options that several commands share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepeft.cli.choice import Choice
from edgepeft.cli.declared import F, split_names
from edgepeft.cli.errors import ForeignAdapter
from edgepeft.cli.paths import PATH
from edgepeft.errors import NoAdapterDirectory
from edgepeft_runtime.engine.registry import ENGINES, PORTABLE
from edgepeft_runtime.names import some

if TYPE_CHECKING:
    from edgepeft_runtime.bundle.adapter_source import AdapterSource
    from edgepeft_runtime.bundle.bundle import Bundle

_MEANING = (
    "peft_type",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "feedforward_modules",
    "scaling",
    "num_virtual_tokens",
)
"""Settings of peft beside those named alpha that decide what an adapter's tensors do."""


def names(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """Parse an option of names, separated by commas."""
    return None if text is None else split_names(text)


def sizes(_context: click.Context, _option: click.Parameter, text: str | None) -> dict[str, int] | None:
    """Parse an option of sizes of dimensions: ``batch=8,sequence=64``."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and size.strip().isdecimal() for name, _, size in pairs):
        raise click.BadParameter(f"{text!r} is not like batch=8,sequence=64.")
    return {name.strip(): int(size) for name, _, size in pairs}


def byte_count(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """Parse an option of bytes: ``256MB``, ``1.5GB``, ``200MiB``."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)(i?)B?", text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not like 256MB.")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kMG".index(prefix or " "))


bundle_argument = click.argument("bundle", type=PATH)


def column_options(command: F) -> F:
    """Add the names of the columns of a table."""
    for option in (
        click.option("--label-column", default="label", show_default=True, help="Column of the labels in a table."),
        click.option(
            "--text-column",
            metavar="A[,B]",
            default="text",
            show_default=True,
            callback=names,
            help="Column of the texts in a table; two columns for pairs of texts.",
        ),
    ):
        command = option(command)
    return command


def data_options(command: F) -> F:
    """Add ``--data`` and the names of its columns."""
    return click.option(
        "--data",
        type=PATH,
        required=True,
        help="File (.npz, .csv, .tsv, .jsonl, .json, .parquet), or folder with one folder of images per class.",
    )(column_options(command))


def _template(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """Parse a template as it is typed in a shell: ``\\n`` ends a line."""
    return None if text is None else text.replace("\\n", "\n")


template_option = click.option(
    "--template",
    metavar="TEXT",
    callback=_template,
    help="Text around a prompt, which replaces {prompt}; \\n ends a line.  [default: the bundle's]",
)


def run_options(command: F) -> F:
    """Add ``--batch-size`` and ``--threads``."""
    for option in (
        click.option("--threads", type=click.IntRange(1), help="Threads of onnxruntime.  [default: all cores]"),
        click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Examples per batch."),
    ):
        command = option(command)
    return command


engine_option = click.option(
    "--engine",
    type=Choice(ENGINES),
    default=PORTABLE,
    show_default=True,
    help="Engine; ort-training runs the official artifacts and needs edgepeft[ort-training].",
)


provider_option = click.option(
    "--provider",
    metavar="NAME",
    help="Execution provider of onnxruntime, or the Python package of a plug-in such as onnxruntime_ep_webgpu; it runs "
    "the programs in which it agrees with the CPU.  [default: the CPU]",
)


adapter_option = click.option(
    "--adapter", type=PATH, help="Update or adapter.safetensors to use instead of the bundle's own adapter."
)

device_option = click.option(
    "--device", type=PATH, required=True, metavar="DEVICE_DIR", help="Device directory: identity, rounds, runs."
)

workspace_option = click.option(
    "--workspace", type=PATH, required=True, metavar="WORKSPACE", help="Workspace of the fleet's host."
)

ca_option = click.option("--ca-file", type=PATH, help="Certificates (PEM) to trust instead of the system's.")


def _metric(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
    """Refuse an unknown metric before a bundle is opened."""
    from edgepeft_runtime.metrics.registry import metric_of

    if name is not None:
        metric_of(name)
    return name


def _metrics(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse unknown metrics."""
    for name in given:
        _metric(context, option, name)
    return given


_METRICS = "accuracy, f1, precision, recall, auc, recall@5, confusion, perplexity, mae, rmse, r2, entity_f1, cer or wer"

metrics_option = click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    callback=_metrics,
    help=f"Metric to print besides the loss: {_METRICS}; may be repeated.",
)


def metric_option(help: str) -> Callable[[F], F]:
    """Return a decorator that adds ``--metric`` with one metric."""
    return click.option("--metric", metavar="NAME", callback=_metric, help=help)


def adapter_of(path: Path | None, bundle: Bundle) -> AdapterSource | None:
    """Return the adapter of ``--adapter`` for a trainer; an update of another base is refused."""
    from edgepeft_runtime.files.tensorfile import read_tensors
    from edgepeft_runtime.train.update import FORMAT, check_update, naming, read_update

    if path is not None and (peft := peft_adapter(path, bundle)) is not None:
        return peft
    if path is None or read_tensors(path).metadata.get("format") != FORMAT:
        return path
    update = read_update(path)
    # An adapter of an earlier round may be inspected too: only its base must be this bundle's.
    with naming(path):
        check_update(update, bundle, adapter_sha256=update.adapter_sha256)
    return update.parameters


def peft_adapter(path: Path, bundle: Bundle) -> AdapterSource | None:
    """Return the bundle's parameters from a peft adapter (directory or safetensors); ``None`` for other files.

    Raises:
        EdgepeftError: The adapter has other tensors than the bundle, or settings with which they mean another change.
    """
    from edgepeft_runtime.files.tensorfile import read_tensors

    file = path / "adapter_model.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise NoAdapterDirectory(
            f"{path} contains no adapter.",
            context=f"{file.name} is missing",
            hint="pass an update, an aggregate, or an adapter directory that peft has saved as safetensors.",
        )
    known: dict[str, Any] = bundle.manifest.provenance.get("peft", {})
    keys: dict[str, str] = known.get("keys", {})
    tensors = read_tensors(file).tensors
    if not path.is_dir() and not tensors.keys() & set(keys.values()) - keys.keys():
        return None
    missing = [key for key in keys.values() if key not in tensors]
    if missing or not keys:
        raise _foreign(
            f"The adapter {path} does not contain the bundle's parameters.",
            f"missing: {some(missing, 3)}" if keys else "The bundle was not prepared from a PEFT model.",
        )
    others = tensors.keys() - set(keys.values()) - set(known.get("tied", {}))
    if others:
        raise _foreign(f"The adapter {path} has tensors that the bundle does not train.", some(sorted(others), 3))
    if path.is_dir():
        _check_settings(path, known.get("config", {}))
    return {name: tensors[key] for name, key in keys.items()}


def _check_settings(path: Path, ours: Mapping[str, Any]) -> None:
    """Refuse an adapter whose tensors are scaled or used otherwise than the bundle's, by ``adapter_config.json``."""
    try:
        theirs = json.loads((path / "adapter_config.json").read_text("utf-8"))
        names = [name for name in ours if name in theirs and ("alpha" in name or name in _MEANING)]
        differing = [f"{name}: {theirs[name]} (bundle: {ours[name]})" for name in names if theirs[name] != ours[name]]
    except (OSError, ValueError, TypeError) as failure:
        raise _foreign(f"The settings of the adapter {path} cannot be read.", str(failure)) from failure
    if differing:
        raise _foreign(f"The adapter {path} has other settings than the bundle.", "; ".join(differing))


def _foreign(message: str, context: str) -> ForeignAdapter:
    return ForeignAdapter(
        message, context=context, hint="prepare the adapter directory itself: edgepeft prepare ADAPTER --out BUNDLE."
    )
