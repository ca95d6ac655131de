"""Language models by their shapes, with random weights: written on the spot as Hugging Face model directories."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METHODS: dict[str, tuple[str, ...]] = {
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
"""Modules that LoRA of rank 8 adapts."""
RANK = 8

_QWEN = {"vocab_size": 151936, "max_position_embeddings": 32768, "tie_word_embeddings": True}


@dataclass(frozen=True)
class Shape:
    """A configuration of transformers.

    Attributes:
        config: Name of the configuration's class.
        sizes: Its arguments, as published with the model.
        lengths: Tokens of a sequence, unless others are chosen; with LoRA on all projections only the first.
        limits: Limits of memory in MB, unless others are chosen; with the first length and LoRA on q and v.
    """

    config: str
    sizes: dict[str, Any]
    lengths: tuple[int, ...] = (256,)
    limits: tuple[int, ...] = ()


def _sizes(width: int, inner: int, blocks: int, heads: int, groups: int, **others: Any) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {**dict(zip(names, (width, inner, blocks, heads, groups), strict=True)), **others}


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}

SHAPES = {
    "tiny": Shape("LlamaConfig", _sizes(64, 96, 4, 4, 2, vocab_size=512, tie_word_embeddings=True), (32,)),
    "smollm2-135m": Shape(
        "LlamaConfig",
        _sizes(576, 1536, 30, 9, 3, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True),
    ),
    "gemma-3-270m": Shape(
        "Gemma3TextConfig",
        _sizes(640, 2048, 18, 4, 1, vocab_size=262144, head_dim=256, max_position_embeddings=32768),
    ),
    "qwen2.5-0.5b": Shape(
        "Qwen2Config",
        _sizes(896, 4864, 24, 14, 2, **_QWEN),
        lengths=(256, 1024, 2048),
        limits=(768, 512, 384, 256, 192, 160),
    ),
    "qwen3-0.6b": Shape("Qwen3Config", _sizes(1024, 3072, 28, 16, 8, head_dim=128, **_QWEN)),
    "llama-3.2-1b": Shape(
        "LlamaConfig",
        _sizes(
            2048, 8192, 16, 32, 8,
            vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=True, rope_parameters=_LLAMA3_ROPE,
        ),
    ),
    "qwen2.5-1.5b": Shape("Qwen2Config", _sizes(1536, 8960, 28, 12, 2, **_QWEN)),
    "qwen3-1.7b": Shape("Qwen3Config", _sizes(2048, 6144, 28, 16, 8, head_dim=128, **_QWEN)),
}  # fmt: skip

DESCRIPTION = "about.json"


def write_model(name: str, folder: Path, *, shard: str = "50GB") -> None:
    """Write the model in bfloat16, as such models are published, and ``about.json`` with its counts of parameters.

    Args:
        name: Of the shape.
        folder: For the files.
        shard: Largest size of a file of weights.
    """
    import torch
    import transformers

    shape = SHAPES[name]
    torch.manual_seed(0)
    config = getattr(transformers, shape.config)(**shape.sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=shard)
    about = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "matmul_parameters": matmul_parameters(model),
        "vocabulary": config.vocab_size,
    }
    (folder / DESCRIPTION).write_text(json.dumps(about), encoding="utf-8")


def matmul_parameters(model: Any) -> int:
    """Count the elements of all matrices that the inputs are multiplied with: linear layers and the head, tied or not.

    The embedding is not among them: its rows are only looked up.
    """
    from torch import nn

    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def operations(matmul_parameters: int, tokens: int, *, trains: bool) -> int:
    """Multiplications and additions of matrices in a step.

    Two per element and token forward. Training adds as many for the gradient with respect to the inputs; the frozen
    weights get none, and attention, LoRA's own matrices and recomputed activations are not counted.
    """
    return (4 if trains else 2) * matmul_parameters * tokens
