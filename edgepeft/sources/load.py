"""Load a model by name.

A name is a Hugging Face model directory, a ``.gguf`` file, an ``.onnx`` file, or ``package.module:function``.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgepeft.errors import WrongClassNames
from edgepeft.sources.adapter import base_of, is_adapter, with_adapter
from edgepeft.sources.architectures import head_modules
from edgepeft.sources.class_names import class_names
from edgepeft.sources.errors import (
    BadSource,
    NoModelDirectory,
    NoSuchSource,
    SourceDoesNotLoad,
    UnknownTask,
)
from edgepeft.sources.image_processor import FILE as PROCESSOR
from edgepeft.sources.image_processor import image_spec
from edgepeft.sources.model_files import SUFFIX, ModelFiles, files_in, read_gguf_config
from edgepeft.sources.text_processor import FILE as TOKENIZER
from edgepeft.sources.text_processor import Tokenization, check_embedding, longest_text, padding_id, read_tokenizer
from edgepeft_runtime.bundle.manifest import ImageSpec, TextSpec
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.names import did_you_mean, path_hint, some
from edgepeft_runtime.notices import notice

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TASKS = {
    "text-classification": ("AutoModelForSequenceClassification", "cross_entropy"),
    "token-classification": ("AutoModelForTokenClassification", "cross_entropy"),
    "causal-lm": ("AutoModelForCausalLM", "causal_lm"),
    "image-classification": ("AutoModelForImageClassification", "cross_entropy"),
}
"""Transformers' class and the loss of each task."""

GGUF_TASK = "causal-lm"
"""The task of a ``.gguf`` file, which names none."""

_BY_ARCHITECTURE = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForImageClassification": "image-classification",
}


@dataclass(frozen=True)
class Source:
    """A model to prepare, and the description of its inputs.

    Attributes:
        model: A torch module, or the path of an ``.onnx`` file.
        example_inputs: Arguments of ``forward`` by name; ``None`` for an ``.onnx`` file.
        loss: Name of the loss of the task.
        text, image: How texts or images become inputs; ``None`` if the model takes none.
        classes: Names of the classes, in the order of their indices.
        files: Further files for the bundle, such as ``tokenizer.json``.
        dimension_max: Largest sizes of symbolic dimensions.
    """

    model: nn.Module | Path
    example_inputs: Mapping[str, Tensor] | Sequence[Tensor] | Tensor | None = None
    loss: str = "cross_entropy"
    text: TextSpec | None = None
    image: ImageSpec | None = None
    classes: tuple[str, ...] | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    dimension_max: Mapping[str, int] = field(default_factory=dict)


def load_source(
    source: str | Path,
    *,
    task: str | None = None,
    classes: Sequence[str] | None = None,
    max_length: int | None = None,
    template: str | None = None,
    seed: int = 0,
) -> Source:
    """Load the model that a user names on the command line.

    Args:
        source: A Hugging Face model directory, a ``.gguf`` file, an adapter directory of ``peft`` whose base is on
            disk, an ``.onnx`` file, or ``package.module:function`` (or ``file.py:function``) that returns
            ``(model, example_inputs)``.
        task: One of ``TASKS``; by default the task that the model's configuration names.
        classes: Names of the classes. The model gets a new head if it has none of that size.
        max_length: Largest number of tokens of a text; by default the model's own limit, at most 128.
        template: Template of the prompts of a causal language model, with the placeholder ``{prompt}``; by default
            the chat template of its tokenizer, if there is one.
        seed: Seed of a new head's initial values.

    Raises:
        SourceError: The source is none of these, or cannot be loaded.
    """
    path = Path(source)
    names = class_names(classes) if classes is not None else None
    if path.is_dir() and is_adapter(path):
        base, usual = base_of(path)
        loaded = _load_files(files_in(base), task or usual, names, max_length, template, seed)
        assert isinstance(loaded.model, nn.Module)
        return replace(loaded, model=with_adapter(loaded.model, path))
    if path.is_dir():
        return _load_files(files_in(path), task, names, max_length, template, seed)
    if path.suffix in (".onnx", SUFFIX) and not path.is_file():
        raise NoSuchSource(
            f"There is no file {path}.",
            context=None,
            hint=path_hint(path, f"give the path of a file that ends in {path.suffix}."),
        )
    if path.suffix == SUFFIX:
        return _load_files(ModelFiles(path.parent, path.name), task, names, max_length, template, seed)
    if path.suffix == ".onnx":
        _notice_unused(path, task=task, max_length=max_length, template=template)
        return Source(path, classes=names)
    if ":" in str(source):
        _notice_unused(path, task=task, max_length=max_length, template=template)
        return _load_function(str(source), names, seed)
    raise NoSuchSource(
        f"{source} is not a model directory, a .gguf or .onnx file, or package.module:function.",
        context=None,
        hint=_instead(path, str(source)),
    )


def _instead(path: Path, source: str) -> str:
    """Return what to give instead of a source that is none."""
    if path.is_file():
        return _instead_of_a_file(path)
    hint = _how_to_get(source)
    return hint if "/" in source and not path.parent.exists() else path_hint(path, hint)


def _instead_of_a_file(path: Path) -> str:
    """Return how the model in a file of another kind is given."""
    if path.suffix == ".py":
        return f"name the function in it that returns the model and example inputs: {path}:{_functions(path)[0]}"
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors"):
        return (
            "the file has weights without the network: load them in a function that returns the module and example "
            "inputs (file.py:function), or give the directory that save_pretrained has written."
        )
    return "export the model to .onnx, or give the directory that save_pretrained has written."


def _functions(path: Path) -> list[str]:
    """Return the names of the functions that a file defines."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (OSError, ValueError, SyntaxError):
        return ["FUNCTION"]
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] or ["FUNCTION"]


def _how_to_get(source: str) -> str:
    """Return how a model comes to disk; a source may be its name on the Hub."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        return "models are read from disk, nothing is downloaded: check the path."
    folder = source.rpartition("/")[2]
    return (
        "models are read from disk, nothing is downloaded. If it is a model of the Hugging Face Hub: "
        f"hf download {source} --local-dir {folder}, and give that directory."
    )


def _load_files(
    files: ModelFiles,
    task: str | None,
    classes: tuple[str, ...] | None,
    max_length: int | None,
    template: str | None,
    seed: int,
) -> Source:
    config = None if files.gguf is None else read_gguf_config(files)
    if config is None:
        task = task or _task_of(files.folder, _read_config(files.folder))
    task = task or GGUF_TASK
    if task not in TASKS:
        raise UnknownTask(
            f"There is no task {task!r}.", context=f"there are: {', '.join(TASKS)}", hint=did_you_mean(task, TASKS)
        )
    auto_class, loss = TASKS[task]
    model = _load_transformers(files, auto_class, classes, seed, config)
    if task != "token-classification":
        loss = _loss_of(model.config, loss)
    labels = classes or (None if loss == "mse" else _config_classes(model, task))
    if task == "image-classification":
        _notice_unused(files.folder, max_length=max_length, template=template)
        image = image_spec(files.folder, model.config)
        pixels = torch.rand(2, image.channels, *image.size)
        _check_image(files.folder, model, pixels)
        return Source(model, {image.input: pixels}, loss, image=image, classes=labels)
    tokenizer = read_tokenizer(files)
    if task == "causal-lm" and template is None and tokenizer is not None:
        template = tokenizer.template()
    source = _text_source(files, model, tokenizer, max_length, template)
    if task == "causal-lm" and tokenizer is not None and source.text is not None:
        source = replace(source, text=replace(source.text, chat=tokenizer.chat))
    return replace(source, loss=loss, classes=labels)


def _text_source(
    files: ModelFiles,
    model: PreTrainedModel,
    tokenizer: Tokenization | None,
    max_length: int | None,
    template: str | None,
) -> Source:
    """Describe a model that takes text, with its tokenizer."""
    if tokenizer is not None:
        check_embedding(tokenizer.size, model, str(files))
    pad = padding_id(str(files), model, tokenizer)
    limit = longest_text(model, pad)
    usual = 128 if tokenizer is None or tokenizer.longest is None else min(128, tokenizer.longest)
    length = min(max_length or usual, limit or sys.maxsize)
    fields = {"input_ids": "ids", "attention_mask": "attention_mask"}
    ids = torch.randint(0, model.config.vocab_size, (2, min(8, length)))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if tokenizer is not None and tokenizer.typed:
        fields["token_type_ids"], example["token_type_ids"] = "type_ids", torch.zeros_like(ids)
    return Source(
        model,
        example,
        text=TextSpec(length, pad, fields, template),
        files={} if tokenizer is None else {TOKENIZER: tokenizer.content},
        dimension_max={} if limit is None else {"sequence": limit},
    )


def _notice_unused(path: Path, **given: object) -> None:
    """Report the arguments that do not apply to this kind of source."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        notice(f"{path}: not used, because they do not apply to this kind of source: {', '.join(names)}.")


def _loss_of(config: PretrainedConfig, usual: str) -> str:
    """Return the loss that transformers uses. A classifier's depends on ``problem_type`` or its number of scores."""
    kind = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    others = {"regression": "mse", "multi_label_classification": "bce_with_logits"}
    return others.get(kind, usual) if usual == "cross_entropy" else usual


def _read_config(path: Path) -> Json:
    return _read_json(path, "config.json")


def _read_json(path: Path, name: str) -> Json:
    try:
        content = json.loads((path / name).read_text("utf-8"))
        if isinstance(content, dict):
            return content
        reason = f"it contains a {type(content).__name__} instead of an object"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise NoModelDirectory(
        f"{path} is not a Hugging Face model directory.",
        context=f"{name}: {reason}",
        hint="give a directory written by save_pretrained.",
    )


def _task_of(path: Path, config: Json) -> str:
    for architecture in config.get("architectures") or ():
        for ending, task in _BY_ARCHITECTURE.items():
            if str(architecture).endswith(ending):
                return task
    raise UnknownTask(
        f"The configuration of {path} does not name the task of the model.",
        context=f"architectures: {config.get('architectures')}",
        hint=f"name the task: {', '.join(TASKS)}.",
    )


def _load_transformers(
    files: ModelFiles,
    auto_class: str,
    classes: tuple[str, ...] | None,
    seed: int,
    config: PretrainedConfig | None,
) -> PreTrainedModel:
    """Load the model; ``config`` is that of a ``.gguf`` file, so that the file is not read once more for it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a directory is never looked up on the Hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    settings: dict[str, object] = {**files.arguments}
    if classes is not None:
        labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
        settings |= labels | {"ignore_mismatched_sizes": True}  # a head for other classes is initialized again
    if config is not None:
        config.update({name: settings.pop(name) for name in ("id2label", "label2id") if name in settings})
        settings["config"] = config
    # A text model stays in the checkpoint's precision: its large matrices are converted when they are read.
    dtype = torch.float32 if "gguf_file" in settings or auto_class == TASKS["image-classification"][0] else "auto"
    torch.manual_seed(seed)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # transformers shows a bar for a .gguf, set or not
            model, report = getattr(transformers, auto_class).from_pretrained(
                files.folder, local_files_only=True, dtype=dtype, output_loading_info=True, **settings
            )
    except Exception as error:  # transformers and safetensors each raise their own exceptions
        raise SourceDoesNotLoad(
            f"transformers cannot load {files} as {auto_class}.",
            context=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
            hint="check the task, and that the weights (model.safetensors, or the .gguf) are complete.",
        ) from error
    _check_mismatches(files, model, [str(entry[0]) for entry in report["mismatched_keys"]])
    return model


def _check_mismatches(files: ModelFiles, model: nn.Module, keys: Sequence[str]) -> None:
    """Refuse weights whose shape differs from the model's, except in a head, which may be new."""
    wrong = [key for key in keys if key.partition(".")[0] not in head_modules(model)]
    if wrong:
        raise SourceDoesNotLoad(
            f"The weights in {files} do not fit its configuration.",
            context=f"of another shape: {', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}",
            hint="check that config.json and the weights belong to the same model.",
        )


def _config_classes(model: PreTrainedModel, task: str) -> tuple[str, ...] | None:
    names = getattr(model.config, "id2label", None)
    if task == "causal-lm" or not names:
        return None
    if set(names) != set(range(len(names))):
        raise WrongClassNames(
            "The classes of the model directory are not numbered from 0.",
            context=f"id2label: {some([str(index) for index in names], 20)}",
            hint="correct id2label in config.json, or name the classes (classes=, --classes).",
        )
    return class_names([names[index] for index in range(len(names))], "id2label in config.json")


def _check_image(path: Path, model: PreTrainedModel, pixels: Tensor) -> None:
    """Run the model once. Not every model accepts images of any size, as convolutions do."""
    try:
        with torch.no_grad():
            model(pixel_values=pixels[:1])
    except (ValueError, RuntimeError) as error:
        raise SourceDoesNotLoad(
            f"The model in {path} does not accept images of the size that its image processor returns.",
            context=f"{list(pixels.shape[1:])}: {(str(error).strip().splitlines() or [''])[0]}",
            hint=f"correct size and crop_size in {PROCESSOR}.",
        ) from error


def _load_function(source: str, classes: tuple[str, ...] | None, seed: int) -> Source:
    module_name, _, function_name = source.rpartition(":")
    otherwise, module = "give package.module:function, or file.py:function.", None
    try:
        module = _import(module_name)
        function = getattr(module, function_name)
    except (ImportError, AttributeError, OSError) as error:
        path = Path(module_name)
        missing_file = module is None and path.suffix == ".py"
        raise NoSuchSource(
            f"{source} cannot be imported.",
            context=str(error),
            hint=path_hint(path, otherwise)
            if missing_file
            else did_you_mean(function_name, vars(module) if module is not None else (), otherwise),
        ) from error
    torch.manual_seed(seed)
    try:
        result = function()
    except Exception as error:  # a user's function raises any exception
        raise BadSource(
            f"{source} fails.",
            context=f"{type(error).__name__}: {error}",
            hint="it is called without arguments, and returns a torch module and a dict of example tensors.",
        ) from error
    if isinstance(result, Source):
        return result if classes is None else replace(result, classes=classes)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module)):
        raise BadSource(
            f"{source} does not return (model, example inputs).",
            context=f"it returns {type(result).__name__}",
            hint="return a torch module and a dict of example tensors, or an edgepeft.Source.",
        )
    return Source(result[0], result[1], classes=classes)


def _import(name: str) -> Any:
    if not name.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        try:
            return importlib.import_module(name)
        finally:
            sys.path.pop(0)
    path = Path(name).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"there is no file {name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
