"""``edgepeft prepare``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from edgepeft.cli.choice import Choice
from edgepeft.cli.commands.export_ort_training import gradient_options, ort_training
from edgepeft.cli.compression import calibration, compression_options, quantization
from edgepeft.cli.compression import memory_budget as budget_of
from edgepeft.cli.declared import Declared, SectionedCommand
from edgepeft.cli.method import LOSS, METHOD, chosen_method, loaded_source, source_options
from edgepeft.cli.options import template_option
from edgepeft.cli.paths import OUTPUT, PATH
from edgepeft.cli.screen.output import json_option, write_json
from edgepeft.cli.screen.progress import Stages
from edgepeft.cli.screen.verbosity import say
from edgepeft_export.optimizers.registry import DEFAULT, OPTIMIZERS
from edgepeft_runtime.engine.registry import ENGINES, PORTABLE
from edgepeft_runtime.figures import size
from edgepeft_runtime.notices import notice

if TYPE_CHECKING:
    from edgepeft.compress import Pruning
    from edgepeft.preparation.calibration import Sample
    from edgepeft.sources.source import Source
    from edgepeft_export.losses import Loss
    from edgepeft_export.ort_training import OrtTraining
    from edgepeft_runtime.bundle.specs import TableSpec

OPTIMIZER = Declared(OPTIMIZERS)

BALANCED = "balanced"
"""The word for ``--class-weights``, and the name of the weights that devices count."""


@click.command("prepare", cls=SectionedCommand)
@source_options
@click.option("--out", type=OUTPUT, required=True, help="Directory of the bundle.")
@click.option("--optimizer", type=Choice(list(OPTIMIZERS)), default=DEFAULT, show_default=True, help="Update rule.")
@OPTIMIZER.settings
@LOSS.settings
@template_option
@compression_options
@click.option(
    "--table",
    type=PATH,
    metavar="DATA",
    help="Table of training data; its columns become the input, standardized by their means and deviations.",
)
@click.option("--engine", type=Choice(ENGINES), default=PORTABLE, help="Engine; ort-training adds its artifacts.")
@gradient_options
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@json_option
def command(
    source: str,
    out: Path,
    method: str | None,
    task: str | None,
    classes: tuple[str, ...] | None,
    outputs: tuple[str, ...] | None,
    loss: str | None,
    max_length: int | None,
    fixed_length: bool,
    template: str | None,
    seed: int,
    optimizer: str,
    prune: Pruning | None,
    weights: str | None,
    chunks: str,
    memory_budget: int | None,
    sizes: dict[str, int] | None,
    allow_depth: bool,
    allow_accuracy_loss: bool,
    compute: str,
    keep_fp32: tuple[str, ...],
    calibrate: Path | None,
    table: Path | None,
    text_column: tuple[str, ...],
    label_column: str,
    engine: str,
    gradient: str | None,
    training_python: Path | None,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Compile SOURCE into a bundle that a device trains with onnxruntime alone.

    SOURCE is a Hugging Face model directory, a .gguf file, an .onnx file, or package.module:function (file.py:function)
    that returns a model and example inputs.
    """
    chosen, train = chosen_method(source, method, METHOD.given(settings))
    quantized = quantization(compute, keep_fp32, settings)
    from edgepeft.preparation.options import Compression, Interface, Preprocessing
    from edgepeft.preparation.prepare import prepare
    from edgepeft_export.bundle import check_target

    check_target(out, overwrite)
    with Stages(silent=as_json) as stages:
        stages(f"loading {source}")
        loaded = loaded_source(
            source,
            task=task,
            classes=classes,
            max_length=max_length,
            fixed_length=fixed_length,
            template=template,
            seed=seed,
        )
        columns = (text_column, label_column)
        prepared = prepare(
            loaded,
            out=out,
            method=chosen,
            loss=_loss(loss, loaded, LOSS.given(settings), _Labelled(train, columns, calibrate or table)),
            optimizer=OPTIMIZER.make(optimizer, OPTIMIZER.given(settings)),
            compute=quantized,
            trainable=train,
            compression=Compression(
                prune,
                calibration(loaded, calibrate, loss or loaded.loss, train, columns),
                weights,
                chunks,
                budget_of(loaded, memory_budget, sizes, allow_depth),
                allow_accuracy_loss,
            ),
            preprocessing=None if table is None else Preprocessing(table=_standardization(table, label_column)),
            interface=Interface(outputs=outputs),
            engine=_engine(engine, gradient, training_python),
            overwrite=overwrite,
            on_progress=stages,
        )
    total = sum(file.stat().st_size for file in prepared.bundle.rglob("*") if file.is_file())
    if as_json:
        write_json({"bytes": total, **vars(prepared)})
        return
    say(f"{prepared.bundle}: {prepared.trainable:,} trainable elements; {size(total)}")
    for name in prepared.unreached:
        say(f"the loss does not depend on {name}: it stays frozen", err=True)


def _engine(name: str, gradient: str | None, training_python: Path | None) -> str | OrtTraining:
    if name == PORTABLE:
        if gradient is not None or training_python is not None:
            raise click.UsageError("--gradient and --training-python require --engine ort-training.")
        return name
    return ort_training(gradient, training_python)


class _Labelled(NamedTuple):
    """Labelled data on the workstation, and how it is read."""

    trainable: tuple[str, ...]
    columns: tuple[tuple[str, ...], str]
    data: Path | None

    def counted(
        self, count: Callable[[Sample], tuple[float, ...]], source: Source, loss: str, what: str
    ) -> tuple[float, ...]:
        """Return weights that a function counts in the data, and report them."""
        from edgepeft.preparation.calibration import Sample

        assert self.data is not None
        weights = count(Sample(source, self.data, loss, self.trainable, *self.columns))
        notice(f"weights of {what}, counted in {self.data}: {', '.join(f'{weight:.3g}' for weight in weights)}.")
        return weights


def _loss(name: str | None, source: Source, given: dict[str, object], labelled: _Labelled) -> str | Loss | None:
    """Return the loss with the settings that were given; without any, the name or file is returned unchanged."""
    if not given:
        return name
    for key, count in (("class_weights", _class_weights), ("pos_weight", _pos_weight)):
        if given.get(key) == BALANCED:
            others = {other: value for other, value in given.items() if other != key}
            given = {**others, **count(source, name or source.loss, labelled)}
    from edgepeft_export.losses import by_name
    from edgepeft_export.losses.weighted import is_sum

    if name is not None and is_sum(name):
        return by_name(name, **given)
    usual = source.loss_settings if name in (None, source.loss) else {}
    return LOSS.make(name or source.loss, {**usual, **given})


def _class_weights(source: Source, loss: str, labelled: _Labelled) -> dict[str, object]:
    """Return the setting that weights all classes equally: in data that is here, else in that of the device."""
    if labelled.data is None:
        notice("the weights of the classes are counted in the data on the device: --calibrate DATA counts them here.")
        return {"example_weights": BALANCED}
    from edgepeft.preparation.calibration import balanced_class_weights

    return {"class_weights": labelled.counted(balanced_class_weights, source, loss, "classes")}


def _pos_weight(source: Source, loss: str, labelled: _Labelled) -> dict[str, object]:
    """Return the setting that weights the positive and the negative examples of each label equally."""
    if labelled.data is None:
        raise click.UsageError("--pos-weight balanced needs data to count in: --calibrate DATA.")
    from edgepeft.preparation.calibration import balanced_pos_weight

    return {"pos_weight": labelled.counted(balanced_pos_weight, source, loss, "positive labels")}


def _standardization(table: Path, label_column: str) -> TableSpec:
    from edgepeft.data import standardization

    return standardization(table, label_column=label_column)
