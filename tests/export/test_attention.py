"""Attention for a few heads at a time computes the same step as for all heads at once, in less memory."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from torch import nn

from edgepeft.methods import Lora, attach
from edgepeft_export.chunks import CHUNKS, LONG, NORMAL
from edgepeft_export.compile import Compiled, compile_step
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.losses import CausalLM
from edgepeft_export.optimizers import SGD
from tests.support.linear_graphs import run

VOCABULARY, LENGTH = 64, 9
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _qwen2() -> nn.Module:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES))


def _gemma2() -> nn.Module:
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SIZES, head_dim=8))


def _gpt2() -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


MODELS = {"qwen2": (_qwen2, ["q_proj", "v_proj"]), "gemma2": (_gemma2, ["q_proj"]), "gpt2": (_gpt2, ["c_attn"])}


def _batch(rows: int, length: int) -> dict[str, torch.Tensor]:
    """Token ids; the last text is shorter by two."""
    ids = torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@cache
def _forward(name: str) -> tuple[nn.Module, Forward]:
    torch.manual_seed(0)
    make, targets = MODELS[name]
    model = attach(Lora(rank=4, target_modules=targets), make().eval())
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    example = _batch(2, LENGTH)
    del example["labels"]
    return model, from_torch(model, example)


def _loops(step: Compiled) -> list[ir.Node]:
    return [node for node in step.graphs["train"].graph if node.op_type == "Scan"]


@pytest.mark.parametrize(
    ("name", "at_once"), [("qwen2", 1), ("qwen2", 2 * LENGTH**2), ("gemma2", NORMAL.scores), ("gpt2", 1)]
)
def test_loss_and_gradients_are_those_of_torch(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one head at a time, two (with repeated keys and values, soft caps, masks), and all, for two shapes."""
    monkeypatch.setitem(CHUNKS, "normal", replace(NORMAL, scores=at_once))
    model, forward = _forward(name)
    step = compile_step(replace(forward, longest=LONG + 1), CausalLM(), SGD())
    assert len(_loops(step)) == 4  # forward and backward, of two blocks
    for rows, length in ((2, LENGTH), (3, 5)):
        batch = _batch(rows, length)
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        result = run(step, batch)
        assert result.loss == pytest.approx(loss.item(), rel=1e-5)
        wanted = {key: value.grad.numpy() for key, value in model.named_parameters() if value.grad is not None}
        assert wanted.keys() == result.gradients.keys()
        for key, gradient in wanted.items():
            np.testing.assert_allclose(result.gradients[key], gradient, rtol=1e-3, atol=1e-5, err_msg=key)


def test_short_inputs_keep_all_heads_together() -> None:
    """Where an input never has more than 512 positions, and in one graph where that is unknown, there is no loop."""
    forward = _forward("qwen2")[1]
    for longest in (LONG, None):
        assert not _loops(compile_step(replace(forward, longest=longest), CausalLM(), SGD()))


def test_equal_blocks_share_graphs_where_low_keys_do_not_train() -> None:
    """Of segments, whose attention is divided where the length of inputs is unknown: two blocks have one graph."""
    graphs = compile_step(_forward("qwen2")[1], CausalLM(), SGD(), weights="input").graphs
    backward = {name: model for name, model in graphs.items() if name.endswith(".backward")}
    assert len(backward) == 1
    assert all(any(node.op_type == "Scan" for node in model.graph) for model in backward.values())


def test_the_estimate_counts_the_scores_of_one_head() -> None:
    """The largest multiple of batch · sequence² falls with the number of heads."""
    forward = _forward("qwen2")[1]
    whole, divided = (
        max(peak.get("batch*sequence*sequence", 0) for peak in compile_step(each, CausalLM(), SGD()).activations)
        for each in (forward, replace(forward, longest=LONG + 1))
    )
    assert divided < whole / 2
