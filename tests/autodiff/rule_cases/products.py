"""Matrix products and Einsum."""

import torch

from tests.autodiff.rule_cases.case import Case, Function, x


def product(equation: str) -> Function:
    return lambda *operands: torch.einsum(equation, *operands)


EQUATIONS = {
    "ij,jk->ik": ((2, 3), (3, 4)),
    "bhqd,bhkd->bhqk": ((2, 2, 3, 4), (2, 2, 5, 4)),
    "bij,bjk": ((2, 3, 4), (2, 4, 5)),
    "ij->ji": ((2, 3),),
    "ij->": ((2, 3),),
    "ij->i": ((2, 3),),
    "ij,kj->k": ((2, 3), (4, 3)),
    "i,j->ij": ((3,), (4,)),
    "i,i->": ((3,), (3,)),
    "a,ab,b->a": ((2,), (2, 3), (3,)),
    "...ij,...jk->...ik": ((2, 3, 4), (2, 4, 5)),
    "...ij,jk->...ik": ((2, 2, 3, 4), (4, 5)),
    "b i d, b j d -> b i j": ((2, 3, 4), (2, 5, 4)),
    "bij, bjk -> bik": ((2, 3, 4), (1, 4, 5)),
    "bij, jk -> bik": ((2, 3, 4), (1, 5)),
    "...ij,...jk": ((1, 3, 4), (2, 4, 5)),
}

CASES = [
    Case("MatMul", [x(3, 4), x(4, 5)], torch.matmul),
    Case("Det", [x(3, 3)], torch.linalg.det, float32_only=True),
    Case("Det", [x(2, 3, 2, 2)], torch.linalg.det, float32_only=True),
    Case("MatMul", [x(2, 3, 4), x(4, 5)], torch.matmul),
    Case("MatMul", [x(2, 2, 3, 4), x(4, 5)], torch.matmul),
    Case("MatMul", [x(2, 3, 4), x(2, 4, 5)], torch.matmul),
    Case("MatMul", [x(3, 4), x(2, 4, 5)], torch.matmul),
    Case("MatMul", [x(2, 1, 3, 4), x(5, 4, 2)], torch.matmul),
    Case("MatMul", [x(1, 3, 4), x(2, 4, 1)], torch.matmul),
    Case("MatMul", [x(4), x(4)], torch.matmul),
    Case("MatMul", [x(4), x(4, 5)], torch.matmul),
    Case("MatMul", [x(3, 4), x(4)], torch.matmul),
    Case("MatMul", [x(4), x(2, 4, 5)], torch.matmul),
    Case("MatMul", [x(2, 3, 4), x(4)], torch.matmul),
    Case("MatMul", [x(0, 3, 4), x(4, 5)], torch.matmul),
    Case("Gemm", [x(3, 4), x(4, 5)], torch.matmul),
    Case("Gemm", [x(3, 4), x(4, 5), x(5)], lambda a, b, c: a @ b + c),
    Case("Gemm", [x(3, 4), x(5, 4), x(3, 1)], lambda a, b, c: a @ b.T + c, {"transB": 1}),
    Case("Gemm", [x(4, 3), x(4, 5), x(1, 5)], lambda a, b, c: 0.5 * a.T @ b + c, {"transA": 1, "alpha": 0.5}),
    Case(
        "Gemm",
        [x(4, 3), x(5, 4), x(3, 5)],
        lambda a, b, c: 2 * a.T @ b.T + 0.3 * c,
        {"transA": 1, "transB": 1, "alpha": 2.0, "beta": 0.3},
    ),
    Case("Gemm", [x(3, 4), x(4, 5), x(1)], lambda a, b, c: a @ b + 3 * c, {"beta": 3.0}),
    Case("Gemm", [x(3, 4), x(4, 5), x()], lambda a, b, c: a @ b + c),
    *[
        Case("Einsum", [x(*shape) for shape in shapes], product(equation), {"equation": equation})
        for equation, shapes in EQUATIONS.items()
    ],
    Case("Einsum", [x(2, 3), x(1), x(3)], product("ab,b,b->a"), {"equation": "ab,b,b->a"}, fixed=(0, 1, 2)),
]

REFUSED = [
    (Case("Einsum", [x(3, 3)], product("ii->i"), {"equation": "ii->i"}), "repeats an index"),
]
