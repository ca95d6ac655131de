"""Exported graphs are run, and compared with their source."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from edgepeft_export.errors import VerificationError
from edgepeft_export.forward import from_torch
from edgepeft_export.forward.torch_source.export import DynamicAxes, ExampleInputs
from edgepeft_export.verification.graph import GraphRun

NODES: DynamicAxes = {"x": {0: "nodes"}, "to": {0: "nodes"}}


class WrongMean(nn.Module):
    """A function whose argument the exporter drops."""

    def forward(self, x: Tensor, to: Tensor) -> Tensor:
        indices = to[:, None].expand(-1, x.shape[1])
        return torch.zeros_like(x).scatter_reduce(0, indices, x, "mean", include_self=True)


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.mean, self.last = nn.Linear(3, 4), WrongMean(), nn.Linear(4, 2)

    def forward(self, x: Tensor, to: Tensor) -> Tensor:
        return self.last(self.mean(self.first(x), to))


def _nodes(x: Tensor | None = None) -> ExampleInputs:
    return {"x": torch.randn(5, 3) if x is None else x, "to": torch.tensor([0, 0, 1, 1, 1])}


def test_a_wrong_export_names_function_and_module() -> None:
    """The exporter drops an argument: the error says which function, and in which module."""
    with pytest.raises(VerificationError, match="'output'") as caught:
        from_torch(Graph(), _nodes(), dynamic_axes=NODES)
    assert caught.value.code == "export-differs"
    assert "scatter_reduce, in module mean" in str(caught.value.context)


def test_an_example_of_zeros_hides_no_fault() -> None:
    """Zeros give zeros whatever is computed: such inputs are replaced for the comparison."""
    with pytest.raises(VerificationError):
        from_torch(Graph(), _nodes(torch.zeros(5, 3)), dynamic_axes=NODES)


def test_a_branch_that_starts_as_zero_is_compared() -> None:
    """Constant trained parameters, such as LoRA's B, are set to other values."""

    class Branch(Graph):
        def __init__(self) -> None:
            super().__init__()
            self.requires_grad_(False)
            self.b = nn.Parameter(torch.zeros(3, 2))

        def forward(self, x: Tensor, to: Tensor) -> Tensor:
            return self.last(self.first(x)) + self.mean(x, to) @ self.b

    with pytest.raises(VerificationError) as caught:
        from_torch(Branch(), _nodes(), dynamic_axes=NODES)
    assert "scatter_reduce" in str(caught.value.context)


@pytest.mark.parametrize("draw", [torch.rand_like, torch.randn_like, lambda x: nn.functional.dropout(x, 0.5, True)])
def test_a_random_forward_is_refused(draw: object) -> None:
    """Two runs have two results, so none can be compared with torch's."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x + draw(x))  # type: ignore[operator]  # pytest hands it over as an object

    with pytest.raises(VerificationError, match="random") as caught:
        from_torch(Noisy(), torch.ones(2, 3))
    assert caught.value.code == "random-forward"


def test_dropout_that_is_off_is_not_random() -> None:
    """Modules that draw in training mode only are exported in evaluation mode."""
    forward = from_torch(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), torch.ones(2, 3))
    assert len(forward.verified.examples) == 2


def test_infinite_and_missing_outputs_are_compared() -> None:
    """-inf has to be -inf. Where torch has NaN, nothing is compared."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.linear(x)
            return scores.masked_fill(torch.tensor([True, False, True, False]), -torch.inf), torch.log(-scores.abs())

    forward = from_torch(Masked(), torch.randn(2, 3))
    assert [example.inputs["x"].shape for example in forward.verified.examples] == [(2, 3), (4, 3)]


def test_a_sequence_at_its_limit_is_made_shorter() -> None:
    """The second size is half if the model does not accept twice the example's."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.positions, self.head = nn.Embedding(9, 4), nn.Embedding(6, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.words(ids) + self.positions(torch.arange(ids.shape[1])))

    forward = from_torch(Positions(), torch.randint(0, 9, (2, 6)))
    assert [example.inputs["ids"].shape for example in forward.verified.examples] == [(2, 6), (1, 3)]


def test_a_model_that_drops_an_axis_of_one_says_so() -> None:
    """With one example, squeeze removes the batch too. The graph does not, and the user is warned."""

    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x[:, None]).squeeze()

    forward = from_torch(Squeezing(), torch.randn(1, 3))
    assert len(forward.verified.examples) == 1
    assert "size of 1" in forward.verified.notes[0]


def test_large_weights_may_lie_in_any_order() -> None:
    """A transposed view is no buffer that onnxruntime can borrow; the graph runs all the same."""
    weight = np.arange(200 * 150, dtype=np.float32).reshape(200, 150).T
    assert not weight.flags.c_contiguous
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 150]))
    w = ir.Value(name="w", const_value=ir.Tensor(weight, name="w"))
    w.type, w.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(weight.shape)
    node = ir.node("MatMul", [x, w])
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 17}, name="g")
    given = np.ones((2, 150), np.float32)
    found = GraphRun(ir.Model(graph, ir_version=9))({"x": given})
    np.testing.assert_allclose(found["y"], given @ weight, rtol=1e-5)
