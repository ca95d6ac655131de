"""Operators that move elements."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tests.autodiff.rule_cases.case import Case, Constant, Function, ints, x


def padded(mode: str, *pads: int) -> Function:
    return lambda a, *_: functional.pad(a, pads, mode=mode)


def cut(*slices: slice) -> Function:
    return lambda a, *_: a[slices]


ALL = slice(None)
LARGE = 2**63 - 1

CASES = [
    Case("Reshape", [x(2, 6), ints(3, 4)], lambda a, _: a.reshape(3, 4)),
    Case("Reshape", [x(2, 3, 8), ints(0, 0, 2, 4)], lambda a, _: a.reshape(2, 3, 2, 4)),
    Case("Reshape", [x(2, 3, 2, 4), ints(0, 0, -1)], lambda a, _: a.reshape(2, 3, 8)),
    Case("Reshape", [x(1), np.zeros(0, dtype=np.int64)], lambda a, _: a.reshape(()), fixed=(1,)),
    Case("Reshape", [x(0, 3), ints(3, 0)], lambda a, _: a.reshape(3, 0), {"allowzero": 1}),
    Case("Reshape", [x(3, 0, 2), ints(0, -1, 4)], lambda a, _: a.reshape(3, 0, 4), fixed=(0,)),
    Case("Reshape", [x(0, 3, 4), ints(0, 0, 2, 2)], lambda a, _: a.reshape(0, 3, 2, 2)),
    Case("Flatten", [x(2, 3, 4)], lambda a: a.flatten(1)),
    Case("Flatten", [x(2, 3, 4)], lambda a: a.reshape(6, 4), {"axis": -1}),
    Case("Squeeze", [x(2, 1, 3, 1), ints(1, -1)], lambda a, _: a.squeeze((1, 3)), fixed_axes=(1, 3)),
    Case("Squeeze", [x(2, 1, 3)], torch.squeeze, fixed=(0,)),
    Case("Unsqueeze", [x(2, 3), ints(0, -1)], lambda a, _: a[None, ..., None]),
    Case("Unsqueeze", [x(2, 3), ints(1)], lambda a, _: a[:, None]),
    Case("Transpose", [x(2, 3, 4)], lambda a: a.permute(2, 1, 0)),
    Case("Transpose", [x(2, 3, 4)], lambda a: a.permute(1, 2, 0), {"perm": [1, 2, 0]}),
    Case("Expand", [x(3, 1), ints(2, 1, 4)], lambda a, _: a.expand(2, 3, 4)),
    Case("Expand", [x(3), np.array([2, 3])], lambda a, _: a.expand(2, 3), fixed=(1,)),
    Case("Expand", [x(2, 1, 3, 4), ints(2, 3, 3, 4)], lambda a, _: a.expand(2, 3, 3, 4), fixed_axes=(1,)),
    Case("Concat", [x(2, 3), x(2, 1), x(2, 2)], lambda *a: torch.cat(a, 1), {"axis": 1}),
    Case("Concat", [x(2, 3), x(1, 3)], lambda *a: torch.cat(a, 0), {"axis": -2}),
    Case("Concat", [x(2, 3)], lambda a: a.clone(), {"axis": 0}),
    Case("Concat", [x(2, 3), x(0, 3)], lambda *a: torch.cat(a, 0), {"axis": 0}),
    Case("Split", [x(2, 6)], lambda a: a.split(2, 1), {"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Split", [x(5, 2)], lambda a: a.split(3, 0), {"axis": -2, "num_outputs": 2}, outputs=2, fixed=(0,)),
    Case("Split", [x(2, 5), ints(1, 4)], lambda a, _: a.split((1, 4), 1), {"axis": -1}, outputs=2),
    Case("Slice", [x(4, 6), ints(1), ints(3)], cut(slice(1, 3))),
    Case("Slice", [x(4, 6), ints(0, 2), ints(LARGE, LARGE)], cut(ALL, slice(2, None))),
    Case("Slice", [x(4, 6), ints(-3), ints(-1), ints(-1)], cut(ALL, slice(-3, -1))),
    Case("Slice", [x(4, 6), ints(0), ints(-2), ints(1)], cut(ALL, slice(0, -2))),
    Case("Slice", [x(4, 6), ints(1), ints(100), ints(1)], cut(ALL, slice(1, 100))),
    Case("Slice", [x(4, 6), ints(-100), ints(2), ints(0)], cut(slice(0, 2))),
    Case("Slice", [x(4, 6), ints(1, 0), ints(LARGE, 4), ints(1, 0), ints(2, 1)], cut(slice(0, 4), slice(1, None, 2))),
    Case("Slice", [x(4, 7), ints(0), ints(6), ints(1), ints(3)], cut(ALL, slice(0, 6, 3))),
    Case("Slice", [x(4, 6), ints(-1), ints(-LARGE), ints(1), ints(-1)], lambda a, *_: a.flip(1)),
    Case("Slice", [x(4, 6), ints(4), ints(0), ints(1), ints(-2)], lambda a, *_: a[:, [4, 2]]),
    Case("Slice", [x(4, 6), np.array([1]), np.array([-1]), ints(1)], cut(ALL, slice(1, -1)), fixed=(1, 2)),
    Case("Slice", [x(4, 6), np.array([-4]), np.array([2**40]), ints(1)], cut(ALL, slice(-4, None)), fixed=(1, 2)),
    Case("Slice", [x(4, 6), np.array([0]), np.array([5]), ints(1), ints(2)], cut(ALL, slice(0, 5, 2)), fixed=(1, 2)),
    Case("Slice", [x(4, 3), ints(4), ints(LARGE), ints(1)], cut(ALL, slice(4, None))),
    Case("Slice", [x(4, 3), ints(4), ints(5), ints(1)], cut(ALL, slice(4, 5))),
    Case("Slice", [x(4, 6), ints(4), ints(2), ints(1)], cut(ALL, slice(4, 2))),
    Case("Slice", [x(4, 6), ints(4), ints(-4), ints(1)], cut(ALL, slice(4, -4))),
    Case("Slice", [x(4, 6), ints(-2), ints(-4), ints(1)], cut(ALL, slice(-2, -4))),
    Case("Slice", [x(4, 6), ints(0), ints(-8), ints(1)], cut(ALL, slice(0, -8))),
    Case("Slice", [x(4, 6), ints(-2), ints(1), ints(1)], cut(ALL, slice(-2, 1))),
    Case("Slice", [x(4, 6), ints(2), ints(4), ints(1)], cut(ALL, slice(2, 4))),
    Case("Slice", [x(4, 6), ints(8), np.array([9]), ints(1)], cut(ALL, slice(8, 9)), fixed=(2,)),
    Case("Slice", [x(4, 6), ints(7), ints(9), ints(1), ints(2)], cut(ALL, slice(7, 9, 2))),
    Case("Slice", [x(4), ints(-9), ints(-LARGE), ints(0), ints(-1)], lambda a, *_: a[:1]),
    Case("Slice", [x(4, 6), ints(-LARGE - 1), ints(2), ints(1)], cut(ALL, slice(0, 2))),
    Case("Pad", [x(2, 3), ints(0, 1, 1, 2)], padded("constant", 1, 2, 0, 1)),
    Case("Pad", [x(4, 5), ints(-1, 1, 0, -2)], padded("constant", 1, -2, -1, 0)),
    Case("Pad", [x(2, 3), ints(2, 1), None, ints(-1)], padded("constant", 2, 1)),
    Case("Pad", [x(2, 3), np.array([0, 1, 1, 2])], padded("constant", 1, 2, 0, 1), fixed=(1,)),
    Case("Pad", [x(2, 3), ints(0, 1, 1, 2), x()], lambda a, _, v: v + functional.pad(a - v, (1, 2, 0, 1))),
    Case("Pad", [x(1, 2, 4, 5), ints(0, 0, 1, 2, 0, 0, 2, 1)], padded("reflect", 2, 1, 1, 2), {"mode": "reflect"}),
    Case("Pad", [x(1, 2, 4, 5), ints(0, 0, 1, 2, 0, 0, 2, 1)], padded("replicate", 2, 1, 1, 2), {"mode": "edge"}),
    Case("Pad", [x(2, 3, 5), ints(2, 1), None, ints(-1)], padded("circular", 2, 1), {"mode": "wrap"}),
    Case("Tile", [x(2, 3), ints(2, 0)], lambda a, _: a.tile(2, 0)),
    Case("Tile", [x(2, 3), ints(2, 3)], lambda a, _: a.tile(2, 3)),
    Case("Tile", [x(2, 1, 3), ints(1, 4, 1)], lambda a, _: a.tile(1, 4, 1)),
    Case("Tile", [x(2, 3), np.array([2, 1])], lambda a, _: a.tile(2, 1), fixed=(1,)),
    Case("Trilu", [x(3, 4)], torch.triu),
    Case("Trilu", [x(2, 3, 4), Constant(np.array(-1))], lambda a, _: a.tril(-1), {"upper": 0}),
    Case("DepthToSpace", [x(1, 8, 2, 3)], lambda a: depth_to_space(a, 2), {"blocksize": 2}),
    Case("DepthToSpace", [x(2, 8, 2, 3)], lambda a: functional.pixel_shuffle(a, 2), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", [x(1, 2, 4, 6)], lambda a: space_to_depth(a, 2), {"blocksize": 2}),
    Case(
        "ReverseSequence",
        [x(4, 2), np.array([3, 2])],
        lambda a, _: torch.stack([a[:, 0][[2, 1, 0, 3]], a[:, 1][[1, 0, 2, 3]]], 1),
        fixed=(0, 1),
    ),
]


def nothing(a: Tensor, *_: Tensor) -> Tensor:
    return a.clone()


REFUSED = [
    (Case("Pad", [x(4, 5), np.array([0, 1, 0, 1])], nothing, {"mode": "reflect"}, fixed=(1,)), "pads that are known"),
    (Case("Slice", [x(4, 6), ints(0), ints(4), np.array([1])], nothing, fixed=(3,)), "at run time"),
    (Case("Slice", [x(4), ints(-1), ints(LARGE), ints(0), ints(-1)], nothing), "a last end with a negative step"),
]


def depth_to_space(a: Tensor, block: int) -> Tensor:
    n, c, h, w = a.shape
    apart = a.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return apart.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(a: Tensor, block: int) -> Tensor:
    n, c, h, w = a.shape
    apart = a.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return apart.reshape(n, c * block**2, h // block, w // block)
