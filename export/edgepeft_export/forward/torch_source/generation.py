"""Exports a causal language model as a decoding step, which extends a cache of keys and values by new positions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgepeft_export.errors import ForwardError, NoCache
from edgepeft_export.forward.decoding import Decoding
from edgepeft_export.forward.graph import Forward
from edgepeft_export.forward.torch_source.half import computing
from edgepeft_export.forward.torch_source.module import from_torch

IDS, MASK, LOGITS = "input_ids", "attention_mask", "logits"
_INNER = "decoder"


def decoding_of(model: nn.Module) -> Decoding:
    """Export a causal language model of ``transformers``, or a ``PeftModel`` of one, with a cache.

    It was exported without a cache before.

    Parameters and frozen tensors have the names of ``edgepeft_export.forward.from_torch``, so both
    graphs are fed and stored alike.

    Raises:
        ForwardError: the model is of another kind, keeps something else than all keys and values, or torch cannot
            export it.
    """
    _check_kind(model)
    shapes = _cache_shapes(model)
    sizes = _distinct(shapes)
    inputs, axes = _example(shapes, *sizes)
    names = [name for name in inputs if name not in (IDS, MASK)]
    wrapper = _Decoder(model, names)
    outputs = [LOGITS, *(_present(name) for name in names)]
    forward = from_torch(wrapper, inputs, dynamic_axes=axes, outputs=outputs, again=True)
    return Decoding(_own_names(forward), tuple((name, _present(name)) for name in names))


class _Decoder(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """The model as a function of new positions and of the keys and values of all before."""

    def __init__(self, model: nn.Module, past: list[str]) -> None:
        super().__init__()
        setattr(self, _INNER, model)
        self._past = past
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        arguments = inspect.signature(base.forward).parameters
        self._positions, self._one = "position_ids" in arguments, "logits_to_keep" in arguments

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **past: Tensor) -> dict[str, Tensor]:
        from transformers import DynamicCache

        first = next(iter(past.values()))  # stands for what a block that is not traced would read
        given = [past.get(name, first) for name in self._past]
        layers = list(zip(given[::2], given[1::2], strict=True))
        arguments: dict[str, object] = {"logits_to_keep": 1} if self._one else {}
        if self._positions:
            # Positions count attended tokens only, so that padding on the left shifts nothing.
            counted = (attention_mask.cumsum(1) - 1).clamp(min=0)
            arguments["position_ids"] = counted[:, layers[0][0].shape[2] :]
        result = getattr(self, _INNER)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=DynamicCache(layers),
            use_cache=True,
            **arguments,
        )
        cache = [part for layer in result.past_key_values.layers for part in (layer.keys, layer.values)]
        after = {_present(name): part for name, part in zip(self._past, cache, strict=True)}
        return {LOGITS: result.logits[:, -1], **after}


def _present(past: str) -> str:
    return past.replace("past.", "present.", 1)


def _check_kind(model: nn.Module) -> None:
    from transformers import PreTrainedModel

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    prompt = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    if not isinstance(base, PreTrainedModel) or not base.can_generate() or base.config.is_encoder_decoder or prompt:
        reason = "it learns a prompt" if prompt else "it is no causal language model of transformers"
        raise _unsupported(model, reason)


def _unsupported(model: nn.Module, reason: str) -> ForwardError:
    return NoCache(
        f"{type(model).__name__} cannot be exported with a cache of keys and values.",
        context=reason,
        hint="generate without a cache: the model then reads the whole text for each token.",
    )


def _cache_shapes(model: nn.Module) -> list[tuple[int, int]]:
    """Heads and size of each head, of the keys and of the values of each layer."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = {
        type(layer).__name__ for layer in DynamicCache(config=base.config).layers if type(layer) is not DynamicLayer
    }
    if kinds:
        raise _unsupported(model, f"its layers keep something else: {', '.join(sorted(kinds))}")
    mode = model.training
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with torch.no_grad(), computing(model):
        cache = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
    model.train(mode)
    if type(cache) is not DynamicCache:
        raise _unsupported(model, f"it keeps a {type(cache).__name__}")
    return [(part.shape[1], part.shape[3]) for layer in cache.layers for part in (layer.keys, layer.values)]


def _distinct(shapes: list[tuple[int, int]]) -> tuple[int, int, int]:
    """Batch, past and sequence, with sizes that all differ, because torch.export would tie equal ones."""
    fixed = {size for shape in shapes for size in shape}
    free = (size for size in range(2, 1000) if size not in fixed)
    batch, past = next(free), next(free)
    sequence = next(size for size in free if size + past not in fixed)
    return batch, past, sequence


def _example(
    shapes: list[tuple[int, int]], batch: int, past: int, sequence: int
) -> tuple[dict[str, Tensor], Mapping[str, Mapping[int, str]]]:
    """Example inputs, and the names of their free sizes."""
    ids = torch.zeros(batch, sequence, dtype=torch.int64)
    mask = torch.ones(batch, past + sequence, dtype=torch.int64)
    inputs, axes = {IDS: ids, MASK: mask}, {IDS: {0: "batch", 1: "sequence"}, MASK: {0: "batch", 1: "total"}}
    for number, (heads, size) in enumerate(shapes):
        name = f"past.{number // 2}.{('key', 'value')[number % 2]}"
        inputs[name] = torch.zeros(batch, heads, past, size)
        axes[name] = {0: "batch", 2: "past"}
    return inputs, axes


def _own_names(forward: Forward) -> Forward:
    """Parameters and frozen tensors under their names in the model itself."""
    prefix = f"{_INNER}."
    graph = forward.model.graph
    for value in [*graph.inputs, *list(graph.initializers.values())]:
        if value.name is not None and value.name.startswith(prefix):
            value.name = value.name.removeprefix(prefix)
    parameters = {name.removeprefix(prefix): array for name, array in forward.parameters.items()}
    return replace(forward, parameters=parameters)
