"""Load a model of transformers, with all that its task says about it."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgepeft.data.tasks.base import Model, Task
from edgepeft.data.tasks.recordings import MASK
from edgepeft.errors import WrongClassNames
from edgepeft.sources.architectures import head_modules
from edgepeft.sources.class_names import class_names
from edgepeft.sources.directories.feature_extractor import audio_spec, characters, masks_silence
from edgepeft.sources.directories.heads import FRAMES, Framed, Head, with_head
from edgepeft.sources.directories.image_processor import FILE as PROCESSOR
from edgepeft.sources.directories.image_processor import image_spec
from edgepeft.sources.directories.recognition import class_of, task_of
from edgepeft.sources.directories.text_processor import FILE as TOKENIZER
from edgepeft.sources.directories.text_processor import check_embedding, longest_text, padding_id, read_tokenizer
from edgepeft.sources.errors import SourceDoesNotLoad
from edgepeft.sources.model_files import ModelFiles, read_gguf_config
from edgepeft.sources.source import Source
from edgepeft_export.forward.torch_source.module import default_dynamic_axes
from edgepeft_runtime.bundle.specs import TextSpec
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DELIMITER = "|"
"""The character for a space in the vocabularies of models for CTC."""

SEQUENCE = "sequence"
"""The dimension of the tokens of a text."""

_LENGTH = 8
"""Largest number of tokens of the example."""


@dataclass(frozen=True)
class Wishes:
    """The choices of a user; see ``edgepeft.load_source``."""

    task: str | None = None
    classes: tuple[str, ...] | None = None
    max_length: int | None = None
    fixed_length: bool = False
    template: str | None = None
    seed: int = 0


def load_directory(files: ModelFiles, wishes: Wishes) -> Source:
    """Load a model directory or a ``.gguf`` file.

    Raises:
        SourceError: It cannot be loaded, or cannot be prepared for its task.
    """
    config = None if files.gguf is None else read_gguf_config(files)
    task = task_of(files, wishes.task)
    loaded, new_head = _loaded(files, task, wishes, config)
    model = with_head(loaded, task.head, files.folder)
    count = None if wishes.classes is None else len(wishes.classes)
    returned = model.returned if isinstance(model, Head) else None
    facts = Model(
        model.config,
        _arguments(model),
        _LENGTH,
        classes=count,
        scale=_scale(model),
        masked=task.sound and (isinstance(model, Framed) or masks_silence(files.folder)),
        frames=FRAMES if isinstance(model, Framed) else None,
    )
    loss, settings = task.loss_of(facts)
    if wishes.classes is not None and count == 1 and loss != "bce_with_logits":
        raise _one_class(wishes.classes[0])
    notice_left_out(str(files), model.config)
    outputs = returned or task.outputs
    source = Source(model, loss=loss, loss_settings=settings, task=task.name, outputs=outputs, new_head=new_head)
    if task.image:
        facts = replace(facts, image=image_spec(files.folder, model.config))
        source = replace(source, image=facts.image)
    if task.text:
        source, facts = _with_text(source, facts, files, model, task, wishes)
    else:
        unused = {"max_length": wishes.max_length, "fixed_length": wishes.fixed_length or None}
        notice_unused(str(files), **unused, template=wishes.template)
    example = task.example(facts)
    sounds = {name: array.shape for name, array in example.items() if task.sound and array.dtype.kind == "f"}
    if len(sounds) == 1:
        audio = audio_spec(files.folder, *sounds.popitem())
        source = replace(
            source, audio=audio and replace(audio, mask=MASK if MASK in example and facts.masked else None)
        )
    inputs = {name: torch.from_numpy(array) for name, array in example.items()}
    if source.text is not None and "type_ids" in source.text.fields.values():
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if task.image:
        _check_image(files, model, inputs)
    names = None
    if task.names_classes and loss != "mse":
        names = wishes.classes or _config_classes(model)
    if task.spells:
        names = wishes.classes or characters(files.folder, int(model.config.vocab_size))
        if source.audio is not None and names is not None and DELIMITER in names:
            source = replace(source, audio=replace(source.audio, delimiter=DELIMITER))
    axes = task.axes(example)
    if wishes.fixed_length and task.text:
        axes = _one_length(axes or default_dynamic_axes(inputs))
    return replace(source, example_inputs=inputs, dynamic_axes=axes, classes=names)


def _one_length(axes: Mapping[str, Mapping[int, str]]) -> Mapping[str, Mapping[int, str]]:
    """Return the sizes that may change without the length of texts."""
    return {name: {axis: size for axis, size in own.items() if size != SEQUENCE} for name, own in axes.items()}


def _with_text(
    source: Source, facts: Model, files: ModelFiles, model: PreTrainedModel, task: Task, wishes: Wishes
) -> tuple[Source, Model]:
    """Describe how texts become token ids, with the tokenizer."""
    tokenizer = read_tokenizer(files)
    if tokenizer is not None:
        check_embedding(tokenizer.size, model, str(files))
    pad = padding_id(str(files), model, tokenizer)
    limit = longest_text(model, pad)
    usual = 128 if tokenizer is None or tokenizer.longest is None else min(128, tokenizer.longest)
    length = min(wishes.max_length or usual, limit or sys.maxsize)
    if wishes.max_length is not None and length < wishes.max_length:
        notice(
            f"{files}: texts may have {length} tokens, not {wishes.max_length}: the model has positions for no more."
        )
    if task.name == "causal-lm" and getattr(model.config, "is_decoder", None) is False:
        notice(f"{files}: tokens attend to later ones too; for a causal model, config.json needs is_decoder: true.")
    example_length = length if wishes.fixed_length else min(_LENGTH, length)
    facts = replace(facts, length=example_length, mask_id=None if tokenizer is None else tokenizer.mask_id)
    fields = {name: kind for name, kind in task.fields.items() if name in facts.arguments}
    if tokenizer is not None and tokenizer.typed and "token_type_ids" in facts.arguments:
        fields["token_type_ids"] = "type_ids"
    text = TextSpec(length, pad, fields, special=task.special(facts) or None)
    if task.prompts and tokenizer is not None:
        template = tokenizer.template() if wishes.template is None else wishes.template
        text = replace(text, template=template, chat=tokenizer.chat)
    elif wishes.template is not None:
        if task.prompts:
            text = replace(text, template=wishes.template)
        else:
            notice_unused(str(files), template=wishes.template)
    content = {} if tokenizer is None else {TOKENIZER: tokenizer.content}
    sequences = (SEQUENCE, "decoder_sequence") if "decoder_ids" in fields.values() else (SEQUENCE,)
    free = [name for name in sequences if name != SEQUENCE or not wishes.fixed_length]
    most = {} if limit is None else dict.fromkeys(free, limit)
    return replace(source, text=text, files=content, dimension_max=most), facts


def _scale(model: nn.Module) -> float | None:
    """Return the factor of similarities of a model of pairs, whose logarithm is a parameter."""
    logarithm = getattr(model, "logit_scale", None)
    return float(logarithm.detach().float().exp()) if isinstance(logarithm, Tensor) else None


def _arguments(model: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(model.forward).parameters)


def notice_unused(source: str, **given: object) -> None:
    """Report the arguments that do not apply to this kind of source."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        notice(f"{source}: not used, because they do not apply to this kind of source: {', '.join(names)}.")


def _loaded(
    files: ModelFiles, task: Task, wishes: Wishes, config: PretrainedConfig | None
) -> tuple[PreTrainedModel, bool]:
    """Load the model, and whether its head is new.

    ``config`` is that of a ``.gguf`` file, so that the file is not read once more for it.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a directory is never looked up on the Hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    settings: dict[str, object] = {**files.arguments, **task.arguments}
    classes = wishes.classes
    if classes is not None:
        labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
        settings |= labels | {"ignore_mismatched_sizes": True}  # a head for other classes is initialized again
    if config is not None:
        config.update({name: settings.pop(name) for name in ("id2label", "label2id") if name in settings})
        settings["config"] = config
    # A text model stays in the checkpoint's precision: its large matrices are converted when they are read.
    dtype = "auto" if task.half and "gguf_file" not in settings else torch.float32
    name = task.auto_class or class_of(files.folder) or ""
    torch.manual_seed(wishes.seed)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # transformers shows a bar for a .gguf, set or not
            model, report = getattr(transformers, name).from_pretrained(
                files.folder, local_files_only=True, dtype=dtype, output_loading_info=True, **settings
            )
    except Exception as error:  # transformers and safetensors each raise their own exceptions
        raise SourceDoesNotLoad(
            f"transformers cannot load {files} as {name}.",
            context=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
            hint="check the task, and that the weights (model.safetensors, or the .gguf) are complete.",
        ) from error
    mismatched = [str(entry[0]) for entry in report["mismatched_keys"]]
    _check_mismatches(files, model, mismatched)
    heads = head_modules(model)
    return model, any(key.partition(".")[0] in heads for key in [*mismatched, *report["missing_keys"]])


def _check_mismatches(files: ModelFiles, model: nn.Module, keys: Sequence[str]) -> None:
    """Refuse weights whose shape differs from the model's, except in a head, which may be new."""
    wrong = [key for key in keys if key.partition(".")[0] not in head_modules(model)]
    if wrong:
        raise SourceDoesNotLoad(
            f"The weights in {files} do not fit its configuration.",
            context=f"of another shape: {', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}",
            hint="check that config.json and the weights belong to the same model.",
        )


def notice_left_out(path: str, config: PretrainedConfig) -> None:
    """Report the terms that transformers adds to the loss of some models, and that the bundle does not have."""
    text = config.get_text_config()
    if getattr(config, "ngram", 1) > 1 and not getattr(config, "disable_ngram_loss", True):
        notice(f"{path}: the loss is that of the next token; transformers also adds those of the tokens after it.")
    if getattr(config, "use_auxiliary_head", False) and getattr(config, "auxiliary_loss_weight", 0):
        notice(f"{path}: the loss is that of the scores; transformers also adds that of the auxiliary head.")
    if getattr(text, "output_router_logits", False) and getattr(text, "router_aux_loss_coef", 0):
        notice(f"{path}: the loss is that of the scores; transformers also adds that of the router's balance.")


def _one_class(name: str) -> WrongClassNames:
    """Return the error of a single class, which transformers would take for a number to predict."""
    return WrongClassNames(
        "There is only one class, so there is nothing to learn.",
        context=f"classes: {name!r}",
        hint=f"name all of them (--classes other,{name}); to predict a number instead of a class, leave classes out "
        "and set num_labels to 1 in config.json.",
    )


def _config_classes(model: PreTrainedModel) -> tuple[str, ...] | None:
    names = getattr(model.config, "id2label", None)
    if not names:
        return None
    if set(names) != set(range(len(names))):
        raise WrongClassNames(
            "The classes of the model directory are not numbered from 0.",
            context=f"id2label: {some([str(index) for index in names], 20)}",
            hint="correct id2label in config.json, or name the classes (classes=, --classes).",
        )
    return class_names([names[index] for index in range(len(names))], "id2label in config.json")


def _check_image(files: ModelFiles, model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Run the model once. Not every model accepts images of any size, as convolutions do."""
    try:
        with torch.no_grad():
            model(**{name: tensor[:1] for name, tensor in inputs.items()})
    except Exception as error:  # the model raises any exception
        shape = list(inputs["pixel_values"].shape[1:])
        raise SourceDoesNotLoad(
            f"The model in {files} does not accept images of the size that its image processor returns.",
            context=f"{shape}: {(str(error).strip().splitlines() or [''])[0]}",
            hint=f"correct size and crop_size in {PROCESSOR}.",
        ) from error
