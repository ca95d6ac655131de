"""Sources become graphs: trained parameters are inputs by name, sizes are symbolic, the model is unchanged."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepeft.methods import Lora, attach
from edgepeft_export.autodiff.walk import NoGradientRule
from edgepeft_export.compile import compile_step, missing_rules
from edgepeft_export.errors import ForwardError, LossError, NothingReachesLoss, NothingTrains
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.losses import MSE, CrossEntropy, Loss
from edgepeft_export.optimizers import SGD
from tests.support.networks import tiny_bert

pytestmark = pytest.mark.own_exports


def _outputs(forward: Forward, inputs: dict[str, Tensor]) -> dict[str, NDArray[np.generic]]:
    session = onnxruntime.InferenceSession(ir.to_proto(forward.model).SerializeToString())
    fed = {**{name: tensor.numpy() for name, tensor in inputs.items()}, **forward.parameters}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


def _input_dims(forward: Forward) -> dict[str, str]:
    return {str(value.name): str(value.shape) for value in forward.input_values()}


class TwoInputs(nn.Module):
    """Embeds ids, averages what the mask keeps, and adds a bias. A pooler is unused."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.pooler = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        kept = self.embedding(ids) * mask[..., None]
        mean = kept.sum(1) / mask.sum(1, keepdim=True)
        return {"mean": mean, "logits": self.head(mean), "pooled": torch.tanh(self.pooler(mean)), "same": mean}


def _text(rows: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(rows + length))
    return {"ids": ids, "mask": torch.ones_like(ids)}


# Parameters


def test_parameters_keep_their_names_and_stay_apart() -> None:
    """None of peft's 8 matrices, of which 4 are equal zeros, is folded, merged, renamed or moved."""
    model = attach(Lora(rank=2, target_modules=("query", "value"), modules_to_save=()), tiny_bert())
    ids = torch.ones(2, 6, dtype=torch.int64)
    forward = from_torch(model, {"input_ids": ids, "attention_mask": ids})
    expected = {name: p.detach().numpy() for name, p in model.named_parameters() if p.requires_grad}
    assert len(expected) == 8
    assert list(forward.parameters) == list(expected)
    assert [str(value.name) for value in forward.model.graph.inputs] == ["input_ids", "attention_mask", *expected]
    assert all(value.uses() for value in forward.model.graph.inputs if value.name in expected)
    assert not set(expected) & set(forward.model.graph.initializers)
    for name, array in expected.items():
        np.testing.assert_array_equal(forward.parameters[name], array)
        assert not np.shares_memory(forward.parameters[name], array)


def test_equal_frozen_and_trainable_tensors_stay_apart() -> None:
    """Of two layers of the same values one trains: changing it changes that layer alone."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.load_state_dict(first.state_dict())
    first.requires_grad_(False)
    forward = from_torch(nn.Sequential(first, second), torch.zeros(2, 3))
    assert list(forward.parameters) == ["1.weight"]
    forward.parameters["1.weight"][:] = 0
    assert not _outputs(forward, {"input": torch.ones(1, 3)})["output"].any()


def test_a_tensor_shared_by_two_modules_is_one_parameter() -> None:
    """Tied weights train once: both readers use the same graph input."""
    tied = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(tied, nn.Tanh(), tied)
    forward = from_torch(model, torch.zeros(2, 3))
    assert list(forward.parameters) == ["0.weight"]
    x = torch.randn(2, 3)
    with torch.no_grad():
        np.testing.assert_allclose(_outputs(forward, {"input": x})["output"], model(x).numpy(), rtol=1e-5, atol=1e-6)


def test_frozen_tensors_keep_their_names() -> None:
    """A frozen parameter is an initializer with its name in the module's state, with ``.T`` if transposed."""
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 4), b=nn.Linear(4, 2)))
    model.a.requires_grad_(False)
    forward = from_torch(model, torch.zeros(2, 3))
    assert {"a.weight", "a.weight.T"} & set(forward.model.graph.initializers)
    assert "a.bias" in forward.model.graph.initializers


def test_nothing_trainable_is_refused() -> None:
    """A frozen module names the methods."""
    with pytest.raises(NothingTrains) as failure:
        from_torch(nn.Linear(2, 2).requires_grad_(False), torch.zeros(2, 2))
    assert failure.value.code == "nothing-trains"
    assert "lora" in str(failure.value)


def test_parameters_in_double_precision_are_refused() -> None:
    """Trainable tensors in float64 are named with their dtype; half precision is brought to float32."""
    with pytest.raises(ForwardError) as failure:
        from_torch(nn.Linear(2, 2).double(), torch.zeros(2, 2, dtype=torch.float64))
    assert failure.value.code == "parameter-dtype"
    assert "weight (torch.float64)" in str(failure.value)


# Sizes


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (2, 2), (1, 5)])
def test_any_example_gives_a_graph_of_any_size(rows: int, length: int) -> None:
    """Exported with a batch or a length of 1, or with both equal, the graph runs at all sizes, 1 included."""
    model = TwoInputs().eval()
    forward = from_torch(model, _text(rows, length), outputs=["logits"])
    assert _input_dims(forward) == {"ids": "[batch,sequence]", "mask": "[batch,sequence]"}
    for sizes in ((1, 1), (1, 7), (4, 1), (3, 3), (5, 2)):
        inputs = _text(*sizes)
        with torch.no_grad():
            expected = model(**inputs)["logits"]
        np.testing.assert_allclose(_outputs(forward, inputs)["logits"], expected, rtol=1e-5, atol=1e-6)


def test_dynamic_axes_can_be_named() -> None:
    """The caller names the dynamic axes; all others are fixed."""
    axes = {"image": {0: "images", 2: "height", 3: "width"}}
    forward = from_torch(nn_image(), {"image": torch.zeros(1, 3, 6, 6)}, dynamic_axes=axes)
    assert _input_dims(forward) == {"image": "[images,3,height,width]"}
    assert _outputs(forward, {"image": torch.zeros(2, 3, 9, 4)})["output"].shape == (2, 4)


def nn_image() -> nn.Module:
    """A convolution over images of any size."""

    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            return self.conv(image).mean(dim=(2, 3))

    return Image()


def test_a_dimension_that_the_model_fixes_is_named() -> None:
    """A forward that only works for one batch size is refused with the input and the axis, by every check."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return (x.reshape(4, 3) * self.weight).sum(dim=1)

    with pytest.raises(ForwardError) as failure:
        from_torch(Fixed(), torch.zeros(4, 3))
    assert failure.value.code == "fixed-dimension"
    assert "'x'" in str(failure.value) and "4" in str(failure.value)


def test_the_module_that_fixes_a_dimension_is_named() -> None:
    """With the line of its code, as a loop over the length of a sequence (state space models)."""

    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros_like(x[:, 0])
            for step in range(x.shape[1]):
                state = torch.tanh(state + x[:, step])
            return state

    model = nn.ModuleDict({"first": nn.Linear(3, 4), "mixer": Loop()})
    model.forward = lambda x: model["mixer"](model["first"](x))
    with pytest.raises(ForwardError, match=r"axis 1 \(sequence\).* to 6 in module 'mixer'") as failure:
        from_torch(model, {"x": torch.zeros(2, 6, 3)}, dynamic_axes={"x": {0: "batch", 1: "sequence"}})
    assert failure.value.code == "fixed-dimension"
    assert "range(x.shape[1])" in str(failure.value.context)


# Inputs and outputs


def test_examples_may_be_given_in_order() -> None:
    """A tensor or a sequence of tensors goes to the first arguments of ``forward``."""
    inputs = _text(2, 3)
    forward = from_torch(TwoInputs(), tuple(inputs.values()))
    assert forward.inputs == ("ids", "mask")
    assert forward.outputs == ("logits",), "the others are kept only where they are asked for"


def test_outputs_are_chosen_by_name_and_in_order() -> None:
    """Any outputs of the model can be kept; one given twice by the model comes out twice."""
    inputs = _text(2, 3)
    forward = from_torch(TwoInputs(), inputs, outputs=["same", "logits", "mean"])
    assert forward.outputs == ("same", "logits", "mean")
    found = _outputs(forward, inputs)
    np.testing.assert_array_equal(found["same"], found["mean"])
    assert found["logits"].shape == (2, 3)
    graphs = compile_step(forward, MSE(), SGD()).graphs
    assert [value.name for value in graphs["infer"].graph.outputs] == ["same", "logits", "mean"]
    assert [value.name for value in graphs["eval"].graph.outputs][2:] == ["same", "logits", "mean"]


def test_an_output_that_is_an_input_has_a_node_of_its_own() -> None:
    """A model that returns an input has valid graphs."""

    class Through(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.linear(x), x

    forward = from_torch(Through(), torch.zeros(2, 2))
    assert forward.outputs == ("output_0", "output_1")
    np.testing.assert_array_equal(_outputs(forward, {"x": torch.ones(3, 2)})["output_1"], np.ones((3, 2)))


def test_outputs_named_like_inputs_are_distinguished() -> None:
    """An output called as a parameter or an input of the model does not shadow it."""

    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Parameter(torch.full((2,), 3.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.output

    forward = from_torch(Echo(), torch.zeros(2, 2))
    names = [str(value.name) for value in (*forward.model.graph.inputs, *forward.model.graph.outputs)]
    assert len(set(names)) == len(names)
    (found,) = _outputs(forward, {"x": torch.ones(1, 2)}).values()
    np.testing.assert_array_equal(found, [[3.0, 3.0]])


def test_an_unknown_output_lists_those_that_exist() -> None:
    """A name that is no output is refused with the names of the outputs."""
    with pytest.raises(ForwardError) as failure:
        from_torch(TwoInputs(), _text(2, 3), outputs=["score"])
    assert failure.value.code == "unknown-output"
    assert "mean, logits, pooled, same" in str(failure.value)


@pytest.mark.parametrize(
    "inputs",
    [
        {"ids": torch.zeros(2, 3, dtype=torch.int64)},
        {"ids": torch.zeros(2, 3), "mask": torch.ones(2, 3)},
        {"ids": torch.full((2, 3), 11), "mask": torch.ones(2, 3)},
        {"ids": torch.zeros(2, 3).long(), "mask": torch.ones(2, 3), "type": torch.ones(2)},
        {"ids": [[1, 2]], "mask": torch.ones(1, 2)},
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)),
        {},
    ],
    ids=["missing", "dtype", "range", "unknown", "list", "too many", "none"],
)
def test_examples_that_do_not_fit_are_refused(inputs: dict[str, Tensor]) -> None:
    """A missing, surplus or wrong example input is one error, before the export."""
    with pytest.raises(ForwardError) as failure:
        from_torch(TwoInputs(), inputs)
    assert failure.value.code == "bad-example-inputs"


# The model stays unchanged


def test_the_model_is_put_back() -> None:
    """Training mode per module, requires_grad, gradients and the cache setting are as before, also after a failure."""
    model = TwoInputs().train()
    model.pooler.eval()
    model.config = SimpleNamespace(use_cache=True)  # as models of transformers have it
    model.embedding.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    from_torch(model, _text(2, 5))
    with pytest.raises(ForwardError):
        from_torch(model, {"ids": torch.zeros(2, 5)})
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert model.config.use_cache is True
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_dropout_is_off_in_the_graph() -> None:
    """A module in training mode is exported as in evaluation mode."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)).train()
    forward = from_torch(model, torch.zeros(2, 3))
    x = torch.randn(2, 3)
    with torch.no_grad():
        np.testing.assert_allclose(_outputs(forward, {"input": x})["output"], model[0](x), rtol=1e-5)


# Trained parameters and the loss


def _compile(model: nn.Module, inputs: dict[str, Tensor] | Tensor, loss: Loss | None = None, **settings: object):
    return compile_step(from_torch(model, inputs, **settings), loss or CrossEntropy(), SGD())


def test_parameters_out_of_reach_are_reported_and_stay_frozen() -> None:
    """A pooler that the chosen output does not use is not trained, and is no input of the graphs."""
    compiled = _compile(TwoInputs(), _text(2, 3), outputs=["logits"])
    assert set(compiled.unreached) == {"pooler.weight", "pooler.bias"}
    assert set(compiled.parameters) == {"embedding.weight", "head.weight", "head.bias"}
    for graph in compiled.graphs.values():
        names = {value.name for value in graph.graph.inputs} | set(graph.graph.initializers)
        assert not {"pooler.weight", "pooler.bias"} & names


def test_an_unreached_parameter_of_an_output_is_frozen() -> None:
    """The second output reads the pooler: inference still computes it, from its initial values."""
    model = TwoInputs().eval()
    compiled = _compile(model, _text(2, 3), outputs=["logits", "pooled"])
    assert set(compiled.unreached) == {"pooler.weight", "pooler.bias"}
    session = onnxruntime.InferenceSession(ir.to_proto(compiled.graphs["infer"]).SerializeToString())
    inputs = _text(3, 4)
    fed = {**{name: tensor.numpy() for name, tensor in inputs.items()}, **compiled.parameters}
    with torch.no_grad():
        expected = model(**inputs)["pooled"].numpy()
    np.testing.assert_allclose(session.run(["pooled"], fed)[0], expected, rtol=1e-5, atol=1e-6)


def test_labels_among_the_inputs_are_refused() -> None:
    """A model that is exported with its labels as an input would get them twice."""

    class WithLabels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return self.head(x) + labels[:, None]

    with pytest.raises(LossError) as failure:
        _compile(WithLabels(), {"x": torch.zeros(2, 3), "labels": torch.zeros(2, dtype=torch.int64)})
    assert failure.value.code == "loss-inputs"


def test_a_loss_that_reaches_nothing_is_refused() -> None:
    """If only the pooler trains and the loss looks at the logits, there is nothing to train."""
    model = TwoInputs().requires_grad_(False)
    model.pooler.requires_grad_(True)
    with pytest.raises(NothingReachesLoss) as failure:
        _compile(model, _text(2, 3), outputs=["logits", "pooled"])
    assert "pooler.weight" in str(failure.value)


def test_frozen_parts_are_not_differentiated() -> None:
    """Of four layers, the step contains the backward matmuls of the trained ones only."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]
    model = nn.Sequential(*layers, nn.Linear(4, 4)).requires_grad_(False)
    products = []
    for first in (3, 1):
        model[first:].requires_grad_(True)
        graph = _compile(model, torch.zeros(2, 4)).graphs["train"].graph
        products.append(sum(node.op_type in ("MatMul", "Gemm") for node in graph))
    # Four products forward. Each training layer has one for its weight; one for its input, if another trains before it.
    assert products == [4 + 1, 4 + 3 + 2]


class Volume(nn.Module):
    """A determinant, ONNX's operator Det, between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 9)
        self.after = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.linalg.det(self.before(x).reshape(-1, 3, 3)).unsqueeze(1))


@pytest.mark.usefixtures("without_det")
def test_a_missing_rule_names_operator_and_parameter() -> None:
    """The error names operator, node and parameter with a hint; with that parameter frozen the model trains."""
    model, image = Volume(), torch.zeros(2, 4)
    with pytest.raises(NoGradientRule) as failure:
        _compile(model, image)
    error = failure.value
    assert error.code == "no-gradient-rule"
    assert error.message == "Cannot build the train step: op Det has no gradient rule."
    assert error.context is not None and error.hint is not None
    assert error.context.startswith("Op Det (node ") and "parameter before." in error.context
    assert "freeze before." in error.hint
    gaps = missing_rules(from_torch(model, image), CrossEntropy())
    assert [(gap.op_type, gap.target.partition(".")[0]) for gap in gaps] == [("Det", "before")]
    model.before.requires_grad_(False)
    assert set(_compile(model, image).parameters) == {"after.weight", "after.bias"}
    assert missing_rules(from_torch(model, image), CrossEntropy()) == []


def test_regression_on_several_outputs_looks_at_the_first() -> None:
    """Labels have the shape of the first output."""
    compiled = _compile(TwoInputs(), _text(2, 3), MSE(), outputs=["pooled", "logits"])
    assert [label.shape for label in compiled.labels] == [("batch", 4)]


def test_writing_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter writes no report into the working directory, also when it fails."""
    monkeypatch.chdir(tmp_path)
    from_torch(nn.Linear(2, 2), torch.zeros(2, 2))
    assert not list(tmp_path.iterdir())
