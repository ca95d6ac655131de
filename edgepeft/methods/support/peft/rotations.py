"""Rotations by Cayley's transform and orthonormal columns, without a solver, which ONNX does not have."""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 14
"""Newton's steps. The residual is squared by each, so rotations of a norm of 40 and more are inverted exactly."""


def rotations(skew: Tensor) -> Tensor:
    """Return Cayley's transform (I - Q)(I + Q)^-1 = 2(I + Q)^-1 - I of skew-symmetric ``[matrices, n, n]``.

    The inverse is found by Newton's iteration X <- X(2I - (I + Q)X) (Schulz, 1933). It starts at the transposed matrix
    divided by a bound of its largest singular value's square, 1 + |Q|²/2, from where it always converges. The last step
    alone has a gradient, which is that of the inverse: -X dQ X.
    """
    one = torch.eye(skew.shape[-1], dtype=skew.dtype)
    matrix = one + skew
    bound = 1 + 0.5 * skew.square().sum((-2, -1), keepdim=True)
    inverse = ((one - skew) / bound).detach()
    constant = matrix.detach()
    for _ in range(_STEPS):
        inverse = inverse @ (2 * one - constant @ inverse)
    inverse = inverse.detach()
    inverse = inverse @ (2 * one - matrix @ inverse)
    return 2 * inverse - one


def skew_of_vectors(vectors: Tensor, size: int) -> Tensor:
    """Return skew-symmetric ``[matrices, size, size]`` of the elements above the diagonal, ``[matrices, elements]``."""
    rows, columns = torch.triu_indices(size, size, 1)
    above = vectors.new_zeros(len(vectors), size * size).index_copy(1, rows * size + columns, vectors)
    square = above.unflatten(1, (size, size))
    return square - square.transpose(1, 2)


def rotations_of_vectors(vectors: Tensor, size: int, *_: object) -> Tensor:
    """Return OFT's rotations of the elements above the diagonal, ``[matrices, elements]``."""
    return rotations(skew_of_vectors(vectors, size))


def rotations_of_squares(squares: Tensor) -> Tensor:
    """Return BOFT's rotations of ``[matrices, n, n]``."""
    return rotations(0.5 * (squares - squares.transpose(1, 2)))


def orthonormal(matrix: Tensor) -> Tensor:
    """Return Q of the QR decomposition of ``[rows, columns]``, by Householder's reflections with LAPACK's signs."""
    rows, columns = matrix.shape
    numbers = torch.arange(rows)
    reflections, rest = list[Tensor](), matrix
    for column in range(min(columns, rows - 1)):
        below = rest[:, column] * (numbers >= column)
        norm = below.square().sum().sqrt()
        normal = below + torch.where(rest[column, column] < 0, -norm, norm) * (numbers == column)
        normal = normal / normal.square().sum().sqrt()
        rest = rest - 2 * normal[:, None] * (normal @ rest)
        reflections.append(normal)
    result = torch.eye(rows, min(rows, columns), dtype=matrix.dtype)
    for normal in reversed(reflections):
        result = result - 2 * normal[:, None] * (normal @ result)
    return result
