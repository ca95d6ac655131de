"""Blocks that are copied in the graph equal those of a trace of all; blocks that differ are traced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from edgepeft.methods import attach, by_name
from edgepeft_export.autodiff import differentiate
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.forward.torch_source import lifted, module
from edgepeft_export.forward.torch_source.blocks.record import Recorder
from edgepeft_export.forward.torch_source.blocks.stack import Stack
from edgepeft_export.forward.torch_source.generation import decoding_of
from edgepeft_export.graph.edit import input_named
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.verification.graph import GraphRun

pytestmark = pytest.mark.own_exports

Inputs = dict[str, Tensor]
TEXT = {"input_ids": torch.arange(14).reshape(2, 7), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}


class Block(nn.Module):
    """A residual layer with a scale."""

    def __init__(self, number: int, width: int = 8) -> None:
        super().__init__()
        self.number = number
        self.linear = nn.Linear(8, width)
        self.out = nn.Linear(width, 8)
        self.register_buffer("scale", torch.rand(8))

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        hidden = torch.tanh(self.linear(x) + shift[:, None, :1])
        return x + self.out(hidden * self.factor()) * self.scale

    def factor(self) -> float:
        return 0.5


class Layers(nn.Module):
    """Blocks one after the other. Every second bias trains."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(8)
        self.requires_grad_(False)
        for index, block in enumerate(self.blocks):
            block.linear.bias.requires_grad_(index % 2 == 0)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, shift)
        return self.norm(x)


ROWS = {"x": torch.rand(3, 4, 8), "shift": torch.rand(3, 2)}


def _blocks(count: int = 10) -> list[nn.Module]:
    return [Block(index) for index in range(count)]


def _stacks(model: nn.Module, inputs: Inputs) -> list[Stack]:
    with torch.no_grad(), Recorder(model.eval(), inputs) as recorder:
        model(**inputs)
    return recorder.stacks()


def _both(export: Callable[[], Forward], monkeypatch: pytest.MonkeyPatch) -> tuple[Forward, Forward, list[Stack]]:
    """The same export from a few blocks and from all, and the stacks of the first."""
    used: list[Stack] = []
    few = lifted._from_few_blocks

    def spied(what: lifted.Module, stacks: list[Stack]) -> ir.Model:
        graph = few(what, stacks)
        used.extend(stacks)  # not where the blocks turned out to differ
        return graph

    with monkeypatch.context() as patch:
        patch.setattr(lifted, "_from_few_blocks", spied)
        copied = export()
    with monkeypatch.context() as patch:
        patch.setattr(module, "graph_of", lambda what, _: lifted.graph_of(what, []))
        whole = export()
    return copied, whole, used


def _gradients(forward: Forward) -> dict[str, np.ndarray]:
    """Outputs, and the gradients of a weighted sum of the first, with parameters that are not zero."""
    model = forward.model.clone()
    graph, names = model.graph, list(forward.parameters)
    emit, output = Emitter(graph), graph.outputs[0]
    total = emit.op("ReduceSum", emit.op("Mul", output, emit.op("Sin", output)), keepdims=0)
    total.dtype, total.shape = ir.DataType.FLOAT, ir.Shape([])
    infer_shapes(model)
    made = differentiate(graph, total, [input_named(graph, name) for name in names])
    for value, gradient in made.items():
        gradient.name = f"{value.name}.gradient"
        graph.outputs.append(gradient)
    common.NameFixPass()(model)
    draw = np.random.default_rng(0)
    values = {name: array + 0.1 * draw.normal(size=array.shape) for name, array in sorted(forward.parameters.items())}
    inputs = forward.verified.examples[-1].inputs
    return GraphRun(model)({**inputs, **{name: array.astype(np.float32) for name, array in values.items()}})


def _nodes(forward: Forward) -> Counter[tuple[str, str]]:
    """Numbers of nodes by module and operator. Those of no module have a number of the exporter's as name."""
    split = ((str(node.name).partition("/"), node.op_type) for node in forward.model.graph)
    return Counter((module if slash else "", kind) for (module, slash, _), kind in split)


def _check_same(copied: Forward, whole: Forward) -> None:
    assert list(copied.parameters) == list(whole.parameters)
    assert (copied.inputs, copied.outputs, copied.source) == (whole.inputs, whole.outputs, whole.source)
    assert [str(value) for value in copied.model.graph.inputs] == [str(value) for value in whole.model.graph.inputs]
    assert _nodes(copied) == _nodes(whole)
    ours, reference = _gradients(copied), _gradients(whole)
    assert ours.keys() == reference.keys() and len(ours) > len(copied.outputs)
    for name, array in reference.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-5 * np.abs(array).max(), err_msg=name)


def test_copied_blocks_give_the_graph_of_a_whole_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of blocks, by what trains in them: outputs, names, identity and gradients are the same."""
    model = Layers(_blocks())
    copied, whole, used = _both(lambda: from_torch(model, ROWS), monkeypatch)
    assert [stack.like for stack in used] == [(0, 1, 2, 3, 2, 3, 2, 3, 2, 3)]
    _check_same(copied, whole)
    names = set(copied.model.graph.initializers)
    assert {f"blocks.{index}.out.weight.T" for index in range(10)} <= names
    assert {f"blocks.{index}.linear.bias" for index in (1, 3, 5, 7, 9)} <= names
    modules = {module for module, _ in _nodes(copied)}
    assert {f"blocks.{index}.out" for index in range(10)} <= modules <= {name for name, _ in model.named_modules()}


def test_frozen_tensors_of_copied_blocks_are_views() -> None:
    """No frozen tensor is copied: the graph's bytes are the module's."""
    model = Layers(_blocks())
    forward = from_torch(model, ROWS)
    stored = forward.model.graph.initializers["blocks.7.out.weight.T"].const_value
    assert stored is not None
    assert np.shares_memory(stored.numpy(), model.blocks[7].out.weight.numpy())


class Scaled(Block):
    def factor(self) -> float:
        return 0.5 + 0.1 * self.number


class Switched(Block):
    """Another attribute, which does nothing at the size of the example."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.window = None if number % 2 else 5


class Intermediate(Layers):
    """Reads the result of a block in the middle a second time."""

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        kept = x
        for index, block in enumerate(self.blocks):
            x = block(x, shift)
            kept = x if index == 4 else kept
        return self.norm(x + kept)


class Between(Layers):
    """Does something between two blocks."""

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x if index != 5 else x * 2, shift)
        return self.norm(x)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Layers([Scaled(index) for index in range(8)]), None),
        (lambda: Layers([Block(index, 8 + index) for index in range(8)]), None),
        (lambda: Intermediate(_blocks()), None),
        (lambda: Between(_blocks()), None),
        (lambda: Layers(_blocks(3)), None),
        (lambda: Layers([Switched(index) for index in range(8)]), (0, 1, 2, 3, 2, 3, 2, 3)),
    ],
    ids=["number-in-a-constant", "pruned", "read-twice", "between", "few", "attribute"],
)
def test_blocks_that_differ_are_not_copied(make: Callable[[], nn.Module], expected: tuple[int, ...] | None) -> None:
    """A constant, a shape, a reader or an attribute that differs keeps blocks apart."""
    assert [stack.like for stack in _stacks(make(), ROWS)] == ([] if expected is None else [expected])


def test_a_graph_that_differs_is_traced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that the recorder takes for equal by mistake are compared again as graphs."""
    model = Layers([Scaled(index) for index in range(6)])
    mistaken = Stack(tuple(f"blocks.{index}" for index in range(6)), (0, 1, 1, 1, 1, 1), ((0, 1),), 0, wrapped=False)
    monkeypatch.setattr(Recorder, "stacks", lambda *_, **__: [mistaken])
    copied, whole, used = _both(lambda: from_torch(model, ROWS), monkeypatch)
    assert not used
    _check_same(copied, whole)


# Networks of transformers


def _sizes(layers: int) -> dict[str, int | bool]:
    return {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 40,
        "tie_word_embeddings": True,
    }


def _llama(layers: int = 5) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_sizes(layers)))


def _qwen3(layers: int = 5) -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_sizes(layers), head_dim=8))


def _gemma3(layers: int = 12) -> nn.Module:
    """Every third block reads the whole text; the others have a window that is longer than the example."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["full_attention" if index % 3 == 2 else "sliding_attention" for index in range(layers)]
    return Gemma3ForCausalLM(Gemma3TextConfig(**_sizes(layers), head_dim=8, sliding_window=20, layer_types=kinds))


def _gpt2(layers: int = 5) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=40, n_embd=32, n_layer=layers, n_head=4))


def _gpt2_by_depth(layers: int = 5) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 61, "n_positions": 40, "n_embd": 32, "n_layer": layers, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, scale_attn_by_inverse_layer_idx=True))


def _bert(layers: int = 5) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    return BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=layers, num_labels=3))


FEW, ALTERNATING = (0, 1, 1, 1, 1), (0, 1, 2, 1, 1, 5, 1, 1, 5, 1, 1, 5)


@pytest.mark.parametrize(
    ("make", "method", "expected"),
    [
        (_llama, "lora", FEW),
        (_llama, "dora", FEW),
        (_llama, "prompt", FEW),
        (_llama, "prefix", None),
        (_qwen3, "lora", FEW),
        (_gemma3, "lora", ALTERNATING),
        (_gpt2, "lora", FEW),
        (_gpt2_by_depth, "lora", None),
        (_bert, "bitfit", FEW),
    ],
)
def test_equal_blocks_of_networks_are_found(
    make: Callable[[], nn.Module], method: str, expected: tuple[int, ...] | None
) -> None:
    """Blocks whose number or whose own keys (of a prefix) count are kept apart; kinds that alternate are grouped."""
    model = attach(by_name(method), make())
    assert [stack.like for stack in _stacks(model, TEXT)] == ([] if expected is None else [expected])


def test_a_pruned_block_is_traced() -> None:
    """Heads that are removed from one block only, which leaves four equal ones."""
    model = _bert()
    model.bert.encoder.layer[3].intermediate.dense = nn.Linear(32, 40)
    model.bert.encoder.layer[3].output.dense = nn.Linear(40, 32)
    assert [stack.like for stack in _stacks(model, TEXT)] == [(0, 1, 1, 3, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "method"),
    [
        (_llama, "lora"),
        (_llama, "dora"),
        (_llama, "prefix"),
        (_qwen3, "lora"),
        (_gemma3, "lora"),
        (_gpt2, "bitfit"),
        (_bert, "lora"),
    ],
)
def test_networks_with_copied_blocks(
    make: Callable[[], nn.Module], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, names and gradients are those of a trace of all blocks."""
    model = attach(by_name(method), make())
    copied, whole, used = _both(lambda: from_torch(model, TEXT), monkeypatch)
    assert bool(used) == (method != "prefix")  # each block has keys of its own
    _check_same(copied, whole)


@pytest.mark.slow
def test_a_decoding_step_with_copied_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are inputs and outputs of their own for each copied block."""
    model = attach(by_name("lora"), _llama(6))
    copied, whole, used = _both(lambda: decoding_of(model).forward, monkeypatch)
    assert [stack.like for stack in used] == [(0, 1, 1, 1, 1, 1)]
    assert copied.outputs[-2:] == ("present.5.key", "present.5.value")
    _check_same(copied, whole)
