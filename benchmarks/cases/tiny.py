"""A two-layer BERT that shows within seconds that every side runs. Its figures mean nothing."""

from __future__ import annotations

import torch

import edgepeft
from benchmarks.cases.base import Batch, Case, text_batch


def _source() -> edgepeft.Source:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=211,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        num_labels=5,
    )
    ids = torch.randint(0, 211, (2, 6), generator=torch.Generator().manual_seed(0))
    return edgepeft.Source(
        BertForSequenceClassification(config).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    )


def _batch() -> Batch:
    return text_batch(4, 12, (0, 211), 5)


LORA = Case(
    summary="BERT of 2 layers of width 64, LoRA r=4 on query and value, batch 4 x 12",
    source=_source,
    method=edgepeft.Lora(rank=4, target_modules=("query", "value")),
    batch=_batch,
)
