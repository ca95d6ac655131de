"""``edgepeft train``."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepeft.cli.choice import Choice
from edgepeft.cli.device_rounds import TrainingStart, check_options
from edgepeft.cli.exit_codes import INTERRUPTED, UNFINISHED
from edgepeft.cli.limits import LimitReporter, Terminated, limit_options, limits, terminable
from edgepeft.cli.options import (
    adapter_of,
    byte_count,
    data_options,
    engine_option,
    metric_option,
    peft_adapter,
    provider_option,
    run_options,
    template_option,
)
from edgepeft.cli.paths import OUTPUT, PATH
from edgepeft.cli.screen.output import json_option, write_json
from edgepeft.cli.screen.progress import Counter
from edgepeft.cli.screen.verbosity import say
from edgepeft_runtime.engine.registry import CACHES, NO_CACHE
from edgepeft_runtime.errors import CannotWriteFile
from edgepeft_runtime.figures import number, percent, size
from edgepeft_runtime.files.durable import check_output
from edgepeft_runtime.train.schedule import NAMES

if TYPE_CHECKING:
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.data.datasets import Dataset
    from edgepeft_runtime.train.records import FitReport


def _warmup(_context: click.Context, _option: click.Parameter, text: str) -> int | float:
    """Parse a whole number as steps, and any other number as a fraction of all steps."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number.") from None


@click.command("train")
@click.argument("bundle", type=PATH, required=False)
@data_options
@template_option
@click.option("--adapter", type=PATH, help="Adapter of a later round to start from.")
@click.option(
    "--state",
    type=OUTPUT,
    help="Directory of the run; an existing run is resumed.  [default: UPDATE.state beside the update]",
)
@click.option(
    "--device",
    type=PATH,
    metavar="DEVICE_DIR",
    help="Device directory; train from the round that `edgepeft join` has fetched, within its limits.",
)
@click.option("--update", type=OUTPUT, required=True, help="File to write the update to.")
@click.option(
    "--validate", metavar="DATA|FRACTION", help="Held-out data, or the fraction of --data to hold out: 0.1 for a tenth."
)
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True, help="Passes over the data.")
@run_options
@engine_option
@provider_option
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Batches per optimizer step.")
@click.option("--lr", type=click.FloatRange(0.0), help="Highest learning rate.  [default: the bundle's]")
@click.option(
    "--schedule", type=Choice(NAMES), default=NAMES[0], show_default=True, help="Course of the learning rate."
)
@click.option(
    "--warmup",
    metavar="STEPS|FRACTION",
    callback=_warmup,
    default="0",
    show_default=True,
    help="Steps over which the learning rate rises, or their fraction of all steps.",
)
@metric_option(
    "Metric on the held-out data by which the adapter is chosen: as in `edgepeft evaluate`.  [default: the loss]"
)
@click.option(
    "--patience", type=click.IntRange(1), help="Stop after this many epochs without a better held-out result."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of shuffling and of --validate FRACTION."
)
@click.option("--save-every", type=click.IntRange(1), default=50, show_default=True, help="Steps between checkpoints.")
@click.option(
    "--cache",
    type=Choice(CACHES),
    default=NO_CACHE,
    show_default=True,
    help="Keep the activations of what is frozen in the state directory; later epochs start from them.",
)
@click.option(
    "--cache-size",
    "cache_bytes",
    metavar="2GB",
    callback=byte_count,
    default="2GiB",
    show_default=True,
    help="Largest size of the cache.",
)
@click.option("--max-steps", type=click.IntRange(1), help="Stop after this many optimizer steps.")
@json_option
@limit_options
def command(**options: Any) -> int:
    """Train BUNDLE's adapter on your data, and write an update to send back.

    On a device of a fleet, omit BUNDLE to train the one that `edgepeft join` has fetched.

    With held-out data, the adapter with the lowest held-out loss, or the best --metric, is kept.

    Ctrl-C, SIGTERM and the limits save the run between two steps; the same command resumes it, and with more --epochs
    it trains a complete run further. The update is written when the run is complete. If it is not, the exit code is 75,
    or 130 after Ctrl-C.
    """
    with terminable():
        try:
            return _train(**options)
        except Terminated:  # before or after the training itself: there is nothing to save
            return UNFINISHED


def _train(
    bundle: Path | None,
    data: Path,
    text_column: tuple[str, ...],
    label_column: str,
    template: str | None,
    adapter: Path | None,
    state: Path | None,
    device: Path | None,
    update: Path,
    validate: str | None,
    seed: int,
    threads: int | None,
    engine: str,
    provider: str | None,
    max_minutes: float | None,
    max_temperature: float | None,
    idle_only: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    from edgepeft.data import load
    from edgepeft_runtime.bundle.adapter_source import load_adapter
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.train.memory.peak import peak_memory
    from edgepeft_runtime.train.trainer import Trainer
    from edgepeft_runtime.train.update import changed_nothing, notice_unchanged

    _check_writable(update)
    check_options(bundle, device, adapter)
    device_limits = limits(max_minutes, max_temperature, idle_only)
    origin = TrainingStart.of(bundle, device, state, adapter, update)
    with ExitStack() as stack:
        stack.enter_context(origin.settling())
        opened = Bundle.open(origin.bundle)
        read = partial(load, bundle=opened, text_column=text_column, label_column=label_column, template=template)
        train, held_out = _data(read, data, validate, seed)
        adapter_of(adapter, opened)  # an update of another base is refused by name
        given = None if adapter is None else peft_adapter(adapter, opened)
        opening = partial(Trainer.open, opened, seed=seed, threads=threads, engine=engine, provider=provider)
        trainer = stack.enter_context(opening(state=origin.state, adapter=given or origin.adapter))
        start = time.monotonic()
        if trainer.steps:
            say(f"resuming from step {trainer.steps} in {origin.state}", err=True)
        elif state is None:
            say(f"the run is saved in {origin.state}; the same command resumes it", err=True)
        try:
            with Counter(silent=as_json) as counter:
                pause = LimitReporter(device_limits, counter)
                chosen = origin.limited(_in_micro_batches(settings, opened))
                callbacks = [*origin.callbacks(), counter]
                report = trainer.fit(train, validate=held_out, callbacks=callbacks, pause=pause, **chosen)
        except KeyboardInterrupt as interrupt:
            terminated = isinstance(interrupt, Terminated)
            _show_saved("terminated" if terminated else "\ninterrupted", trainer.steps, origin.state)
            return UNFINISHED if terminated else INTERRUPTED
        if pause.ended is not None:
            _show_saved(pause.ended, trainer.steps, origin.state)
            return UNFINISHED
        trainer.save_update(update)
        if changed_nothing(trainer.parameters(), load_adapter(opened, given or origin.adapter)[0]):
            notice_unchanged(f"The update {update}")
    seconds, peak = time.monotonic() - start, peak_memory()
    if as_json:
        write_json({"update": update, "state": origin.state, "seconds": seconds, "peak_bytes": peak, **vars(report)})
        return 0
    _print(report, update, settings["metric"])
    say(f"{seconds:.1f} s, at most {size(peak)} of memory")
    return 0


def _show_saved(why: str, steps: int, state: Path) -> None:
    say(f"{why} after step {steps}; the run is saved in {state}.", err=True)
    say("the same command resumes it.", err=True)


def _in_micro_batches(settings: dict[str, Any], bundle: Bundle) -> dict[str, Any]:
    """Return settings whose batches are no larger than the bundle allows, and accumulate more of them per step."""
    memory = bundle.manifest.memory
    micro, wanted = memory.micro_batch if memory is not None else None, settings["batch_size"]
    if micro is None or micro >= wanted:
        return settings
    return {**settings, "batch_size": micro, "accumulate": settings["accumulate"] * math.ceil(wanted / micro)}


def _data(
    load: Callable[[str | Path], Dataset], data: Path, validate: str | None, seed: int
) -> tuple[Dataset, Dataset | None]:
    """Return the data to train on and the held-out data."""
    from edgepeft.data import split

    dataset = load(data)
    if validate is None:
        return dataset, None
    fraction = None if Path(validate).exists() else _fraction(validate)
    if fraction is None and _fraction(validate.replace(",", ".")) is not None:
        raise click.BadParameter(f"write the fraction {validate} with a point.", param_hint="--validate")
    return (dataset, load(validate)) if fraction is None else split(dataset, fraction, seed)


def _fraction(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _check_writable(update: Path) -> None:
    """Check before hours of training that the result can be written."""
    check_output(update)
    folder = update.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise CannotWriteFile(
            f"The update cannot be written to {update}.",
            context=f"{folder} is not a writable folder.",
            hint="choose another file for --update, or create the folder.",
        )


def _print(report: FitReport, update: Path, metric: str | None) -> None:
    for record in report.history:
        held_out = ""
        if record.held_out_loss is not None:
            held_out = f"  held out {number(record.held_out_loss)}"
            held_out += "" if record.held_out_accuracy is None else f" ({percent(record.held_out_accuracy)} correct)"
        if record.held_out_metric is not None:
            held_out += f"  {metric} {number(record.held_out_metric)}"
        kept = "  <- kept" if record == report.best else ""
        say(f"epoch {record.epoch}  loss {number(record.loss)}{held_out}{kept}")
    say(f"{report.steps} steps, {report.examples} examples, stopped by {report.stopped}")
    say(f"update: {update} ({size(update.stat().st_size)})")
