"""The walk through the graph: which values get a gradient, which nodes are visited, which cannot be crossed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

from edgepeft_export.autodiff import differentiate, missing_rules
from edgepeft_export.autodiff.checks import UnsupportedOpset
from edgepeft_export.autodiff.registry import NoGradientForCase
from edgepeft_export.autodiff.walk import NoGradientRule
from edgepeft_export.graph.custom_ops import lower

Array = NDArray[np.float32]


def model(text: str) -> ir.Model:
    """A model in ONNX's text syntax, with inferred shapes and named nodes."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>\n{text}')
    made = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    for number, node in enumerate(made.graph):
        node.name = f"{node.op_type}_{number}"
    return made


def values(made: ir.Model) -> dict[str | None, ir.Value]:
    results = [output for node in made.graph for output in node.outputs]
    return {value.name: value for value in (*made.graph.inputs, *made.graph.initializers.values(), *results)}


def gradients(made: ir.Model, *targets: str) -> dict[str | None, ir.Value]:
    named = values(made)
    return {
        target.name: gradient
        for target, gradient in differentiate(made.graph, named["loss"], [named[name] for name in targets]).items()
    }


def run(made: ir.Model, outputs: list[ir.Value], feeds: dict[str, Array]) -> list[Array]:
    made.graph.outputs[:] = outputs
    NameFixPass()(made)
    session = ort.InferenceSession(ir.to_proto(made).SerializeToString(), providers=["CPUExecutionProvider"])
    live = {value.name for value in session.get_inputs()}
    results: list[Array] = session.run(None, {name: array for name, array in feeds.items() if name in live})
    return results


def added(text: str, *targets: str) -> Counter[str]:
    """The operators of the nodes that differentiating adds."""
    made = model(text)
    before = len(made.graph)
    gradients(made, *targets)
    return Counter(node.op_type for node in list(made.graph)[before:])


def random(*shape: int) -> Array:
    return np.random.default_rng(1).uniform(0.5, 2.0, shape).astype(np.float32)


def test_gradients_of_all_readers_of_a_value_are_added() -> None:
    """A value with three readers, one of which reads it twice, gets the sum."""
    made = model(
        """g (float[3] a) => (float loss) {
          squared = Mul(a, a)
          shifted = Add(squared, a)
          last = Sub(shifted, a)
          product = Mul(last, a)
          loss = ReduceSum<keepdims=0>(product)
        }"""
    )
    a = random(3)
    (gradient,) = run(made, list(gradients(made, "a").values()), {"a": a})
    np.testing.assert_allclose(gradient, 3 * a**2, rtol=1e-5)


def test_a_value_on_two_paths_is_complete_when_passed_on() -> None:
    """The gradient of an inner value with readers far apart is passed on once, whole."""
    text = """g (float[3] a) => (float loss) {
      root = Exp(a)
      one = Tanh(root)
      two = Tanh(one)
      both = Add(two, root)
      loss = ReduceSum<keepdims=0>(both)
    }"""
    made = model(text)
    a = random(3)
    (gradient,) = run(made, list(gradients(made, "a").values()), {"a": a})
    root = np.exp(a)
    one = np.tanh(root)
    derivative = (1 - np.tanh(one) ** 2) * (1 - one**2) + 1
    np.testing.assert_allclose(gradient, derivative * root, rtol=1e-5)


def test_a_target_that_the_loss_does_not_depend_on_is_absent() -> None:
    """A target that is unread, read only off the path to the loss, or only through its shape, gets no gradient."""
    made = model(
        """g (float[3] a, float[3] unread, float[3] aside, float[3] shape_only) => (float loss) {
          other = Exp(aside)
          size = Shape(shape_only)
          wide = Expand(a, size)
          loss = ReduceSum<keepdims=0>(wide)
        }"""
    )
    assert list(gradients(made, "a", "unread", "aside", "shape_only")) == ["a"]


def test_nodes_off_the_path_to_the_loss_are_not_visited() -> None:
    """Freezing costs nothing: the frozen branch, long as it is, adds no node."""
    branch = "f1 = Exp(b)\n f2 = Tanh(f1)\n f3 = Gelu(f2)\n f4 = Softmax(f3)\n"
    head, tail = "g (float[3] a, float[3] b) => (float loss) {", "loss = ReduceSum<keepdims=0>(y) }"
    with_branch = f"{head} {branch} y = Add(a, f4)\n {tail}"
    without = f"{head} y = Add(a, b)\n {tail}"
    assert added(with_branch, "a") == added(without, "a") == Counter({"Expand": 1})


def test_the_walk_ends_at_the_first_target() -> None:
    """Nodes before the only target are not visited, though they are float and on the path."""
    text = """g (float[3] x, float[3] a) => (float loss) {
      before = Gelu(x)
      y = Mul(before, a)
      loss = ReduceSum<keepdims=0>(y)
    }"""
    assert "Erf" not in added(text, "a")


def test_an_intermediate_target_leaves_earlier_targets_theirs() -> None:
    """Targets in a chain all get theirs."""
    made = model(
        """g (float[3] a) => (float loss) {
          middle = Mul(a, a)
          y = Exp(middle)
          loss = ReduceSum<keepdims=0>(y)
        }"""
    )
    a = random(3)
    found = gradients(made, "middle", "a")
    middle, first = run(made, [found["middle"], found["a"]], {"a": a})
    np.testing.assert_allclose(middle, np.exp(a**2), rtol=1e-5)
    np.testing.assert_allclose(first, np.exp(a**2) * 2 * a, rtol=1e-5)


def test_a_target_after_no_gradient_passes_none_on() -> None:
    """Rounded values may be a target; nothing flows through the rounding."""
    made = model(
        """g (float[3] a) => (float loss) {
          whole = Round(a)
          y = Mul(whole, whole)
          loss = ReduceSum<keepdims=0>(y)
        }"""
    )
    assert list(gradients(made, "whole", "a")) == ["whole"]


def test_the_loss_itself_and_a_scalar_may_be_targets() -> None:
    """The gradient of the loss for itself is 1, without a dimension."""
    made = model("g (float[3] a, float s) => (float loss) { y = Mul(a, s)\n loss = ReduceSum<keepdims=0>(y) }")
    a = random(3)
    found = gradients(made, "loss", "s")
    one, scale = run(made, [found["loss"], found["s"]], {"a": a, "s": np.array(2, dtype=np.float32)})
    assert (one.shape, float(one)) == ((), 1.0)
    assert scale.shape == ()
    np.testing.assert_allclose(scale, a.sum(), rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_dimensions_of_other_names_are_summed_at_run_time(rows: int) -> None:
    """One graph serves a size that is broadcast and one that is not."""
    made = model("g (float[n, 3] a, float[m, 3] b) => (float loss) { y = Mul(a, b)\n loss = ReduceSum<keepdims=0>(y) }")
    a, b = random(4, 3), random(rows, 3)
    found = gradients(made, "a", "b")
    da, db = run(made, [found["a"], found["b"]], {"a": a, "b": b})
    np.testing.assert_allclose(da, np.broadcast_to(b, (4, 3)), rtol=1e-5)
    np.testing.assert_allclose(db, a.sum(0, keepdims=True) if rows == 1 else a, rtol=1e-5)


def test_two_dimensions_without_a_name_are_not_assumed_equal() -> None:
    """Of two unnamed sizes either may be 1."""
    made = model("g (float[?, 3] a, float[?, 3] b) => (float loss) { y = Mul(a, b)\n loss = ReduceSum<keepdims=0>(y) }")
    found = gradients(made, "b")
    (gradient,) = run(made, [found["b"]], {"a": random(4, 3), "b": random(1, 3)})
    assert gradient.shape == (1, 3)


def test_dimensions_of_one_name_are_not_summed() -> None:
    """Equal names are equal sizes, so no size has to be computed at run time."""
    text = "g (float[n, 3] a, float[n, 3] b) => (float loss) { y = Mul(a, b)\n loss = ReduceSum<keepdims=0>(y) }"
    assert "ReduceSum" not in added(text, "a", "b")


def test_shapes_are_read_from_the_graph_inputs() -> None:
    """A backward pass that asks an activation for its shape would keep it in memory."""
    made = model(
        """g (float[batch, seq, 4] x, float[4, 6] w) => (float loss) {
          hidden = Tanh(x)
          y = MatMul(hidden, w)
          z = MatMul(y, v)
          loss = ReduceSum<keepdims=0>(z)
        }""".replace("float[4, 6] w)", "float[4, 6] w, float[6, 2] v)")
    )
    gradients(made, "x", "w", "v")
    asked = {node.inputs[0].name for node in made.graph if node.op_type == "Shape" and node.inputs[0] is not None}
    assert asked == {"x"}


UNKNOWN = """g (float[2, 1, 3, 3] a, float[1, 5] regions) => (float loss) {
  hidden = Exp(a)
  moved = MaxRoiPool<pooled_shape=[1, 1]>(hidden, regions)
  loss = ReduceSum<keepdims=0>(moved)
}"""


def test_a_missing_rule_names_node_and_parameter() -> None:
    """The error names op, node and parameter with a hint, and the graph stays unchanged."""
    made = model(UNKNOWN)
    before = len(made.graph)
    with pytest.raises(NoGradientRule) as caught:
        gradients(made, "a")
    assert "Op MaxRoiPool (node MaxRoiPool_1) lies between the loss and parameter a." in str(caught.value)
    assert "freeze a" in str(caught.value.hint)
    assert len(made.graph) == before


def test_an_operator_without_a_rule_off_the_way_is_no_error() -> None:
    """Only operators that a gradient crosses need a rule."""
    made = model(UNKNOWN)
    assert missing_rules(made.graph, values(made)["loss"], []) == []


def test_an_operator_of_another_domain_is_named_with_it() -> None:
    """An operator that merely shares its name with a known one has no rule."""
    made = model("g (float[3] a) => (float loss) { y = Relu(a)\n loss = ReduceSum<keepdims=0>(y) }")
    made.graph[0].domain = "com.example"
    (gap,) = missing_rules(made.graph, values(made)["loss"], [values(made)["a"]])
    assert (gap.op_type, gap.node, gap.target) == ("com.example.Relu", "Relu_0", "a")


IF = """g (float[3] a, float[2, 2] m, bool c) => (float loss) {
  y = If<
    then_branch = t () => (float[3] yes) { yes = Exp(a) },
    else_branch = e () => (float[3] no) { volume = Unknown(m) no = Mul(a, volume) }
  >(c)
  loss = ReduceSum<keepdims=0>(y)
}"""

LOOP = """g (float[3] a, float[3] start, int64 n, bool go) => (float loss) {
  y = Loop<body = b (int64 i, bool more, float[3] state) => (bool again, float[3] next) {
    again = Identity(more)
    next = Mul(state, a)
  }>(n, go, start)
  loss = ReduceSum<keepdims=0>(y)
}"""

NESTED = """g (float[3] a, bool c) => (float loss) {
  y = If<
    then_branch = t () => (float[3] yes) {
      yes = If<
        then_branch = tt () => (float[3] deep) { deep = Exp(a) },
        else_branch = te () => (float[3] deeper) { deeper = Tanh(a) }
      >(c)
    },
    else_branch = e () => (float[3] no) { no = Constant<value_floats = [1.0, 2.0, 3.0]>() }
  >(c)
  loss = ReduceSum<keepdims=0>(y)
}"""


def test_a_parameter_read_by_a_subgraph_is_not_lost() -> None:
    """What has no rule in a branch, and an open Loop, are named, though they do not have it as input."""
    with pytest.raises(NoGradientRule, match=r"Op Unknown in If \(node If_0\) lies between the loss and parameter a\."):
        gradients(model(IF), "a")
    with pytest.raises(NoGradientForCase, match=r"op Loop \(node Loop_0\) .* may not end"):
        gradients(model(LOOP), "a")


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_within_a_branch_has_a_gradient(taken: bool) -> None:
    """That of the one that runs; a constant one has 0."""
    made = model(NESTED)
    a = random(3)
    made.graph.outputs[:] = list(gradients(made, "a").values())
    lower(made)
    (found,) = run(made, list(made.graph.outputs), {"a": a, "c": np.array(taken)})
    np.testing.assert_allclose(found, np.exp(a) if taken else np.zeros(3), rtol=1e-5)


def test_gradient_nodes_carry_the_name_of_their_forward_node() -> None:
    """An error of the runtime leads back to a layer."""
    made = model("g (float[3] a) => (float loss) { y = Exp(a)\n z = Tanh(y)\n loss = ReduceSum<keepdims=0>(z) }")
    before = len(made.graph)
    gradients(made, "a")
    names = [str(node.name) for node in list(made.graph)[before:]]
    assert {name.split("/grad/")[0] for name in names} == {"ReduceSum_2", "Tanh_1", "Exp_0"}


def test_a_mean_spreads_its_gradient_without_a_new_tensor() -> None:
    """The mean of squares (RMSNorm, squared error) multiplies the input by a small tensor, and expands nothing."""
    text = """g (float[batch, 8] a) => (float loss) {
      two = Constant<value_float = 2.0>()
      axis = Constant<value_ints = [-1]>()
      squares = Pow(a, two)
      means = ReduceMean<keepdims=1>(squares, axis)
      weighed = Mul(means, means)
      loss = ReduceSum<keepdims=0>(weighed)
    }"""
    made = model(text)
    found = gradients(made, "a")["a"]
    a = random(3, 8)
    (gradient,) = run(made, [found], {"a": a})
    np.testing.assert_allclose(gradient, 4 * (a**2).mean(1, keepdims=True) * a / 8, rtol=1e-5)
    RemoveUnusedNodesPass()(made)
    assert all(node.op_type != "Expand" for node in made.graph)


EINSUM = """g (float[{a}, 3, 4] a, float[{b}, 4, 5] b, float[1, 3, 5] w) => (float loss) {{
  e = Einsum<equation = "bij,bjk->bik">(a, b)
  y = Mul(e, w)
  z = Exp(y)
  loss = ReduceSum<keepdims=0>(z)
}}"""


@pytest.mark.parametrize(("first", "second"), [("n", "m"), ("n", "2")])
def test_an_index_that_einsum_broadcasts_is_asked_of_the_run(first: str, second: str) -> None:
    """ONNX gives an index the size it has in the first operand. The sums are correct all the same."""
    made = model(EINSUM.format(a=first, b=second))
    feeds = {"a": random(1, 3, 4), "b": random(2, 4, 5) / 8, "w": random(1, 3, 5) / 8}
    found = gradients(made, "a", "b", "w")
    results = dict(zip(found, run(made, list(found.values()), feeds), strict=True))
    e = feeds["a"] @ feeds["b"]
    dy = np.exp(e * feeds["w"])
    expected = {
        "a": ((dy * feeds["w"]) @ feeds["b"].transpose(0, 2, 1)).sum(0, keepdims=True),
        "b": feeds["a"].transpose(0, 2, 1) @ (dy * feeds["w"]),
        "w": (dy * e).sum(0, keepdims=True),
    }
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, rtol=1e-4)


def test_an_einsum_off_the_path_has_no_wrong_size_either() -> None:
    """A frozen factor is broadcast too. Otherwise the parameter's gradient would have another shape."""
    made = model(EINSUM.format(a="1", b="2"))
    feeds = {"a": random(1, 3, 4), "b": random(2, 4, 5) / 8, "w": random(1, 3, 5) / 8}
    (found,) = run(made, list(gradients(made, "w").values()), feeds)
    e = feeds["a"] @ feeds["b"]
    np.testing.assert_allclose(found, (np.exp(e * feeds["w"]) * e).sum(0, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize(
    ("equation", "sizes"), [("ij,kj->ik", ((3, 1), (2, 4))), ("...ij,...jk->...ik", ((1, 2, 3), (4, 3, 2)))]
)
def test_an_operand_that_einsum_broadcasts_is_expanded(equation: str, sizes: tuple[tuple[int, ...], ...]) -> None:
    """An index of size 1 in one operand, summed or not: the gradients are torch's."""
    a, b = (torch.from_numpy(random(*shape)).requires_grad_() for shape in sizes)
    wide = a.expand(3, 4) if equation == "ij,kj->ik" else a.expand(4, 2, 3)
    y = torch.einsum(equation, wide, b)
    y.square().sum().backward()
    made = model(
        f"""g (float{list(sizes[0])} a, float{list(sizes[1])} b) => (float loss) {{
          y = Einsum<equation = "{equation}">(a, b)
          z = Mul(y, y)
          loss = ReduceSum<keepdims=0>(z)
        }}"""
    )
    found = gradients(made, "a", "b")
    results = run(made, list(found.values()), {"a": a.detach().numpy(), "b": b.detach().numpy()})
    for result, tensor in zip(results, (a, b), strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(result, tensor.grad.numpy(), rtol=1e-4)


def test_a_float_input_without_a_gradient_is_refused() -> None:
    """Nobody trains the ratio of a Dropout; but who does must not get zero for it."""
    made = model(
        """g (float[3] a, float ratio) => (float loss) {
          train = Constant<value = bool {1}>()
          y = Dropout(a, ratio, train)
          loss = ReduceSum<keepdims=0>(y)
        }"""
    )
    with pytest.raises(NoGradientForCase, match="none is known for its input 1"):
        gradients(made, "a", "ratio")


def test_a_dropout_in_training_has_the_mask_of_the_forward() -> None:
    """Dropped elements have gradient 0; gradients of the others are scaled like the outputs."""
    made = model(
        """g (float[64] a, float ratio) => (float loss, float[64] y) {
          train = Constant<value = bool {1}>()
          y = Dropout(a, ratio, train)
          loss = ReduceSum<keepdims=0>(y)
        }"""
    )
    found, y = gradients(made, "a")["a"], values(made)["y"]
    a = random(64)
    gradient, outputs = run(made, [found, y], {"a": a, "ratio": np.array(0.75, np.float32)})
    assert 0 < np.count_nonzero(outputs) < 64
    np.testing.assert_allclose(gradient * a, outputs, rtol=1e-5)


def test_a_second_output_that_a_rule_does_not_know_is_refused() -> None:
    """A gradient that arrives there would be lost."""
    made = model(
        """g (float[4] a) => (float loss) {
          y, mask = Dropout(a)
          loss = ReduceSum<keepdims=0>(y)
        }"""
    )
    made.graph[0].outputs[1].dtype = ir.DataType.FLOAT
    made.graph[1].replace_input_with(0, made.graph[0].outputs[1])
    with pytest.raises(NoGradientForCase, match="an output other than its first"):
        gradients(made, "a")


def at_opset(made: ir.Model, opset: int) -> ir.Model:
    made.graph.opset_imports[""] = opset
    return made


def test_an_attribute_that_came_later_is_refused() -> None:
    """SpaceToDepth has a mode since opset 28, and means something else by it."""
    text = "g (float[1,1,2,2] a) => (float loss) { y = SpaceToDepth<blocksize=2>(a)\n loss = ReduceSum<keepdims=0>(y) }"
    made = at_opset(model(text), 28)
    made.graph[0].attributes.add(ir.AttrString("mode", "CRD"))
    with pytest.raises(NoGradientForCase, match="its attribute mode came after opset 21"):
        gradients(made, "a")


@pytest.mark.parametrize(("opset", "operator"), [(11, "Softmax"), (15, "Gather")])
def test_an_operator_set_too_old_for_a_gradient_is_refused(opset: int, operator: str) -> None:
    """Softmax had another default before 13; ScatterElements adds since 16."""
    second = ", i" if operator == "Gather" else ""
    text = (
        f"g (float[4] a, int64[2] i) => (float loss) {{ y = {operator}(a{second})\n loss = ReduceSum<keepdims=0>(y) }}"
    )
    with pytest.raises(UnsupportedOpset) as caught:
        gradients(at_opset(model(text), opset), "a")
    assert caught.value.code == "unsupported-opset"
    assert str(opset) in caught.value.message
