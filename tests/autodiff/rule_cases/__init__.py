"""One or several cases for every gradient rule, a file per family of operators."""

from tests.autodiff.rule_cases import (
    arithmetic,
    functions,
    images,
    indexing,
    products,
    recurrent,
    resampling,
    shapes,
    signals,
    statistics,
)

FAMILIES = (arithmetic, functions, images, indexing, products, recurrent, resampling, shapes, signals, statistics)
CASES = [case for family in FAMILIES for case in family.CASES]
REFUSED = [case for family in FAMILIES for case in getattr(family, "REFUSED", [])]
