"""Errors of sources: models, adapters and processors on the disk."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError


class SourceError(EdgepeftError):
    """A source cannot be loaded."""


class NoSuchSource(SourceError, code="no-such-source"):
    """The source is neither a model directory nor a .gguf or .onnx file nor a function that can be imported."""


class NoModelDirectory(SourceError, code="no-model-directory"):
    """A path is not a model directory of Hugging Face. Give one written by save_pretrained."""


class UnreadableGguf(SourceError, code="unreadable-gguf"):
    """The .gguf file is damaged, or transformers does not read it. Give the model directory it was converted from."""


class UnknownTask(SourceError, code="unknown-task"):
    """The task of the model is not known. Name one of the tasks listed."""


class TaskNotSupported(SourceError, code="task-not-supported"):
    """Models of this task cannot be prepared. The message says why, and what to do instead."""


class SourceDoesNotLoad(SourceError, code="source-does-not-load"):
    """The model directory cannot be loaded: weights, configuration or classes do not fit each other."""


class BadSource(SourceError, code="bad-source"):
    """The function that makes the model fails, or returns something else than a model and example inputs."""


class BaseNotFound(SourceError, code="base-not-found"):
    """The base model of an adapter is not on this disk. Download it, and write its path to the configuration."""


class AdapterDoesNotFit(SourceError, code="adapter-does-not-fit"):
    """An adapter cannot be attached to its base model."""


class UnusableTokenizer(SourceError, code="unusable-tokenizer"):
    """The tokenizer cannot be read, does not fit the model, or cannot run on a device."""


class UnknownPaddingToken(SourceError, code="padding-token"):
    """The padding token of the model is not known. Set pad_token_id in config.json."""


class UnusableImageProcessor(SourceError, code="unusable-image-processor"):
    """The image processor cannot be loaded, or has steps that a device cannot run."""


class UnusableFeatureExtractor(SourceError, code="unusable-feature-extractor"):
    """The feature extractor of sound cannot be loaded, or has steps that a device cannot run."""


class ModelNotCopied(SourceError, code="model-not-copied"):
    """The model cannot be copied, and prepare works on a copy. Leave files and locks out of the module."""
