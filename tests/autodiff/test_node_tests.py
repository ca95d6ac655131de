"""The node tests of ONNX's backend suite: no gradient is wrong, and none that was correct is refused."""

from __future__ import annotations

from functools import cache

import pytest

from edgepeft_export.autodiff.registry import RULES
from tests.node_tests.cases import NodeTest, collect
from tests.node_tests.oracle import CRASH, RIGHT, WRONG, check
from tests.node_tests.page import LIST, PAGE, read_list

SAMPLE = ("affinegrid", "clip", "max", "onehot", "rangeop", "swish", "unique", "where")
"""Files of the suite whose generation takes less than a second."""

OPERATORS = {"AffineGrid", "Clip", "Max", "OneHot", "Range", "Swish", "Unique", "Where"}

SHARDS = 8


@cache
def whole_suite() -> dict[str, NodeTest]:
    return {test.name: test for test in collect() if test is not None}


def compare(test: NodeTest, written: dict[str, str]) -> None:
    for way, result in check(test).items():
        assert result.status not in (WRONG, CRASH), (test.name, way, result)
        assert result.status == RIGHT or written[way] != RIGHT, (test.name, way, result)


def test_a_sample_of_the_suite_is_as_listed() -> None:
    """Gradients agree with finite differences, or are refused where the list says so."""
    written = read_list()
    sample = [test for test in collect(SAMPLE) if test is not None and test.name in written]
    chosen = [test for test in sample if test.op in OPERATORS]
    assert {test.op for test in chosen} == OPERATORS
    for test in chosen:
        compare(test, written[test.name])


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_whole_suite_is_as_listed(shard: int) -> None:
    """Every differentiable node test is correct or refused, and none that was correct is refused."""
    suite, written = whole_suite(), read_list()
    for name in list(written)[shard::SHARDS]:
        compare(suite[name], written[name])


def test_the_list_and_the_page_belong_together() -> None:
    """Both are written by one command; nothing on them is wrong or crashes."""
    written = read_list()
    results = [result for ways in written.values() for result in ways.values()]
    assert not [result for result in results if result.split()[0] in (WRONG, CRASH)]
    right = sum(RIGHT in ways.values() for ways in written.values())
    text = PAGE.read_text("utf-8")
    assert f"**{right} right, {len(written) - right} refused with an error, 0 wrong, 0 crashes.**" in text


def test_the_list_has_most_operators_with_a_rule() -> None:
    """The suite tries nearly every ONNX operator that has a gradient rule."""
    operators = {line.split("\t")[1] for line in LIST.read_text("utf-8").splitlines()[1:]}
    untried = {op for op in RULES if "." not in op} - operators
    assert len(untried) < 10, untried
