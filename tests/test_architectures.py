"""A few classes of transformers, one for each kind of loss. ``python -m tests.architectures`` runs all of them."""

from __future__ import annotations

import pytest

from tests.architectures.cases import CASES
from tests.architectures.check import check

CHECKED = (
    "BertForMultipleChoice",
    "DistilBertForQuestionAnswering",
    "MarianMTModel",
    "SegformerForSemanticSegmentation",
    "Wav2Vec2ForCTC",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_a_class_trains_as_in_transformers(name: str) -> None:
    """Five losses of transformers, and the outputs of the merged model."""
    result = check(next(case for case in CASES if case.name == name))
    assert result.status == "right", result.detail
