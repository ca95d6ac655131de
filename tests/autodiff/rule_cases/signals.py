"""Transforms of signals, and images put together from blocks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tests.autodiff.rule_cases.case import Case, Constant, Function, Input, ints, x


def scalar(number: int) -> Constant:
    return Constant(np.array(number))


def transform(kind: str, length: int | None = None) -> Function:
    """Complex numbers are pairs along the last axis, real ones have a single entry there."""

    def apply(a: Tensor, *_: Tensor) -> Tensor:
        numbers = torch.view_as_complex(a.contiguous()) if a.shape[-1] == 2 else a.squeeze(-1)
        made: Tensor = getattr(torch.fft, kind)(numbers, n=length, dim=1)
        return torch.view_as_real(made) if made.is_complex() else made.unsqueeze(-1)

    return apply


def transforms() -> Iterator[Case]:
    real, pairs, axis = x(2, 6, 3, 1), x(2, 6, 3, 2), scalar(1)
    options: list[tuple[str, Input, dict[str, Any]]] = [
        ("fft", real, {}),
        ("fft", pairs, {}),
        ("ifft", pairs, {"inverse": 1}),
        ("rfft", real, {"onesided": 1}),
    ]
    for kind, given, attributes in options:
        for length in (None, 8, 5):
            inputs = [given, None if length is None else scalar(length), axis]
            free = length is None and "onesided" not in attributes  # a whole signal of any length
            known: dict[str, Any] = {"fixed_axes": (3,)} if free else {"fixed": (0,)}
            yield Case("DFT", inputs, transform(kind, length), attributes, **known)
    signal, window = x(2, 20, 1), x(6)

    def frames(a: Tensor, _: Tensor, shape: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.rfft(a.squeeze(-1).unfold(1, 6, 3) * shape))

    yield Case("STFT", [signal, scalar(3), window], frames, {"onesided": 1}, opset=17, fixed=(0, 2))


def blocks() -> Iterator[Case]:
    folded = functional.fold
    yield Case(
        "Col2Im",
        [x(2, 12, 20), ints(5, 6), ints(2, 2)],
        lambda a, *_: folded(a, (5, 6), (2, 2)),
        fixed=(1, 2),
    )
    attributes = {"strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 2]}
    yield Case(
        "Col2Im",
        [x(2, 12, 12), ints(4, 6), ints(2, 2)],
        lambda a, *_: folded(a, (4, 6), (2, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)),
        attributes,
        fixed=(1, 2),
    )


CASES = [*transforms(), *blocks()]
