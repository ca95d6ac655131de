"""A Llama-style decoder: 4 layers of width 512, rotary embedding, RMSNorm, SwiGLU, random weights."""

from __future__ import annotations

import torch

import edgepeft
from benchmarks.cases.base import Batch, Case, text_batch

VOCABULARY = 8192


def _source() -> edgepeft.Source:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=256,
        use_cache=False,
    )
    ids = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(0))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return edgepeft.Source(LlamaForCausalLM(config).eval(), example, loss="causal_lm")


def _batch() -> Batch:
    return text_batch(4, 128, (0, VOCABULARY), None)


LORA = Case(
    summary="decoder of 4 layers of width 512 (21 M parameters), LoRA r=8 on q_proj and v_proj, batch 4 x 128",
    source=_source,
    method=edgepeft.Lora(rank=8, alpha=16, target_modules=("q_proj", "v_proj")),
    batch=_batch,
)
