"""Calls of torch that the exporter cannot translate, or that releases of ONNX Runtime compute differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft_export.autodiff import differentiate
from edgepeft_export.forward import from_torch
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.inner(x) * (1.0 - mask).unsqueeze(-1) + torch.rsub(mask, 2.5).unsqueeze(-1)


def test_integers_are_subtracted_from_a_float() -> None:
    """The export is compared with torch at two sizes."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    from_torch(Masked(), {"x": torch.randn(2, 3, 3), "mask": mask}, dynamic_axes={"x": {0: "b"}, "mask": {0: "b"}})


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 2, 3), pool

    def forward(self, image: Tensor) -> Tensor:
        return self.pool(self.conv(image)).flatten(1)


def test_a_pool_larger_than_the_image_is_a_mean() -> None:
    """And has a gradient; a smaller one stays what it is."""
    graph = from_torch(Pooled(nn.AvgPool2d(64, ceil_mode=True)), torch.randn(2, 1, 8, 7)).model.graph
    assert "AveragePool" not in {node.op_type for node in graph}
    weight = next(value for value in graph.inputs if value.name == "conv.weight")
    assert differentiate(graph, graph.outputs[0], [weight])[weight] is not None
    for pool in (nn.AvgPool2d(2), nn.AvgPool2d(3, ceil_mode=True), nn.AvgPool2d(6, padding=2, ceil_mode=True)):
        graph = from_torch(Pooled(pool), torch.randn(2, 1, 8, 7)).model.graph
        assert "AveragePool" in {node.op_type for node in graph}


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.cat([self.inner(x), x * 2], 1).chunk(2, dim=1)
        first, second = torch.cat([one, one], 1).split(x.shape[1], dim=1)
        return other - first * second


def test_parts_of_a_free_size_are_slices() -> None:
    """Sequences of tensors would have no gradient, and the exporter fails on some."""
    graph = from_torch(Parts(), {"x": torch.randn(2, 6, 3)}, dynamic_axes={"x": {0: "b", 1: "length"}}).model.graph
    assert not [node.op_type for node in graph if "Sequence" in node.op_type]


class Bags(nn.Module):
    def __init__(self, mode: str, padding: int | None, last: bool) -> None:
        super().__init__()
        self.bags = nn.EmbeddingBag(20, 8, mode=mode, padding_idx=padding, include_last_offset=last)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        return self.head(self.bags(ids, offsets, weights))


ROWS = {"ids": torch.tensor([[3, 3, 3], [1, 3, 2], [4, 5, 4], [3, 1, 1]])}
RANGES = {"ids": torch.tensor([1, 7, 3, 1, 3, 2, 4, 5, 4]), "offsets": torch.tensor([0, 3, 3, 5])}
ENDS = {"ids": RANGES["ids"], "offsets": torch.tensor([0, 3, 3, 5, 9])}
WEIGHED = {**RANGES, "weights": torch.rand(9)}


@pytest.mark.parametrize(
    ("mode", "padding", "inputs"),
    [("sum", None, WEIGHED), ("mean", 3, RANGES), ("mean", 3, ROWS), ("max", None, ENDS), ("max", 3, ROWS)],
)
def test_bags_of_embeddings_train_as_in_torch(
    mode: str, padding: int | None, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    """Also empty ones, and of padding alone; the export is compared with torch at two sizes."""
    torch.manual_seed(0)
    model, labels = Bags(mode, padding, inputs is ENDS), torch.tensor([0, 2, 1, 0])
    free = {name: {0: "tokens"} for name in inputs} | ({"offsets": {0: "bags"}} if "offsets" in inputs else {})
    edgepeft.prepare(
        model, inputs, method="full", optimizer=SGD(momentum=0.0, weight_decay=0.0), out=tmp_path / "b",
        interface=edgepeft.Interface(dynamic_axes=free),
    )  # fmt: skip
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    with Trainer.open(tmp_path / "b") as trainer:
        loss = trainer.step({**given, "labels": labels.numpy()}, lr=1.0)
        (after,) = trainer.predict(given).values()
    expected = nn.functional.cross_entropy(model(**inputs), labels)
    expected.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(after, model(**inputs).detach(), atol=1e-5)
