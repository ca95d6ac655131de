"""From a model to a bundle: method, forward graph, loss, backward, optimizer, files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn

from edgepeft.attachment import Attachment, forward_of
from edgepeft.classes import class_names
from edgepeft.compress import Pruning
from edgepeft.generation import add_cache, generation_spec
from edgepeft.memory_budget import MemoryBudget, Plan, plan_for
from edgepeft.methods import Method
from edgepeft.methods.base import head_modules
from edgepeft.sources import Source, load_source
from edgepeft.text_processor import read_tokenizer_file
from edgepeft_export import losses, optimizers
from edgepeft_export.autodiff import Gap
from edgepeft_export.bundle import Extras, check_target, write_bundle
from edgepeft_export.compile import compile_step, missing_rules
from edgepeft_export.forward import Forward
from edgepeft_export.forward.torch_loss import from_function
from edgepeft_export.forward.torch_module import DynamicAxes, ExampleInputs
from edgepeft_export.ort_training import OrtTraining, export_ort_training
from edgepeft_export.quantize import Packed, Quantization, quantize
from edgepeft_export.quantize.choose import Batch
from edgepeft_runtime.engines import ORT_TRAINING, PORTABLE, check_engine
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.manifest import ImageSpec, TextSpec

LossLike: TypeAlias = str | losses.Loss | Callable[..., Tensor] | Path
Model: TypeAlias = nn.Module | Source | str | Path


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` made.

    Attributes:
        bundle: the directory.
        trainable: number of elements that train.
        unreached: parameters that were to train and that the loss does not depend on; they stay frozen.
        packed: what each packed tensor stands for, by its name.
        kept: weights that could have been packed and stayed fp32, each with the reason.
    """

    bundle: Path
    trainable: int
    unreached: tuple[str, ...]
    packed: Mapping[str, Packed] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`doctor` found.

    Attributes:
        trainable: shape by name of what would train.
        gaps: operators on the way to it that have no gradient rule; empty where the model can be prepared.
    """

    trainable: Mapping[str, tuple[int, ...]]
    gaps: tuple[Gap, ...]


def prepare(
    model: Model,
    example_inputs: ExampleInputs | None = None,
    *,
    out: str | Path,
    method: str | Method | None = None,
    loss: LossLike | None = None,
    optimizer: str | optimizers.Optimizer = "adamw",
    prune: Pruning | None = None,
    compute: str | Quantization = "fp32",
    recompute: str = "none",
    memory_budget: MemoryBudget | None = None,
    calibration: Sequence[Batch] | None = None,
    trainable: Sequence[str] = (),
    example_labels: Mapping[str, Tensor] | None = None,
    dynamic_axes: DynamicAxes | None = None,
    outputs: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    tokenizer: str | Path | None = None,
    text: TextSpec | None = None,
    image: ImageSpec | None = None,
    generation: bool | None = None,
    engine: str | OrtTraining = PORTABLE,
    overwrite: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Prepared:
    """Prepare a model for fine-tuning on a device.

    Args:
        model: a torch module, a ``peft.PeftModel``, a Hugging Face model directory, an ``.onnx`` file, or a
            :class:`Source`.
        example_inputs: arguments of ``forward``; needed for a torch module only.
        out: the bundle's directory.
        method: what trains (``lora``, ``bitfit``, ``head``, ``freeze``, ``full``, or a method with settings). ``None``
            takes the ``requires_grad`` flags as they are. To an ``.onnx`` file ``lora`` and ``ffa`` can be attached.
        loss: a name, a loss with settings, a torch function ``(outputs and labels by name) -> mean loss``, or the path
            of an ONNX model with the same meaning. Default: the one that goes with the source, ``cross_entropy`` for a
            module.
        optimizer: ``adamw``, ``sgd``, or one with settings.
        prune: what is cut out of the model, or set to zero, before the method is attached.
        compute: ``fp32``, ``int8``, ``int4``, or a :class:`Quantization` with settings: how the frozen weights are
            packed.
        recompute: ``none``, or ``block``: activations inside a block are computed a second time in the backward instead
            of kept, which takes less memory and more time.
        memory_budget: bytes that training may take; chooses ``recompute`` and how many examples go through at a time.
        calibration: a few batches, arrays by name, on which the effect of rounding is measured, and heads, neurons
            and weights are scored; the labels may be among them.
        trainable: for an ``.onnx`` file, names or patterns of the initializers that train.
        example_labels: for a torch function as loss, an example of each label.
        dynamic_axes: sizes that may change, ``{input: {axis: name}}``; see :func:`edgepeft_export.forward.from_torch`.
        outputs: which of the model's outputs to keep; the loss looks at the first.
        classes: names of the classes, by label.
        tokenizer: path of a ``tokenizer.json`` to carry in the bundle; with ``text`` the device takes raw text.
        text, image: how raw data becomes inputs.
        generation: whether the bundle of a causal language model gets a graph that generates with a cache; ``None``:
            where it takes text.
        engine: ``ort-training``, or :class:`OrtTraining` with settings, adds the artifacts that ONNX Runtime Training
            takes; the bundle's own graphs are there in any case.
        overwrite: replace a bundle that is there.
        announce: told what is being done: some of it takes a while.

    Raises:
        EdgepeftError: whatever does not fit, with what to do about it; nothing is left at ``out`` then.
    """
    check_target(Path(out), overwrite)
    tell = announce or _silent
    source = _source(model, example_inputs)
    carried = {} if tokenizer is None else read_tokenizer_file(Path(tokenizer), source.model)
    if loss is None:
        loss = source.loss
    tell("exporting the forward graph")
    attached: list[nn.Module] = []
    how = Attachment(method, prune, calibration, trainable, dynamic_axes, outputs, attached.append)
    forward, recipe = forward_of(source, how)
    terms = _loss(loss, forward, example_labels)
    packing = Quantization(compute) if isinstance(compute, str) else compute
    forward, packed = quantize(forward, packing, calibration, tell)
    update = optimizers.by_name(optimizer) if isinstance(optimizer, str) else optimizer
    tell("compiling the train step")
    micro_batch = None
    if memory_budget is None:
        compiled = compile_step(forward, terms, update, recompute)
    else:
        plan = plan_for(memory_budget, forward, terms, update, tell)
        compiled, recompute, micro_batch = plan.compiled, plan.recompute, plan.micro_batch
        tell(_told(plan))
    text = text or source.text
    speaks = generation_spec(compiled, source.model, text) if terms.describe()["kind"] == "causal_lm" else None
    if speaks is not None and attached and (text is not None if generation is None else generation):
        compiled, speaks = add_cache(compiled, speaks, attached[0], how.chosen, packing, packed, tell)
    extras = Extras(
        roles=_heads(source.model, forward),
        dimension_max=_dimension_max(source, how.chosen),
        classes=_classes(classes if classes is not None else source.classes, forward),
        text=text,
        image=image or source.image,
        files={**source.files, **carried},
        micro_batch=micro_batch,
        generation=speaks,
        packed=packed.packed,
        recipe={**recipe, **packed.recipe(packing), **({"recompute": recompute} if recompute != "none" else {})},
    )
    tell("writing the bundle")
    artifacts = _artifacts(engine)
    bundle = write_bundle(compiled, terms, update, out, extras, overwrite=overwrite, complete=artifacts)
    return Prepared(bundle, compiled.trained, compiled.unreached, packed.packed, packed.kept)


def _artifacts(engine: str | OrtTraining) -> Callable[[Path], object] | None:
    """What adds the official artifacts to a bundle, where they are asked for."""
    if isinstance(engine, OrtTraining):
        return partial(export_ort_training, settings=engine)
    check_engine(engine)
    return export_ort_training if engine == ORT_TRAINING else None


def _told(plan: Plan) -> str:
    frozen = f", {len(plan.frozen)} tensors frozen" if plan.frozen else ""
    return f"{plan.micro_batch} examples at a time, recompute {plan.recompute}{frozen}: {plan.peak / 1e6:.0f} MB"


def _silent(_: str) -> None:
    """Nobody listens."""


def doctor(
    model: Model,
    example_inputs: ExampleInputs | None = None,
    *,
    method: str | Method | None = None,
    loss: LossLike | None = None,
    trainable: Sequence[str] = (),
) -> Diagnosis:
    """See what would train and which operators no gradient can cross, without building anything."""
    source = _source(model, example_inputs)
    forward, _ = forward_of(source, Attachment(method, trainable=trainable))
    gaps = missing_rules(forward, _loss(source.loss if loss is None else loss, forward, None))
    trained = {name: array.shape for name, array in forward.parameters.items() if name not in forward.held}
    return Diagnosis(trained, tuple(gaps))


def _source(model: Model, example_inputs: ExampleInputs | None) -> Source:
    if isinstance(model, Source):
        return model
    if not isinstance(model, nn.Module):
        return load_source(model)
    if example_inputs is None:
        raise EdgepeftError(
            "example-inputs",
            "A torch module cannot be prepared without example inputs.",
            context=None,
            hint="give a dict {argument of forward: tensor}; sizes may differ on the device.",
        )
    return Source(model, example_inputs)


def _dimension_max(source: Source, method: Method | None) -> Mapping[str, int]:
    """Largest sizes; a prompt takes learned positions from the input."""
    taken = getattr(method, "tokens", 0)
    return {name: size - taken if name == "sequence" else size for name, size in source.dimension_max.items()}


def _loss(loss: LossLike, forward: Forward, example_labels: Mapping[str, Tensor] | None) -> losses.Loss:
    if isinstance(loss, Path) or (isinstance(loss, str) and loss.endswith(".onnx")):
        return losses.OnnxLoss.read(loss)
    if isinstance(loss, str):
        return losses.by_name(loss)
    if isinstance(loss, nn.Module) or not hasattr(loss, "emit"):
        return from_function(loss, forward, example_labels or {})
    return loss  # type: ignore[return-value]  # hasattr has told a Loss from a function


def _heads(model: nn.Module | Path, forward: Forward) -> dict[str, str]:
    """The role of the parameters of a task head; other roles are told by the names."""
    heads = () if isinstance(model, Path) else tuple(f"{name}." for name in head_modules(model))
    return {name: "head" for name in forward.parameters if name.startswith(heads)} if heads else {}


def _classes(names: Sequence[str] | None, forward: Forward) -> tuple[str, ...] | None:
    if names is None:
        return None
    names = class_names(names)
    first = forward.model.graph.outputs[0]
    size = first.shape[-1] if first.shape is not None and len(first.shape) else None
    if isinstance(size, int) and size != len(names):
        raise EdgepeftError(
            "classes",
            f"{len(names)} class names for a model that gives {size} scores.",
            context=f"names: {', '.join(names)}",
            hint="give one name per score, in the order of the labels.",
        )
    return names
