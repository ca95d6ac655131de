"""A table that is also the head: quantized once, whichever way the head is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from edgepeft_export.bundle import write_bundle
from edgepeft_export.compile import compile_step
from edgepeft_export.forward import Forward, from_onnx, from_torch
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.losses import CausalLM, CrossEntropy
from edgepeft_export.optimizers import SGD
from edgepeft_export.quantize import Quantization, quantize
from edgepeft_export.quantize.weights import weights_of
from edgepeft_runtime import Trainer
from tests.support.networks import to_numpy, torch_loss

SIZES = {"vocab_size": 120, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48, tie_word_embeddings=True))


def _qwen2() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**SIZES, intermediate_size=48, num_key_value_heads=1, tie_word_embeddings=True)
    return Qwen2ForCausalLM(config)


def _gemma() -> nn.Module:
    """It scales the rows that it looks up, and not those of the head."""
    from transformers import GemmaConfig, GemmaForCausalLM

    return GemmaForCausalLM(GemmaConfig(**SIZES, intermediate_size=48, num_key_value_heads=1, head_dim=16))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=120, n_embd=32, n_head=2, n_layer=1, n_positions=24))


def _bert() -> nn.Module:
    """Its head has a bias."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=24))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": _llama, "qwen2": _qwen2, "gemma": _gemma, "gpt2": _gpt2, "bert": _bert
}  # fmt: skip


def _ids(rows: int) -> torch.Tensor:
    return torch.randint(3, 120, (rows, 9), generator=torch.Generator().manual_seed(rows))


@cache
def _exported(name: str) -> tuple[nn.Module, Forward]:
    """A model of which the norms train, so that a gradient crosses the head."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter, tensor in model.named_parameters():
        tensor.requires_grad_("norm" in parameter.lower() or ".ln_" in parameter)
    ids = _ids(2)
    return model, from_torch(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _only_the_table(forward: Forward) -> tuple[Forward, str]:
    """The graph with the tied table quantized and all other weights as they were, and the table's name."""
    graph = forward.model.graph
    weights = {weight.name: weight.value for weight in weights_of(graph, 512)}
    (table,) = (n for n, v in weights.items() if {use.node.op_type for use in v.uses()} == {"Gather", "Gemm"})
    quantized, report = quantize(forward, Quantization("int8", smallest=512, keep=tuple(weights.keys() - {table})))
    assert [name for name in report.quantized if name.startswith(table)] == [f"{table}.int8"]
    return quantized, table


def _dequantized(forward: Forward, table: str) -> np.ndarray:
    values, scale = (
        np.asarray(forward.model.graph.initializers[f"{table}.{part}"].const_value) for part in ("int8", "scale")
    )
    return values.astype(np.float32) * scale[:, None]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("qwen2", "gemma") else ()) for n in MODELS]
)
def test_a_tied_table_is_quantized_once_and_trains_like_torch(name: str, tmp_path: Path) -> None:
    """Look-up and head read the same integers: losses and parameters follow torch with the dequantized table."""
    model, exported = _exported(name)
    forward, table = _only_the_table(exported)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        embedding = twin.get_input_embeddings().weight
        assert embedding is twin.get_output_embeddings().weight
        embedding.copy_(torch.from_numpy(_dequantized(forward, table)))
    bundle = write_bundle(compile_step(forward, CausalLM(), SGD(lr=0.1)), CausalLM(), SGD(lr=0.1), tmp_path / "b")
    trained = {n: p for n, p in twin.named_parameters() if p.requires_grad}
    start = {n: p.detach().numpy().copy() for n, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    with Trainer.open(bundle) as trainer:
        for rows in (2, 3, 1):
            ids = _ids(rows)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            optimizer.zero_grad()
            loss = torch_loss(twin, inputs, ids, "causal_lm")
            loss.backward()
            optimizer.step()
            assert trainer.step(to_numpy(inputs, ids)) == pytest.approx(loss.item(), rel=2e-3)
        after = trainer.parameters()
    ours = np.concatenate([(after[n] - start[n]).ravel() for n in trained])
    theirs = np.concatenate([(p.detach().numpy() - start[n]).ravel() for n, p in trained.items()])
    assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


ROWS = "rows = Flatten<axis=2>(hidden)"
SHAPED = "logits = Reshape(flat, sizes)"
HEADS = {
    "transpose": ["other = Transpose<perm=[1,0]>(words)", "logits = MatMul(hidden, other)"],
    "copy": ["logits = MatMul(hidden, copy)"],
    "gemm": [ROWS, "flat = Gemm<transB=1>(rows, words)", SHAPED],
    "gemm-copy": [ROWS, "flat = Gemm(rows, copy)", SHAPED],
    "gemm-transpose": ["other = Transpose<perm=[1,0]>(words)", ROWS, "flat = Gemm(rows, other)", SHAPED],
    "bias": ["other = Transpose<perm=[1,0]>(words)", "flat = MatMul(hidden, other)", "logits = Add(shift, flat)"],
}
"""The ways in which files write a head that is their table."""


def _file(head: str, path: Path) -> Path:
    """A table, a vector that trains, and the head."""
    draw = np.random.default_rng(0)
    words = draw.normal(size=(60, 48)).astype(np.float32)
    lines = [
        "looked = Gather(words, ids)",
        "hidden = Mul(looked, gain)",
        "read = Shape<end=2>(ids)",
        "width = Constant<value_ints=[60]>()",
        "sizes = Concat<axis=0>(read, width)",
        *HEADS[head],
    ]
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> tied (int64[b, s] ids) => (float[b, s, 60] logits) '
        "<float[60, 48] words, float[48, 60] copy, float[48] gain, float[60] shift> {" + "\n".join(lines) + "}"
    )
    del model.graph.initializer[:]
    read = {name for node in model.graph.node for name in node.input}
    arrays = {"words": words, "copy": words.T, "gain": draw.uniform(0.5, 2, 48), "shift": draw.normal(size=60)}
    for name in arrays.keys() & read:
        array = np.ascontiguousarray(arrays[name], np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("compute", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("head", HEADS)
def test_every_way_to_write_a_tied_head_reads_the_table(head: str, compute: str, tmp_path: Path) -> None:
    """No graph has a second matrix or transposes one, and the outputs are those of the file, up to rounding."""
    path = _file(head, tmp_path / "m.onnx")
    forward, report = quantize(from_onnx(path, ["gain"]), Quantization(compute, smallest=512))
    assert list(report.quantized) == ([] if compute == "fp32" else ["words.int8"])
    assert report.wider == ({"words": "it computes the scores"} if compute == "int4" else {})
    compiled = compile_step(forward, CrossEntropy(), SGD(lr=0.1))
    for model in compiled.graphs.values():
        contents = [value.const_value for value in model.graph.initializers.values()]
        assert len({tensor.tobytes() for tensor in contents if tensor is not None and tensor.nbytes > 1000}) <= 1
        assert compute != "fp32" or not [node for node in model.graph if node.op_type == "Transpose"]
    ids = np.random.default_rng(1).integers(0, 60, (3, 7))
    (expected,) = ort.InferenceSession(path).run(None, {"ids": ids})
    lower(model := forward.model.clone())
    (found,) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(
        None, {"ids": ids, **forward.parameters}
    )
    tolerance = {"fp32": 1e-5, "int8": 0.02, "int4": 0.02}[compute]
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)
