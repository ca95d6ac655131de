"""LSTM, GRU and RNN: all directions, first states, rows of their own lengths, any subset of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tests.autodiff.rule_cases.case import Case, Function, Input, x

STEPS, ROWS, INPUTS, HIDDEN = 5, 3, 4, 2
States = tuple[Tensor, ...]


def lstm_step(x: Tensor, states: States, w: Tensor, r: Tensor, biases: Sequence[Tensor]) -> States:
    """One step, written as ONNX defines it: gates in the order i, o, f, c."""
    h, c = states
    i, o, f, g = (x @ w.T + h @ r.T + biases[0] + biases[1]).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def unusual_lstm(act: Function = torch.tanh, clip: float = np.inf, coupled: bool = False) -> Function:
    """Another activation of the cell's input, clipped gates, 1 - i as forget gate, and peepholes where they are."""

    def step(
        x: Tensor, states: States, w: Tensor, r: Tensor, biases: Sequence[Tensor], peepholes: Sequence[Tensor]
    ) -> States:
        h, c = states
        i, o, f, g = (x @ w.T + h @ r.T + biases[0] + biases[1]).chunk(4, dim=-1)
        pi, po, pf = peepholes
        i = (i + pi * c).clamp(-clip, clip).sigmoid()
        f = 1 - i if coupled else (f + pf * c).clamp(-clip, clip).sigmoid()
        c = f * c + i * act(g.clamp(-clip, clip))
        return (o + po * c).clamp(-clip, clip).sigmoid() * c.tanh(), c

    return step


def gru_step(reset_after: bool, clip: float = np.inf) -> Function:
    """Gates in the order z, r, h; the reset gate after the matmul or before it."""

    def step(x: Tensor, states: States, w: Tensor, r: Tensor, biases: Sequence[Tensor]) -> States:
        (h,) = states
        (xz, xr, xn), (rz, rr, rn) = (x @ w.T + biases[0]).chunk(3, dim=-1), r.chunk(3)
        bz, br, bn = biases[1].chunk(3)
        z, reset = ((g).clamp(-clip, clip).sigmoid() for g in (xz + h @ rz.T + bz, xr + h @ rr.T + br))
        new = xn + (reset * (h @ rn.T + bn) if reset_after else (reset * h) @ rn.T + bn)
        return ((1 - z) * new.clamp(-clip, clip).tanh() + z * h,)

    return step


def rnn_step(x: Tensor, states: States, w: Tensor, r: Tensor, biases: Sequence[Tensor]) -> States:
    (h,) = states
    return ((x @ w.T + h @ r.T + biases[0] + biases[1]).tanh(),)


def softsign_step(x: Tensor, states: States, w: Tensor, r: Tensor, biases: Sequence[Tensor]) -> States:
    return (torch.nn.functional.softsign(x @ w.T + states[0] @ r.T + biases[0] + biases[1]),)


def network(step: Function, direction: str, given: Sequence[int], keep: Sequence[int] = (0, 1, 2)) -> Function:
    """The operator as a loop in torch; ``given`` are the indices of the inputs that are there."""

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(given, tensors, strict=True))
        flags = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
        results = [one_direction(step, named, at, reverse) for at, reverse in enumerate(flags)]
        every = [torch.stack([r[0] for r in results], dim=1)]
        every += [torch.stack(last) for last in zip(*(r[1] for r in results), strict=True)]
        return tuple(every[index] for index in keep if index < len(every))

    return run


def one_direction(step: Function, named: dict[int, Tensor], at: int, reverse: bool) -> tuple[Tensor, States]:
    x, w, r = named[0], named[1][at], named[2][at]
    biases = named[3][at].chunk(2) if 3 in named else [w.new_zeros(len(w))] * 2
    lengths = named[4] if 4 in named else torch.full((x.shape[1],), len(x))
    none = x.new_zeros(x.shape[1], r.shape[1])
    states: States = (named[5][at] if 5 in named else none,)
    cells = step is lstm_step or step.__qualname__.startswith("unusual_lstm")
    if cells:
        states = (*states, named[6][at] if 6 in named else none)
    if cells and step is not lstm_step:
        peepholes = named[7][at].chunk(3) if 7 in named else [none[0]] * 3
        step = partial(step, peepholes=peepholes)
    made = [none] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        there = (t < lengths)[:, None]
        after = step(x[t], states, w, r, biases)
        states = tuple(torch.where(there, new, old) for new, old in zip(after, states, strict=True))
        made[t] = torch.where(there, states[0], none)
    return torch.stack(made), states


LENGTHS = np.array([5, 2, 4], dtype=np.int32)


def inputs(gates: int, both: int, given: Sequence[int]) -> list[Input]:
    state = x(both, ROWS, HIDDEN)
    every: list[Input] = [
        x(STEPS, ROWS, INPUTS),
        x(both, gates * HIDDEN, INPUTS),
        x(both, gates * HIDDEN, HIDDEN),
        x(both, 2 * gates * HIDDEN),
        LENGTHS,
        state,
        state,
        x(both, 3 * HIDDEN),
    ]
    return [value if index in given else None for index, value in enumerate(every[: max(given) + 1])]


def case(
    op: str,
    direction: str,
    given: Sequence[int],
    keep: Sequence[int] = (0, 1, 2),
    reset_after: bool | None = None,
    step: Function | None = None,
    **unusual: object,
) -> Case:
    step = step or {"LSTM": lstm_step, "RNN": rnn_step}.get(op) or gru_step(bool(reset_after))
    attributes: dict[str, object] = {"hidden_size": HIDDEN, "direction": direction, **unusual}
    if reset_after is not None:
        attributes["linear_before_reset"] = int(reset_after)
    return Case(
        op,
        inputs(GATES[op], 1 + (direction == "bidirectional"), given),
        network(step, direction, given, keep),
        attributes,
        outputs=3 if op == "LSTM" else 2,
        float32_only=True,
    )


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
PLAIN, BIASED, STATES = (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 5)
CASES = [
    case("LSTM", "forward", PLAIN),
    case("LSTM", "reverse", (*STATES, 6)),
    case("LSTM", "bidirectional", (*STATES, 6)),
    case("LSTM", "bidirectional", BIASED),
    case("LSTM", "bidirectional", (0, 1, 2, 3, 4, 5, 6)),
    case("LSTM", "forward", (0, 1, 2, 4)),
    case("GRU", "forward", PLAIN, reset_after=True),
    case("GRU", "reverse", STATES, reset_after=True),
    case("GRU", "bidirectional", STATES, reset_after=True),
    case("GRU", "bidirectional", (0, 1, 2, 3, 4, 5), reset_after=True),
    case("GRU", "forward", BIASED),
    case("GRU", "reverse", STATES, reset_after=False),
    case("GRU", "bidirectional", (0, 1, 2, 3, 4, 5)),
    case("GRU", "bidirectional", PLAIN),
    case("RNN", "reverse", STATES),
    case("RNN", "bidirectional", (0, 1, 2, 3, 4, 5)),
    case("LSTM", "bidirectional", (*STATES, 6, 7), step=unusual_lstm()),
    case("LSTM", "bidirectional", (0, 1, 2, 3, 4, 5, 6, 7), step=unusual_lstm()),
    case("LSTM", "reverse", PLAIN, step=unusual_lstm(torch.relu), activations=["Sigmoid", "Relu", "Tanh"]),
    case("LSTM", "forward", BIASED, step=unusual_lstm(clip=1.0), clip=1.0),
    case("LSTM", "forward", BIASED, step=unusual_lstm(coupled=True), input_forget=1),
    case("GRU", "reverse", STATES, step=gru_step(False, 0.5), clip=0.5),
    case("GRU", "forward", STATES, reset_after=True, step=gru_step(True, 0.5), clip=0.5),
    case("RNN", "forward", STATES, step=softsign_step, activations=["Softsign"]),
]


def nothing(a: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    return a.clone(), a.clone(), a.clone()


def refused(op: str, attributes: dict[str, object], reason: str) -> tuple[Case, str]:
    outputs = 3 if op == "LSTM" else 2
    made = Case(op, inputs(GATES[op], 1, BIASED), nothing, {"hidden_size": HIDDEN, **attributes}, outputs=outputs)
    return made, reason


REFUSED = [
    refused("LSTM", {"layout": 1}, "batch comes first"),
    refused("GRU", {"activations": ["ScaledTanh", "Tanh"]}, "its activation is ScaledTanh"),
    refused("RNN", {"activation_alpha": [0.3], "activations": ["Elu"]}, "settings of their own"),
]
