"""Prepare a bundle from a model: method, forward graph, loss, backward pass, optimizer, files."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn

from edgepeft.errors import WrongClassNames
from edgepeft.garbage import rarely_collected
from edgepeft.methods import Method
from edgepeft.preparation.accuracy import check, measure
from edgepeft.preparation.attachment import Attachment, attach_source
from edgepeft.preparation.generation import generation_spec, with_cache
from edgepeft.preparation.memory_budget import StepPlan, plan_for
from edgepeft.preparation.options import Compression, Interface, Preprocessing, given
from edgepeft.preparation.ranks import notice_ranks
from edgepeft.preparation.trial import Trial
from edgepeft.sources.class_names import class_names
from edgepeft.sources.directories.text_processor import read_tokenizer_file
from edgepeft.sources.load import load_source
from edgepeft.sources.source import Source
from edgepeft_export import losses, optimizers
from edgepeft_export.autodiff import MissingRule
from edgepeft_export.bundle import Extras, check_target, write_bundle
from edgepeft_export.compile import compile_step, missing_rules
from edgepeft_export.errors import BadExampleInputs
from edgepeft_export.forward import Forward
from edgepeft_export.forward.head import probabilities, with_scores
from edgepeft_export.forward.tables import with_table_limits
from edgepeft_export.forward.torch_source.export import ExampleInputs
from edgepeft_export.forward.torch_source.own_loss import from_function
from edgepeft_export.ort_training import OrtTraining, export_ort_training
from edgepeft_export.quantize import Quantization, QuantizedTensor, quantize
from edgepeft_runtime.bundle.specs import Dimension, TextSpec
from edgepeft_runtime.engine.registry import ORT_TRAINING, PORTABLE, check_engine
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.notices import notice

_LOG = logging.getLogger(__name__)

LossLike: TypeAlias = str | losses.Loss | Callable[..., Tensor] | Path
Model: TypeAlias = nn.Module | Source | str | Path


@dataclass(frozen=True)
class Prepared:
    """The result of ``prepare``.

    Attributes:
        bundle: The directory.
        trainable: Number of elements that train.
        unreached: Names of trainable parameters on which the loss does not depend; they stay frozen.
        quantized: The source of each quantized tensor, by its name.
        kept: Why each frozen tensor of the smallest size or more stayed fp32, by its name.
    """

    bundle: Path
    trainable: int
    unreached: tuple[str, ...]
    quantized: Mapping[str, QuantizedTensor] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """The result of ``doctor``.

    Attributes:
        trainable: Shapes of the parameters that would train, by name.
        missing_rules: Operators before the loss without a gradient rule; empty if the model can be prepared.
    """

    trainable: Mapping[str, tuple[int, ...]]
    missing_rules: tuple[MissingRule, ...]


@rarely_collected()
def prepare(
    model: Model,
    example_inputs: ExampleInputs | None = None,
    *,
    out: str | Path,
    method: str | Method | None = None,
    loss: LossLike | None = None,
    optimizer: str | optimizers.Optimizer = "adamw",
    compute: str | Quantization = "fp32",
    trainable: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    compression: Compression | None = None,
    preprocessing: Preprocessing | None = None,
    interface: Interface | None = None,
    generation: bool | None = None,
    engine: str | OrtTraining = PORTABLE,
    overwrite: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Prepared:
    """Prepare a model for fine-tuning on a device.

    Args:
        model: A torch module, a ``peft.PeftModel``, a Hugging Face model directory, a ``.gguf`` file, an ``.onnx``
            file, or a ``Source``.
        example_inputs: Arguments of ``forward``; needed for a torch module. For an ``.onnx`` file, inputs by name for
            its comparison, if generated ones do not fit.
        out: The bundle's directory.
        method: Which parameters train: ``lora``, ``bitfit``, ``head``, ``freeze``, ``full``, or a method with settings.
            ``None`` uses the ``requires_grad`` flags as they are. ``lora``, ``rslora``, ``ffa``, ``sift``,
            ``bitfit``, ``norm`` and ``head`` also accept an ``.onnx`` file.
        loss: A name, a loss with settings, a torch function ``(outputs and labels by name) -> mean loss``, or the path
            of an ONNX model with the same meaning. By default the loss of the source; ``cross_entropy`` for a module.
        optimizer: ``adamw``, ``sgd``, or an optimizer with settings.
        compute: ``fp32``, ``int8``, ``int4``, or a ``Quantization`` with settings: how the frozen weights are
            quantized.
        trainable: For an ``.onnx`` file, names or patterns of the initializers that train.
        classes: Names of the classes, by label.
        compression: Pruning, calibration data, and how memory is saved.
        preprocessing: How raw data becomes inputs on the device.
        interface: Sizes that may change, outputs, and labels of a torch function as loss.
        generation: Whether the bundle of a causal language model contains a graph that generates with a cache. By
            default only if its inputs are text.
        engine: ``ort-training``, or ``OrtTraining`` with settings, adds the artifacts that ONNX Runtime Training
            reads. The bundle's own graphs are always written.
        overwrite: Replace an existing bundle.
        on_progress: Called with a message before each slow stage.

    Raises:
        EdgepeftError: A part does not fit; the error says what to do about it. ``out`` is not written then.
    """
    check_target(Path(out), overwrite)
    log = _logged(on_progress)
    source = _source(model, example_inputs)
    compression = given("compression", compression, Compression)
    raw = given("preprocessing", preprocessing, Preprocessing)
    tokenizer_files = {} if raw.tokenizer is None else read_tokenizer_file(Path(raw.tokenizer), source.model)
    attachment = _attachment(method, trainable, interface, compression)
    exported = _export(source, attachment, loss, _labels(interface), log)
    quantization = _quantization(compute, exported.loss)
    text = raw.text or source.text
    has_texts = bool(source.files or tokenizer_files)  # which are cut; token ids are as long as they are
    forward = with_table_limits(exported.forward)
    forward = replace(forward, longest=_longest(source, text if has_texts else None))
    notice_ranks(forward)
    if compression.calibration is not None and compression.prune is None and not quantization.rounds:
        notice("The model stays fp32 and is not pruned: calibration data does not change it.")
    if quantization.compute != "fp32":
        log(f"rounding weights for {quantization.compute}")
    forward, report = quantize(forward, quantization, compression.calibration, log)
    if quantization.rounds:
        log(f"comparing {quantization.compute} with fp32")
        _compare(exported, forward, quantization.compute, compression, source.new_head, log)
    for line in report.lines():
        notice(line)
    optimizer = optimizers.by_name(optimizer) if isinstance(optimizer, str) else optimizer
    plan = _planned(compression, forward, exported.loss, optimizer, log)
    compiled, spec = plan.compiled, None
    if exported.loss.predicts_tokens:
        spec = generation_spec(compiled, source.model, text)
    wants_cache = text is not None if generation is None else generation
    if spec is not None and exported.module is not None and wants_cache:
        compiled, spec = with_cache(compiled, spec, exported.module, attachment.chosen, (quantization, report), log)
    chunks = {} if plan.chunks == "normal" else {"chunks": plan.chunks}
    extras = Extras(
        dimensions=_dimensions(source, forward),
        task=source.task,
        classes=_classes(classes if classes is not None else source.classes, forward, exported.loss),
        text=text,
        image=raw.image or source.image,
        audio=source.audio,
        table=raw.table,
        files={**source.files, **tokenizer_files},
        micro_batch=plan.micro_batch,
        generation=spec,
        quantized=report.quantized,
        provenance={**exported.provenance, **report.provenance(quantization), **chunks},
    )
    log("writing the bundle")
    complete = _completed(exported.trial(quantization.rounds, log), _artifacts(engine))
    bundle = write_bundle(compiled, exported.loss, optimizer, out, extras, overwrite=overwrite, complete=complete)
    return Prepared(bundle, compiled.trained, compiled.unreached, report.quantized, report.kept)


def _quantization(compute: str | Quantization, loss: losses.Loss) -> Quantization:
    """Return the settings. In a language model, one scale for all rows of an activation loses too much."""
    settings = Quantization(compute) if isinstance(compute, str) else compute
    return replace(settings, rounding="row") if loss.predicts_tokens else settings


def _compare(
    exported: _Exported,
    quantized: Forward,
    compute: str,
    compression: Compression,
    new_head: bool,
    log: Callable[[str], None],
) -> None:
    """Report how far the quantized model is from the fp32 one, and refuse it if that is too far."""
    accuracy = measure(exported.forward, quantized, exported.loss, compression.calibration, new_head=new_head)
    if accuracy is not None:
        log(f"{compute}: {accuracy}")
        if not compression.allow_accuracy_loss:
            check(accuracy, compute)


def _attachment(
    method: str | Method | None, trainable: Sequence[str], interface: Interface | None, compression: Compression
) -> Attachment:
    graph = given("interface", interface, Interface)
    return Attachment(method, compression.prune, compression.calibration, trainable, graph.dynamic_axes, graph.outputs)


def _labels(interface: Interface | None) -> Mapping[str, Tensor]:
    return {} if interface is None else interface.example_labels or {}


def _planned(
    compression: Compression,
    forward: Forward,
    loss: losses.Loss,
    optimizer: optimizers.Optimizer,
    log: Callable[[str], None],
) -> StepPlan:
    """Compile the train step, within the budget if there is one."""
    log("compiling the train step")
    if compression.memory_budget is None:
        chunks = compression.chunks
        return StepPlan(compile_step(forward, loss, optimizer, compression.weights, chunks), chunks)
    plan = plan_for(compression.memory_budget, forward, loss, optimizer, log)
    log(str(plan))
    return plan


@dataclass(frozen=True)
class _Exported:
    """A forward graph that was compared with its source, and the loss on its outputs.

    Attributes:
        forward: The graph, in fp32.
        provenance: How the graph was made, for the manifest.
        module: The exported module; ``None`` for an ``.onnx`` file.
        loss: The loss.
        function: The torch function from which the loss was exported, if there is one.
        example_labels: Labels for that function.
    """

    forward: Forward
    provenance: Json
    module: nn.Module | None
    loss: losses.Loss
    function: Callable[..., Tensor] | None
    example_labels: Mapping[str, Tensor]

    def trial(self, rounds: bool, log: Callable[[str], None]) -> Trial:
        """Return the trial that compares the loss of a bundle."""
        return Trial(self.forward, self.loss, self.function, self.example_labels, rounds, log)


def _export(
    source: Source,
    attachment: Attachment,
    loss: LossLike | None,
    example_labels: Mapping[str, Tensor],
    log: Callable[[str], None],
) -> _Exported:
    """Export the forward graph and the loss, and compare them. Facts that concern the user become notices."""
    if loss is None:
        loss = losses.by_name(source.loss, **source.loss_settings)
    elif isinstance(loss, str) and not loss.endswith(".onnx"):
        loss = losses.by_name(loss)  # before the export: the name may be unknown
    attached = attach_source(source, attachment, log)
    function = None if isinstance(loss, (str, Path, losses.Loss)) else loss
    built = _loss(loss, attached.forward, example_labels)
    exported = _Exported(attached.forward, attached.provenance, attached.module, built, function, example_labels)
    if isinstance(source.model, Path) and attachment.outputs is None:
        exported = replace(exported, forward=with_scores(exported.forward, exported.loss))
    elif (head := probabilities(exported.forward, exported.loss)) is not None:
        first, kind = exported.forward.outputs[0], exported.loss.name
        notice(f"the output {first!r} comes from a {head.kind}, and the loss {kind} reads scores")
    for note in exported.forward.verified.notes:
        notice(note)
    own = exported.forward.source_outputs
    if not own or own == exported.forward.outputs:
        return exported
    return replace(exported, provenance={**exported.provenance, "outputs": list(own)})  # a merged file has these


def _completed(trial: Trial, artifacts: Callable[[Path], object] | None) -> Callable[[Path], None]:
    """Return the function that tries the folder of a new bundle, and completes it, before it is published."""

    def complete(folder: Path) -> None:
        trial(folder)
        if artifacts is not None:
            artifacts(folder)

    return complete


def _artifacts(engine: str | OrtTraining) -> Callable[[Path], object] | None:
    """Return the function that adds the artifacts of ONNX Runtime Training, if the engine needs them."""
    if isinstance(engine, OrtTraining):
        return partial(export_ort_training, settings=engine)
    check_engine(engine)
    return export_ort_training if engine == ORT_TRAINING else None


def _logged(on_progress: Callable[[str], None] | None) -> Callable[[str], None]:
    """Return a function that logs the message of a stage, and passes it on."""

    def log(text: str) -> None:
        _LOG.debug("%s", text)
        if on_progress is not None:
            on_progress(text)

    return log


@rarely_collected()
def doctor(
    model: Model,
    example_inputs: ExampleInputs | None = None,
    *,
    method: str | Method | None = None,
    loss: LossLike | None = None,
    trainable: Sequence[str] = (),
    interface: Interface | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Report which parameters would train and which operators have no gradient rule.

    If every operator has a rule, a bundle is made, tried and deleted, so this raises every error that ``prepare``
    would. The arguments are those of ``prepare``.

    Raises:
        EdgepeftError: The model cannot be prepared for a reason other than a missing gradient rule.
    """
    log = _logged(on_progress)
    source = _source(model, example_inputs)
    attachment = _attachment(method, trainable, interface, Compression())
    exported = _export(source, attachment, loss, _labels(interface), log)
    log("looking up the gradient rule of each operator before the loss")
    missing = missing_rules(exported.forward, exported.loss)
    if not missing:
        log("compiling the train step, and taking a step on the example")
        optimizer = optimizers.by_name("sgd")
        compiled = compile_step(exported.forward, exported.loss, optimizer)
        extras = Extras(classes=_classes(source.classes, exported.forward, exported.loss))
        with tempfile.TemporaryDirectory() as folder:
            out, trial = Path(folder) / "bundle", exported.trial(False, log)
            write_bundle(compiled, exported.loss, optimizer, out, extras, complete=trial)
    forward = exported.forward
    non_trainable = forward.adapter.non_trainable
    trained = {name: array.shape for name, array in forward.parameters.items() if name not in non_trainable}
    return Diagnosis(trained, tuple(missing))


def _source(model: Model, example_inputs: ExampleInputs | None) -> Source:
    if isinstance(model, Source):
        return model
    if not isinstance(model, nn.Module):
        source = load_source(model)
        return replace(source, example_inputs=example_inputs) if isinstance(source.model, Path) else source
    if example_inputs is None:
        raise BadExampleInputs(
            "A torch module cannot be prepared without example inputs.",
            context=None,
            hint="pass a dict {argument of forward: tensor}; sizes may differ on the device.",
        )
    return Source(model, example_inputs)


def _dimensions(source: Source, forward: Forward) -> Mapping[str, Dimension]:
    """Return the limits of dimensions. The tokens of a prompt occupy positions of the input."""
    prompt = forward.adapter.prompt_tokens
    most = {name: size - prompt if name == "sequence" else size for name, size in source.dimension_max.items()}
    limits = {name: Dimension(limit.least, limit.most) for name, limit in forward.limits.items()}
    for name, size in most.items():
        known = limits.get(name, Dimension())
        limits[name] = replace(known, max=size if known.max is None else min(known.max, size))
    return limits


def _longest(source: Source, text: TextSpec | None) -> int | None:
    """Return the most tokens of an input, where that is known."""
    return source.dimension_max.get("sequence") if text is None else text.max_length


def _loss(loss: LossLike, forward: Forward, example_labels: Mapping[str, Tensor]) -> losses.Loss:
    if isinstance(loss, Path) or (isinstance(loss, str) and loss.endswith(".onnx")):
        return losses.OnnxLoss.read(loss)
    if isinstance(loss, losses.Loss):
        return loss
    assert not isinstance(loss, str)
    return from_function(loss, forward, example_labels)


def _classes(names: Sequence[str] | None, forward: Forward, loss: losses.Loss) -> tuple[str, ...] | None:
    if names is None:
        return None
    names = class_names(names)
    first = forward.model.graph.outputs[0]
    axis = int(getattr(loss, "class_axis", -1))
    size = first.shape[axis] if first.shape is not None and len(first.shape) else None
    if isinstance(size, int) and size != len(names):
        raise WrongClassNames(
            f"{len(names)} class names for a model with {size} scores.",
            context=f"names: {', '.join(names)}",
            hint="give one name per score, in the order of the labels.",
        )
    return names
