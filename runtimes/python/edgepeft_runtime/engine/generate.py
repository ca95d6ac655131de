"""Text generation by a causal language model, token by token: greedy or sampled, with a cache if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.bundle.adapter_source import AdapterSource
from edgepeft_runtime.bundle.generation_spec import GenerationSpec
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.engine.engine import Cache, Engine, TrainState
from edgepeft_runtime.errors import BadPrompt, CannotGenerate, EmptyBatch, PromptTooLong
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.settings import Settings, setting

Prompts = Sequence[int] | Sequence[Sequence[int]] | NDArray[np.int64]
Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Sampling(Settings):
    """How ``edgepeft_runtime.Trainer.generate`` chooses tokens, and when a text ends.

    Attributes:
        adapter: another adapter for this call alone. The base model is not loaded again.
        stop: tokens that end a text; ``None`` stands for the bundle's.
    """

    max_new_tokens: int = setting(
        64, "Tokens to generate for each text; fewer if the model has no positions for more.", minimum=1
    )
    adapter: AdapterSource | None = None
    temperature: float = setting(
        0.0,
        "Temperature of sampling; 0 takes the likeliest token, 1 keeps the model's probabilities.",
        minimum=0,
    )
    top_k: int | None = setting(None, "Sample only among this many likeliest tokens.", minimum=1)
    top_p: float | None = setting(
        None, "Sample only among the fewest likeliest tokens with this total probability.", above=0, maximum=1
    )
    seed: int = setting(0, "Seed of the sampling. A prompt gets the same tokens alone and among others.", minimum=0)
    stop: Sequence[int] | None = None

    def choose(self, logits: Array, draw: np.random.Generator) -> int:
        """Choose one token by its scores, ``[vocabulary]``."""
        scores = logits.astype(np.float64)
        if self.temperature == 0.0:
            return int(scores.argmax())
        order = np.argsort(-scores, kind="stable")[: self.top_k]
        powers = np.exp((scores[order] - scores[order[0]]) / self.temperature)
        probabilities = powers / powers.sum()
        if self.top_p is not None:
            count = int(np.searchsorted(np.cumsum(probabilities), self.top_p)) + 1
            order, probabilities = order[:count], probabilities[:count] / probabilities[:count].sum()
        rank = int(np.searchsorted(np.cumsum(probabilities), draw.random(), side="right"))
        return int(order[min(rank, len(order) - 1)])


def generate(
    engine: Engine, manifest: Manifest, state: TrainState, prompts: Prompts, sampling: Sampling
) -> list[list[int]]:
    """Generate a continuation of each prompt: see ``edgepeft_runtime.Trainer.generate``."""
    spec, limit = _spec(manifest), _limit(manifest)
    texts = [_checked(ids, manifest, limit) for ids in _as_list(prompts)]
    reader = (_Cached if spec.cache else _Uncached)(engine, manifest, spec, state, texts)
    stop = set(spec.end if sampling.stop is None else sampling.stop)
    draws = [np.random.default_rng(sampling.seed) for _ in texts]
    new: list[list[int]] = [[] for _ in texts]
    active = np.ones(len(texts), bool)
    for _ in range(sampling.max_new_tokens):
        logits = reader.next()
        tokens = np.zeros(len(texts), np.int64)
        for row in np.flatnonzero(active):
            tokens[row] = sampling.choose(logits[row], draws[row])
            new[row].append(int(tokens[row]))
            full = limit is not None and len(texts[row]) + len(new[row]) >= limit
            active[row] = tokens[row] not in stop and not full
        if not active.any():
            break
        reader.add(tokens, active)
    return new


class _Reader(Protocol):
    """Feeds texts to the model."""

    def next(self) -> Array:
        """Return the scores of the next token of each text, ``[texts, vocabulary]``."""

    def add(self, tokens: Ids, active: NDArray[np.bool_]) -> None:
        """Append a token to each active text; tokens of the others are not used."""


class _Cached:
    """Runs ``generate.onnx`` once for each token; shorter texts are padded on the left."""

    def __init__(
        self, engine: Engine, manifest: Manifest, spec: GenerationSpec, state: TrainState, texts: Sequence[Ids]
    ) -> None:
        width = max(map(len, texts))
        self._engine, self._spec, self._state = engine, spec, state
        self._new = np.stack([np.concatenate([_padding(width - len(text), manifest), text]) for text in texts])
        self._mask = np.stack([np.arange(width) >= width - len(text) for text in texts]).astype(np.int64)
        self._cache: Cache | None = None

    def next(self) -> Array:
        inputs: dict[str, Array] = {self._spec.ids: self._new, str(self._spec.attention_mask): self._mask}
        logits, self._cache = self._engine.decode(self._state, inputs, self._cache)
        return logits

    def add(self, tokens: Ids, active: NDArray[np.bool_]) -> None:
        # A finished text is padded: it needs no further position, and the model may have no more of them.
        self._new = tokens[:, None]
        self._mask = np.concatenate([self._mask, active[:, None].astype(np.int64)], axis=1)


class _Uncached:
    """Runs ``infer.onnx`` on the whole texts for each token; shorter texts are padded on the right."""

    def __init__(
        self, engine: Engine, manifest: Manifest, spec: GenerationSpec, state: TrainState, texts: Sequence[Ids]
    ) -> None:
        self._engine, self._manifest, self._spec, self._state = engine, manifest, spec, state
        self._texts = list(texts)

    def next(self) -> Array:
        lengths = np.array([len(text) for text in self._texts])
        width = max(int(lengths.max()), _shortest(self._manifest))
        ids = np.stack([np.concatenate([text, _padding(width - len(text), self._manifest)]) for text in self._texts])
        mask = np.arange(width) < lengths[:, None]
        known = {self._spec.ids: ids, self._spec.attention_mask: mask}
        inputs = {spec.name: known[spec.name].astype(spec.dtype) for spec in self._manifest.inputs}
        outputs = self._engine.infer(self._state, inputs)
        logits = outputs[self._manifest.outputs[0].name]
        return np.asarray(logits[np.arange(len(lengths)), lengths - 1])

    def add(self, tokens: Ids, active: NDArray[np.bool_]) -> None:
        for row in np.flatnonzero(active):
            self._texts[row] = np.append(self._texts[row], tokens[row])


def _spec(manifest: Manifest) -> GenerationSpec:
    """Return how the bundle generates. A bundle without ``generation`` may say so by its text fields."""
    if manifest.generation is not None:
        return manifest.generation
    fields = {} if manifest.text is None else {kind: name for name, kind in manifest.text.fields.items()}
    if manifest.loss.kind != "causal_lm" or "ids" not in fields or len(fields) != len(manifest.inputs):
        raise CannotGenerate(
            "The bundle does not say how to generate text with it.",
            context=f"loss: {manifest.loss.kind}; manifest.json has no 'generation'",
            hint="prepare a causal language model with the loss causal_lm.",
        )
    return GenerationSpec(fields["ids"], fields.get("attention_mask"))


def _limit(manifest: Manifest) -> int | None:
    """Return the number of tokens of the longest text that the model can read; ``None`` without a limit."""
    dim = manifest.inputs[0].shape[1]
    return dim if isinstance(dim, int) else manifest.dimensions[dim].max


def _shortest(manifest: Manifest) -> int:
    dim = manifest.inputs[0].shape[1]
    return dim if isinstance(dim, int) else manifest.dimensions[dim].min


def _padding(count: int, manifest: Manifest) -> Ids:
    return np.full(count, 0 if manifest.text is None else manifest.text.pad_id, np.int64)


def _as_list(prompts: Prompts) -> list[Sequence[int]]:
    """Return one prompt, or several, as a list of prompts."""
    texts = list(prompts)
    if not texts:
        raise EmptyBatch("There is no prompt.", context=None, hint="give at least one.")
    return [texts] if all(isinstance(item, int | np.integer) for item in texts) else texts


def _checked(ids: Sequence[int], manifest: Manifest, limit: int | None) -> Ids:
    array = np.asarray(ids)
    last = manifest.outputs[0].shape[-1]
    most = last if isinstance(last, int) else None
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu" or array.min() < 0:
        raise BadPrompt(
            "A prompt must be a list of token ids, at least one.",
            context=f"shape {list(array.shape)}, {array.dtype.name}",
            hint="tokenize the text first.",
        )
    if most is not None and array.max() >= most:
        raise BadPrompt(
            "A prompt contains an id that is not a token of the model.",
            context=f"largest id {int(array.max())}; ids are 0 to {most - 1}",
            hint="use the model's own tokenizer.",
        )
    if limit is not None and array.size >= limit:
        raise PromptTooLong(
            "A prompt leaves no positions for new tokens.",
            context=f"it has {array.size} tokens; prompt and new tokens may have {limit}",
            hint="shorten it.",
        )
    return array.astype(np.int64)
