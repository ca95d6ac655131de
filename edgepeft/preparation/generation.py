"""Add to a bundle a graph with a cache that generates text, and the tokens that end a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from edgepeft.methods.base import Method
from edgepeft.methods.support.declaration import declare
from edgepeft_export.compile import Compiled
from edgepeft_export.errors import ForwardError, VerificationError
from edgepeft_export.forward.decoding import Decoding
from edgepeft_export.forward.torch_source.generation import IDS, MASK, decoding_of
from edgepeft_export.generation import with_generation
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.quantize import Quantization, QuantizationReport
from edgepeft_runtime.bundle.generation_spec import GenerationSpec
from edgepeft_runtime.bundle.specs import TextSpec


def generation_spec(compiled: Compiled, model: nn.Module | Path, text: TextSpec | None) -> GenerationSpec | None:
    """Describe how a causal language model is fed.

    ``None`` if it has other inputs than ids and a mask, or reads texts of one length alone.
    """
    names = {value.name for value in compiled.inputs}
    fields: Mapping[str, str] = {IDS: "ids", MASK: "attention_mask"} if text is None else text.fields
    inputs = {kind: name for name, kind in fields.items() if name in names}
    if "ids" not in inputs or set(inputs.values()) != names or "type_ids" in inputs:
        return None
    ids = next(value for value in compiled.inputs if value.name == inputs["ids"])
    if all(isinstance(dim, int) for dim in dims_of(ids)[1:]):
        return None
    return GenerationSpec(inputs["ids"], inputs.get("attention_mask"), end_tokens(model))


def end_tokens(model: nn.Module | Path) -> tuple[int, ...]:
    """Return the tokens with which a model of ``transformers`` ends a text."""
    configs = [getattr(model, "generation_config", None), getattr(model, "config", None)]
    size = getattr(configs[1], "vocab_size", None)
    for config in configs:
        end: object = getattr(config, "eos_token_id", None)
        tokens = [end] if isinstance(end, int) else list(end) if isinstance(end, (list, tuple)) else []
        if tokens:
            return tuple(token for token in tokens if size is None or 0 <= token < size)
    return ()


def with_cache(
    compiled: Compiled,
    spec: GenerationSpec,
    module: nn.Module,
    method: Method | None,
    quantized: tuple[Quantization, QuantizationReport],
    log: Callable[[str], None],
) -> tuple[Compiled, GenerationSpec]:
    """Add the graph ``generate`` if the model can be exported with a cache. Otherwise log the reason.

    Args:
        compiled: The graphs so far.
        spec: How the model is fed.
        module: The module with its method attached, from which the other graphs were exported.
        method: The method.
        quantized: The settings and the report of the other graphs' quantization.
        log: Called with messages about progress.
    """
    if (spec.ids, spec.attention_mask) != (IDS, MASK):
        return compiled, spec
    log("exporting the graph with a cache")
    try:
        decoding = decoding_of(module)
    except (ForwardError, VerificationError) as error:
        log(f"no graph with a cache: {error.context or error.message}; the whole text will be read for each token")
        return compiled, spec
    if method is not None:
        decoding = Decoding(method.on_graph(declare(decoding.forward, module), module), decoding.cache)
    return with_generation(compiled, decoding, *quantized), replace(spec, cache=decoding.specs())
