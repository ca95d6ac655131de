"""Graph edits change the computation, never the results."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import parser
from onnx_ir.passes.common import NameFixPass
from torch import nn

from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.opset import IR_VERSION
from edgepeft_export.passes import drop_guards, gather_scales, narrow, transpose_last_two, write_out_prelus
from tests.support.networks import NETWORKS
from tests.support.onnx_runs import session

RANDOM = np.random.default_rng(0)


def _run(forward: Forward, inputs: dict[str, np.ndarray]) -> np.ndarray:
    model = forward.model.clone()
    lower(model)
    proto = ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, {**inputs, **forward.parameters})[0]


def _ops(forward: Forward) -> Counter[str]:
    return Counter(node.op_type for node in forward.model.graph)


def _trainable(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("classifier" in name or "lm_head" in name or "query" in name)
    return model.eval()


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "cnn"])
def test_the_forward_graph_equals_torch_at_other_sizes(name: str) -> None:
    """After all edits, the outputs are those of the module for batches and lengths it was not exported with."""
    network = NETWORKS[name]
    model = network.model().eval()
    forward = from_torch(model, network.example())
    for inputs, _ in network.batches(4):
        with torch.no_grad():
            result = model(**inputs)
        expected = result if isinstance(result, torch.Tensor) else result.logits
        actual = _run(forward, {key: value.numpy() for key, value in inputs.items()})
        # A row of an all-masked attention is undefined in both; the tests' masks leave none.
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_last_block_is_computed_for_one_position_only() -> None:
    """BERT reads the first token: the feed-forward part of the last block sees [batch, 1, hidden]."""
    network = NETWORKS["bert"]
    forward = from_torch(_trainable(network.model()), network.example())
    gelu = [node.outputs[0].shape for node in forward.model.graph if node.op_type == "Gelu"]
    assert [str(shape) for shape in gelu] == ["[batch,sequence,64]", "[batch,1,64]"]


def _attention(mask: str) -> ir.Model:
    """Softmax over masked scores, guarded: the mask is a graph input, or made of 0 and a number."""
    number = "inf" if mask == "input" else mask
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        agraph (float[n,4] q, float[4,n] k, bool[n,n] seen, float[n,n] given) => (float[n,n] y)
        <float zero = {{0}}, float hidden = {{{number}}}> {{
            scores = MatMul(q, k)
            made = Where(seen, zero, hidden)
            masked = Add(scores, {"given" if mask == "input" else "made"})
            p = Softmax <axis = -1> (masked)
            bad = IsNaN(p)
            guarded = Where(bad, zero, p)
            y = Mul(guarded, zero)
        }}"""
    return ir.from_onnx_text(text)


@pytest.mark.parametrize(("mask", "drops"), [("-1e30", True), ("-inf", False), ("input", False)])
def test_a_guard_goes_only_where_no_mask_can_be_infinite(mask: str, drops: bool) -> None:
    """A mask of finite numbers makes no NaN; -inf, or a mask that is fed, may."""
    model = _attention(mask)
    assert drop_guards(model) == drops
    y = next(node for node in model.graph if node.op_type == "Mul")
    assert y.inputs[0].producer().op_type == ("Softmax" if drops else "Where")


def test_transposed_keys_are_one_node() -> None:
    """The exporter's Reshape, Transpose, Reshape of the attention's keys becomes one Transpose of known shape."""
    network = NETWORKS["llama"]
    forward = from_torch(network.model(), network.example())
    products = [
        node for node in forward.model.graph if node.op_type == "MatMul" and len(node.outputs[0].shape or ()) == 4
    ]
    assert products
    for node in products:
        for value in node.inputs:
            assert value is not None
            assert value.shape is not None
            assert not any(str(dim).startswith("unk") for dim in value.shape)
    assert not transpose_last_two(forward.model)


def test_narrowing_stops_where_all_positions_are_needed() -> None:
    """A value read at one position and as a whole is computed as a whole."""
    graph_text = """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[B, 5, 4] x, float[4, 4] w) => (float[B, 4] first, float[B, 5, 4] all) {
            index = Constant<value_int = 0>()
            y = MatMul(x, w)
            z = Relu(y)
            all = Tanh(z)
            t = Sigmoid(z)
            first = Gather<axis = 1>(t, index)
        }
    """
    model = _parsed(graph_text)
    x, w = np.random.rand(2, 5, 4).astype(np.float32), np.random.rand(4, 4).astype(np.float32)
    before = _session(model).run(None, {"x": x, "w": w})
    assert narrow(model)
    after = _session(model).run(None, {"x": x, "w": w})
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    shapes = {node.op_type: [str(v.shape) for v in node.outputs] for node in model.graph}
    assert shapes["Sigmoid"] == ["[B,1,4]"]
    assert shapes["MatMul"] == ["[B,5,4]"]


@pytest.mark.parametrize("op", ["Softmax<axis = 1>", "CumSum", "ReduceMean"])
def test_narrowing_does_not_cross_what_mixes_positions(op: str) -> None:
    """Operators that let positions see one another keep all of them."""
    body = {
        "Softmax<axis = 1>": "y = Softmax<axis = 1>(x)",
        "CumSum": "one = Constant<value_int = 1>() y = CumSum(x, one)",
        "ReduceMean": "axes = Constant<value_ints = [1]>() m = ReduceMean<keepdims = 1>(x, axes) y = Add(x, m)",
    }[op]
    model = _parsed(
        f"""
        <ir_version: 10, opset_import: ["": 20]>
        g (float[B, 5, 4] x) => (float[B, 4] last) {{
            index = Constant<value_int = -1>()
            {body}
            last = Gather<axis = 1>(y, index)
        }}
    """
    )
    x = np.random.rand(2, 5, 4).astype(np.float32)
    before = _session(model).run(None, {"x": x})[0]
    narrow(model)
    np.testing.assert_allclose(_session(model).run(None, {"x": x})[0], before, rtol=1e-6)


def test_loras_scale_is_applied_between_its_matrices() -> None:
    """A factor on a layer's output moves to the few columns before the last product; results stay."""
    model = _parsed(
        """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[B, 5, 8] x, float[8, 2] a, float[2, 8] b) => (float[B, 5, 8] y) {
            scale = Constant<value_float = 2.5>()
            h = MatMul(x, a)
            o = MatMul(h, b)
            y = Mul(o, scale)
        }
    """
    )
    feeds = {
        "x": np.random.rand(2, 5, 8).astype(np.float32),
        "a": np.random.rand(8, 2).astype(np.float32),
        "b": np.random.rand(2, 8).astype(np.float32),
    }
    before = _session(model).run(None, feeds)[0]
    assert gather_scales(model)
    scaled = [node.outputs[0] for node in model.graph if node.op_type == "Mul"]
    assert [str(value.shape) for value in scaled if value.uses()] == ["[B,5,2]"]
    np.testing.assert_allclose(_session(model).run(None, feeds)[0], before, rtol=1e-6)


def _parsed(text: str) -> ir.Model:
    import onnx
    from onnx_ir.passes import common

    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    assert model.ir_version == IR_VERSION
    return model


def _session(model: ir.Model) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())


def test_a_tied_head_reads_the_embedding() -> None:
    """GPT-2's logits come from the one stored embedding, and stay unchanged."""
    network = NETWORKS["gpt2"]
    model = network.model().eval()
    forward = from_torch(_only_positions(model), network.example())
    stored = [v for v in forward.model.graph.initializers.values() if v.shape is not None and 101 in v.shape]
    assert [str(value.shape) for value in stored] == ["[101,32]"]
    inputs, _ = next(network.batches(1))
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    actual = _run(forward, {key: value.numpy() for key, value in inputs.items()})
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def _only_positions(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("wpe" in name)
    return model


@pytest.mark.parametrize("factors", [(1,), (3, 1), (3, 4)])
def test_a_prelu_is_written_out_in_train_graphs(factors: tuple[int, ...]) -> None:
    """For one factor, one per channel or one per element, of either sign, on zeros and infinity too."""
    text = f"g (float[2, 3, 4] x, float[{', '.join(map(str, factors))}] w) => (float[2, 3, 4] y) {{ y = PRelu(x, w) }}"
    model = ir.from_proto(parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}'))
    fed = {"x": RANDOM.normal(size=(2, 3, 4)), "w": RANDOM.normal(size=factors)}
    fed["x"][0, 0] = [0.0, -0.0, np.inf, 1e38]
    fed = {name: array.astype(np.float32) for name, array in fed.items()}
    (before,) = session(ir.to_proto(model)).run(None, fed)
    assert write_out_prelus(model)
    assert "PRelu" not in {node.op_type for node in model.graph}
    NameFixPass()(model)
    (after,) = session(ir.to_proto(model)).run(None, fed)
    np.testing.assert_allclose(after, before, rtol=1e-6)
