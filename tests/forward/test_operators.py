"""Calls of torch that the exporter cannot translate, or that releases of ONNX Runtime compute differently."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgepeft_export.autodiff import differentiate
from edgepeft_export.forward import from_torch


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
