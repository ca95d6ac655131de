"""Operators that read or write at positions computed at run time. Positions repeat, and count from the end."""

import numpy as np
import torch
from torch import Tensor

from tests.autodiff.rule_cases.case import Case, Constant, Function, Given, ints, x

IDS = np.array([[0, 2, 2], [4, -1, 2]])
ONE = Constant(np.array(-2))
ONE_AXIS = Constant(np.array(1))


def gather_nd(batch: int) -> Function:
    def gather(a: Tensor, indices: Tensor) -> Tensor:
        if batch:
            return torch.stack([gather_nd(batch - 1)(part, at) for part, at in zip(a, indices, strict=True)])
        return a[tuple(indices.unbind(-1))]

    return gather


def scatter_nd(add: bool) -> Function:
    return lambda a, indices, new: a.index_put(tuple(indices.unbind(-1)), new, accumulate=add)


def one_hot(depth: int, axis: int = -1) -> Function:
    def apply(ids: Tensor, _: Tensor, values: Tensor) -> Tensor:
        indices = torch.arange(depth)
        counted = torch.where(ids < 0, ids + depth, ids)[..., None] == indices
        return torch.where(counted, values[1], values[0]).movedim(-1, axis)

    return apply


def ramp(count: int) -> Function:
    return lambda start, _, delta: start + torch.arange(count, dtype=start.dtype) * delta


def number(value: float) -> Constant:
    return Constant(np.array(value, dtype=np.float32))


def reduced(reduction: str) -> Function:
    return lambda a, i, new: a.scatter_reduce(0, i, new, reduction)


def reduced_rows(reduction: str) -> Function:
    """Tuples of indices, as rows of the flat tensor."""

    def apply(a: Tensor, tuples: Tensor, new: Tensor) -> Tensor:
        depth = tuples.shape[-1]
        strides = torch.tensor([int(np.prod(a.shape[at + 1 : depth])) for at in range(depth)])
        rows = (tuples * strides).sum(-1).reshape(-1, 1)
        flat, new = a.flatten(0, depth - 1).reshape(-1, int(np.prod(a.shape[depth:]))), new.reshape(len(rows), -1)
        return flat.scatter_reduce(0, rows.expand(new.shape), new, reduction).reshape(a.shape)

    return apply


def product(exclusive: bool = False, reverse: bool = False) -> Function:
    def apply(a: Tensor, *_: Tensor) -> Tensor:
        a = a.flip(1) if reverse else a
        a = torch.cat([torch.ones_like(a[:, :1]), a[:, :-1]], 1) if exclusive else a
        return a.cumprod(1).flip(1) if reverse else a.cumprod(1)

    return apply


def written(cache: Tensor, update: Tensor, starts: Tensor) -> Tensor:
    """Each row's update from its index on, and from the front again at the end."""
    rows = (starts[:, None] + torch.arange(update.shape[1])) % cache.shape[1]
    return cache.scatter(1, rows[..., None].expand(update.shape), update)


def unpooled(shape: tuple[int, ...]) -> Function:
    return lambda a, i: a.new_zeros(shape).flatten().scatter(0, i.flatten(), a.flatten()).reshape(shape)


TIED = Given(np.array([[1.0, 3.0], [2.0, 3.0], [2.0, 0.5]]))
ZEROS = Given(np.array([[0.0, 1.5], [0.0, 0.0], [-2.0, 0.0]]))
THERE = np.array([[0, 0], [0, 2], [0, 2]])
UNSORTED = Given(np.array([[3.0, 1.0], [3.0, 2.0]]))

CASES = [
    Case("Gather", [x(5, 4), IDS], lambda a, i: a[i]),
    Case("Gather", [x(5, 4), IDS.astype(np.int32)], lambda a, i: a[i.long()]),
    Case("Gather", [x(5, 4), np.array([3, 3, 0])], lambda a, i: a[i]),
    Case("Gather", [x(2, 5, 3), IDS], lambda a, i: a[:, i], {"axis": 1}),
    Case("Gather", [x(2, 3, 5), IDS], lambda a, i: a[..., i], {"axis": -1}),
    Case("Gather", [x(2, 5, 3), np.array(3)], lambda a, i: a[:, i], {"axis": 1}),
    Case("Gather", [x(2, 5, 3), Constant(np.array(0))], lambda a, _: a[:, 0], {"axis": 1}),
    Case("Gather", [x(2, 5, 3), ONE], lambda a, _: a[:, -2], {"axis": 1}),
    Case("Gather", [x(2, 5, 3), ints(3)], lambda a, _: a[:, 3:4], {"axis": -2}),
    Case("Gather", [x(5, 4), Constant(IDS)], lambda a, i: a[i]),
    Case("Gather", [x(5, 4), np.zeros((0,), dtype=np.int64)], lambda a, i: a[i]),
    Case("GatherElements", [x(3, 5), np.array([[4], [-1], [0]])], lambda a, i: a.gather(1, i % 5), {"axis": 1}),
    Case("GatherElements", [x(3, 2), np.array([[0, 2], [0, 2]])], lambda a, i: a.gather(0, i)),
    Case("GatherND", [x(3, 4, 2), np.array([[0, 1], [-1, 3], [0, 1]])], gather_nd(0), fixed=(1,)),
    Case("GatherND", [x(3, 4), np.array([[[0], [0]], [[2], [-3]]])], gather_nd(0), fixed=(1,)),
    Case("GatherND", [x(3, 4), np.array([[0, 1], [0, 1], [2, 2]])], gather_nd(0), fixed=(1,)),
    Case("GatherND", [x(2, 4, 3), np.array([[[0], [0]], [[3], [-1]]])], gather_nd(1), {"batch_dims": 1}, fixed=(1,)),
    Case("GatherND", [x(2, 2, 3), np.array([[[0], [0]], [[1], [2]]])], gather_nd(2), {"batch_dims": 2}, fixed=(1,)),
    Case(
        "ScatterElements",
        [x(3, 5), np.array([[1, 3], [0, -1]]), x(2, 2)],
        lambda a, i, new: a.scatter(1, i % 5, new),
        {"axis": 1},
    ),
    Case(
        "ScatterElements",
        [x(3, 2), np.array([[0, 0], [0, 2]]), x(2, 2)],
        lambda a, i, new: a.scatter_add(0, i, new),
        {"reduction": "add"},
    ),
    *(
        Case("ScatterElements", [data, THERE, new], reduced(torchs), {"reduction": onnxs}, differences=False)
        for onnxs, torchs in (("max", "amax"), ("min", "amin"), ("mul", "prod"))
        for data, new in ((x(3, 2), x(3, 2)), (TIED, TIED), (TIED, ZEROS))
    ),
    *(
        Case("ScatterND", [x(4, 3, 2), at, new], reduced_rows(torchs), {"reduction": onnxs}, fixed=(1,))
        for onnxs, torchs in (("max", "amax"), ("mul", "prod"))
        for at, new in ((np.array([[2], [2]]), x(2, 3, 2)), (np.array([[[2, 0]], [[2, 0]]]), x(2, 1, 2)))
    ),
    Case("ScatterND", [x(4, 3), np.array([[2], [0]]), x(2, 3)], scatter_nd(False)),
    Case("ScatterND", [x(4, 3), np.array([[2, 0], [2, 1]]), x(2)], scatter_nd(False)),
    Case("ScatterND", [x(4, 3), np.array([[2], [2]]), x(2, 3)], scatter_nd(True), {"reduction": "add"}),
    Case("Gather", [x(0, 4), np.zeros((0, 2), np.int64)], lambda a, i: a[i]),
    Case("Unique", [Given(np.array([[3.0, 1.5], [-2.0, 4.0]]))], lambda a: a.flatten().sort().values),
    Case("Unique", [UNSORTED], lambda a: a.flatten()[[0, 1, 3]], {"sorted": 0}, outputs=4, differences=False),
    Case("Unique", [UNSORTED], lambda a: a[:, [1, 0]], {"axis": -1}),
    Case("Compress", [x(3, 4), np.array([True, False, True])], lambda a, at: a[:, :3][:, at], {"axis": 1}),
    Case("Compress", [x(3, 2), np.array([False, True, True])], lambda a, at: a.flatten()[:3][at]),
    Case("CumProd", [x(2, 5), ONE_AXIS], product(), opset=26, fixed=(0,)),
    Case(
        "CumProd",
        [Given(np.array([[2.0, 0.0, 3.0, 0.0], [0.0, 1.0, 2.0, 3.0]])), ONE_AXIS],
        product(True, True),
        {"exclusive": 1, "reverse": 1},
        opset=26,
        fixed=(0,),
    ),
    Case(
        "TensorScatter",
        [x(2, 4, 3), x(2, 2, 3), np.array([1, 3])],
        written,
        {"mode": "circular"},
        opset=24,
    ),
    Case(
        "MaxUnpool",
        [x(1, 2, 2, 2), np.array([[[[5, 7], [13, 15]], [[16, 19], [24, 30]]]])],
        unpooled((1, 2, 4, 4)),
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        fixed=(0, 1),
        float32_only=True,
    ),
    Case("OneHot", [IDS, Constant(np.array(5)), x(2)], one_hot(5)),
    Case("OneHot", [IDS, ints(3), x(2)], one_hot(3, 1), {"axis": 1}),
    Case(
        "OneHot",
        [Given(np.array([1.0, 0.0])), Given(np.array(3.0)), x(2)],
        one_hot(3, 0),
        {"axis": 0},
        differences=False,
    ),
    Case("Range", [Given(np.array(0.5)), Given(np.array(4.0)), Given(np.array(0.75))], ramp(5)),
    Case("Range", [x(low=0, high=1), number(-3.0), number(-1.0)], ramp(4)),
    Case("TopK", [x(3, 5), ints(2)], lambda a, _: a.topk(2).values, outputs=2),
    Case("TopK", [x(5, 3), ints(3)], lambda a, _: a.topk(3, 0, False).values, {"axis": 0, "largest": 0}, outputs=2),
]


def nothing(a: Tensor, *_: Tensor) -> Tensor:
    return a.clone()


REFUSED = [
    (
        Case("ScatterND", [x(3, 2), np.array([[0]]), x(1, 2)], nothing, {"reduction": "max"}),
        "length of its index tuples",
    ),
    (Case("GatherND", [x(3, 2), np.array([[0]])], nothing), "length of its index tuples"),
]
