"""More transformers than those of ``tests.support.networks``: one that translates, and a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tests.support.networks import SIZES, Batch, Network, _text, _text_batches

VOCABULARY = 71


def tiny_t5() -> nn.Module:
    """Relative positions, RMS norm without bias."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


def tiny_m2m() -> nn.Module:
    """What the translation models M2M100 and NLLB are: sinusoidal positions, layer norm, biases."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=40,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
    )
    return M2M100ForConditionalGeneration(config)


class Experts(nn.Module):
    """Four feed-forward experts, of which each token uses the two that its router ranks highest; computed densely."""

    def __init__(self, width: int = 32, hidden: int = 24, count: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.into = nn.ModuleList(nn.Linear(width, hidden) for _ in range(count))
        self.out = nn.ModuleList(nn.Linear(hidden, width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(dim=-1)
        highest, chosen = scores.topk(2, dim=-1)
        weights = torch.zeros_like(scores).scatter(-1, chosen, highest / highest.sum(-1, keepdim=True))
        parts = [out(nn.functional.silu(into(x))) for into, out in zip(self.into, self.out, strict=True)]
        return (torch.stack(parts, dim=-1) * weights[..., None, :]).sum(-1)


def tiny_moe() -> nn.Module:
    """A Llama whose feed-forward parts are mixtures of experts."""
    from tests.support.networks import tiny_llama

    model = tiny_llama()
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.mlp = Experts()
    return model


def _translation() -> Batch:
    ids, _ = next(_pairs(1))
    return ids


def _pairs(count: int) -> Iterator[tuple[Batch, Tensor]]:
    """Sources with padding, targets shifted by one token as decoder inputs; padding is ignored."""
    draw = torch.Generator().manual_seed(6)
    for step in range(count):
        rows, length = SIZES[step % len(SIZES)]
        source = torch.randint(3, VOCABULARY, (rows, length), generator=draw)
        mask = torch.ones_like(source)
        target = torch.randint(3, VOCABULARY, (rows, length - 1), generator=draw)
        labels = target.clone()
        if rows > 1:
            mask[1, length - 2 :] = 0
            labels[1, -1] = -100
        start = torch.zeros(rows, 1, dtype=torch.int64)
        yield (
            {
                "input_ids": source,
                "attention_mask": mask,
                "decoder_input_ids": torch.cat([start, target[:, :-1]], dim=1),
            },
            labels,
        )


NETWORKS: dict[str, Network] = {
    "t5": Network(tiny_t5, _translation, _pairs, "cross_entropy", ("q", "v")),
    "m2m": Network(tiny_m2m, _translation, _pairs, "cross_entropy", ("q_proj", "v_proj")),
    "moe": Network(tiny_moe, _text(101), _text_batches(101, None), "causal_lm", ("q_proj", "v_proj")),
}
