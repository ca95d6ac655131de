"""Load a model by name.

A name is a Hugging Face model directory, a ``.gguf`` file, an ``.onnx`` file, or ``package.module:function``.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgepeft.sources.adapter import base_of, is_adapter, with_adapter
from edgepeft.sources.class_names import class_names
from edgepeft.sources.directories.loading import Wishes, load_directory, notice_unused
from edgepeft.sources.errors import BadSource, NoSuchSource
from edgepeft.sources.model_files import SUFFIX, ModelFiles, files_in
from edgepeft.sources.source import Source
from edgepeft_runtime.names import did_you_mean, path_hint


def load_source(
    source: str | Path,
    *,
    task: str | None = None,
    classes: Sequence[str] | None = None,
    max_length: int | None = None,
    fixed_length: bool = False,
    template: str | None = None,
    seed: int = 0,
) -> Source:
    """Load the model that a user names on the command line.

    Args:
        source: A Hugging Face model directory, a ``.gguf`` file, an adapter directory of ``peft`` whose base is on
            disk, an ``.onnx`` file, or ``package.module:function`` (or ``file.py:function``) that returns
            ``(model, example_inputs)``.
        task: Name of a task, such as ``text-classification``; by default the task that the model's configuration names.
        classes: Names of the classes. The model gets a new head if it has none of that size.
        max_length: Largest number of tokens of a text; by default the model's own limit, at most 128.
        fixed_length: Whether all texts are padded to the largest number of tokens, for models that run for one length
            alone.
        template: Template of the prompts of a causal language model, with the placeholder ``{prompt}``; by default
            the chat template of its tokenizer, if there is one.
        seed: Seed of a new head's initial values.

    Raises:
        SourceError: The source is none of these, or cannot be loaded.
    """
    path = Path(source)
    names = class_names(classes) if classes is not None else None
    wishes = Wishes(task, names, max_length, fixed_length, template, seed)
    if path.is_dir() and is_adapter(path):
        base, usual = base_of(path)
        loaded = load_directory(files_in(base), replace(wishes, task=task or usual))
        assert isinstance(loaded.model, nn.Module)
        model = with_adapter(loaded.model, path)
        has_head = any("modules_to_save" in name for name, _ in model.named_parameters())
        return replace(loaded, model=model, new_head=loaded.new_head and not has_head)
    if path.is_dir():
        return load_directory(files_in(path), wishes)
    if path.suffix in (".onnx", SUFFIX) and not path.is_file():
        raise NoSuchSource(
            f"There is no file {path}.",
            context=None,
            hint=path_hint(path, f"give the path of a file that ends in {path.suffix}."),
        )
    if path.suffix == SUFFIX:
        return load_directory(ModelFiles(path.parent, path.name), wishes)
    if path.suffix == ".onnx":
        notice_unused(str(path), task=task, max_length=max_length, fixed_length=fixed_length or None, template=template)
        return Source(path, classes=names)
    if ":" in str(source):
        notice_unused(str(path), task=task, max_length=max_length, fixed_length=fixed_length or None, template=template)
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
