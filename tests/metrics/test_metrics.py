"""Metrics against scikit-learn and torch, in batches of changing size."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import LabelSpec, ListedFile, LossSpec, OptimizerSpec, TensorSpec
from edgepeft_runtime.errors import SettingError
from edgepeft_runtime.metrics.base import Score
from edgepeft_runtime.metrics.registry import METRICS, metric_of
from edgepeft_runtime.metrics.spans import character_error_rate, distance, entities, word_error_rate
from tests.support import tiny_bundle

FILES = dict.fromkeys((*tiny_bundle.GRAPHS, "weights.bin"), ListedFile("0" * 64, 96))
Shape = tuple[int | str, ...]


def _manifest(
    loss: str, label: LabelSpec, output: Shape, classes: tuple[str, ...] | None = None, dims: tuple[str, ...] = ()
) -> Manifest:
    dimensions = {name: tiny_bundle.Dimension() for name in ("batch", *dims)}
    return tiny_bundle.manifest(
        FILES,
        optimizer=OptimizerSpec("sgd", 0.1),
        loss=LossSpec(loss),
        labels=(label,),
        outputs=(TensorSpec("scores", "float32", output),),
        classes=classes,
        dimensions=dimensions,
    )


def _classes(count: int) -> Manifest:
    return _manifest("cross_entropy", LabelSpec("y", "int64", ("batch",), count, -100), ("batch", count))


ONE, MANY = ("batch",), ("batch", 4)
YES = _manifest("bce_with_logits", LabelSpec("y", "float32", ONE), ONE)
SEVERAL = _manifest("bce_with_logits", LabelSpec("y", "float32", MANY), MANY)
NUMBER = _manifest("mse", LabelSpec("y", "float32", MANY), MANY)
TAGS = ("O", "B-per", "I-per", "B-org", "I-org")
TAGGER = _manifest(
    "cross_entropy", LabelSpec("y", "int64", ("batch", "seq"), 5, -100), ("batch", "seq", 5), TAGS, ("seq",)
)
LETTERS = ("a", "b", " ", "c", "|")
SPELLER = _manifest(
    "cross_entropy", LabelSpec("y", "int64", ("batch", "seq"), 5, -100), ("batch", "seq", 5), LETTERS, ("seq",)
)
CAUSAL = _manifest("causal_lm", LabelSpec("y", "int64", ("batch", "seq"), 7, -100), ("batch", "seq", 7), None, ("seq",))


def _score(name: str, manifest: Manifest, scores: np.ndarray, labels: np.ndarray, size: int = 7) -> Score:
    """The score over batches of a few examples."""
    collector = metric_of(name).collector(manifest)
    for start in range(0, len(scores), size):
        rows = slice(start, start + size)
        collector.add({"scores": scores[rows]}, {"y": labels[rows]})
    return collector.score()


@dataclass(frozen=True)
class Drawn:
    """Scores and labels, with what scikit-learn takes."""

    manifest: Manifest
    scores: np.ndarray
    labels: np.ndarray


def _draw(kind: str, seed: int = 0) -> Drawn:
    rng = np.random.default_rng(seed)
    if kind == "numbers":
        true = rng.normal(size=(40, 4)).astype(np.float32) * [1, 5, 0.1, 1] + 3
        return Drawn(NUMBER, (true + rng.normal(size=true.shape)).astype(np.float32), true.astype(np.float32))
    if kind in ("yes", "several"):
        manifest, shape = (YES, (40,)) if kind == "yes" else (SEVERAL, (40, 4))
        labels = (rng.random(shape) < 0.4).astype(np.float32)
        scores = (labels - 0.5 + rng.normal(size=shape)).round(1).astype(np.float32)  # with equal scores
        return Drawn(manifest, scores, labels)
    count = {"two": 2, "five": 5, "absent": 5}[kind]
    labels = rng.integers(0, count - (kind == "absent"), 40)
    scores = (np.eye(count)[labels] + rng.normal(size=(40, count))).round(1).astype(np.float32)
    if kind == "absent":
        scores[:, -1] = -9  # a class that neither occurs nor is predicted
    labels[::9] = -100
    return Drawn(_classes(count), scores, labels)


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return np.asarray(scores / scores.sum(-1, keepdims=True))


Oracle = Callable[[Any, np.ndarray, np.ndarray], float]
"""From sklearn.metrics, true labels and scores (ignored ones left out) to the value."""


def _macro(name: str) -> Oracle:
    def oracle(sk: Any, true: np.ndarray, scores: np.ndarray) -> float:
        multi = scores.ndim > 1 and true.ndim == 1
        predicted = scores.argmax(-1) if multi else scores > 0
        average = "binary" if true.ndim == 1 and not multi else "macro"
        return float(getattr(sk, name)(true, predicted, average=average, zero_division=0))

    return oracle


def _accuracy(sk: Any, true: np.ndarray, scores: np.ndarray) -> float:
    return float(sk.accuracy_score(true, scores.argmax(-1) if scores.ndim > true.ndim else scores > 0))


def _auc(sk: Any, true: np.ndarray, scores: np.ndarray) -> float:
    if scores.ndim == true.ndim:
        return float(sk.roc_auc_score(true, scores, average="macro"))
    if scores.shape[1] == 2:
        return float(sk.roc_auc_score(true, _softmax(scores)[:, 1]))
    present = np.unique(true)
    probabilities = _softmax(scores)
    return float(np.mean([sk.roc_auc_score(true == own, probabilities[:, own]) for own in present]))


ORACLES: dict[str, tuple[tuple[str, ...], Oracle]] = {
    "accuracy": (("two", "five", "absent", "yes", "several"), _accuracy),
    "f1": (("two", "five", "absent", "yes", "several"), _macro("f1_score")),
    "precision": (("two", "five", "absent", "yes", "several"), _macro("precision_score")),
    "recall": (("two", "five", "absent", "yes", "several"), _macro("recall_score")),
    "auc": (("two", "five", "absent", "yes", "several"), _auc),
    "recall@2": (("five",), lambda sk, y, s: float(sk.top_k_accuracy_score(y, s + np.arange(5) * -1e-6, k=2))),
    "confusion": (("two", "five", "absent"), _accuracy),
    "perplexity": (
        ("two", "five"),
        lambda sk, y, s: float(np.exp(sk.log_loss(y, _softmax(s), labels=range(s.shape[1])))),
    ),
    "mae": (("numbers",), lambda sk, y, s: float(sk.mean_absolute_error(y, s))),
    "rmse": (("numbers",), lambda sk, y, s: float(np.sqrt(sk.mean_squared_error(y, s)))),
    "r2": (("numbers",), lambda sk, y, s: float(sk.r2_score(y, s))),
}
CASES = [(name, kind) for name, (kinds, _) in ORACLES.items() for kind in kinds]
OTHERS = {"entity_f1", "cer", "wer"}


def test_every_metric_has_an_oracle() -> None:
    """scikit-learn's, or one of the tests of sequences below."""
    assert {name.replace("@2", "@k") for name in ORACLES} | OTHERS == set(METRICS)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_values_are_those_of_scikit_learn(name: str, kind: str) -> None:
    """Over several batches, without ignored labels."""
    import sklearn.metrics

    for seed in range(3):
        drawn = _draw(kind, seed)
        counted = drawn.labels != -100 if drawn.labels.ndim == 1 else np.ones(len(drawn.labels), bool)
        expected = ORACLES[name][1](sklearn.metrics, drawn.labels[counted], drawn.scores[counted])
        if name == "recall@2":  # where scores are equal scikit-learn takes one, and we count none as better
            drawn = Drawn(drawn.manifest, drawn.scores + (np.arange(5) * -1e-6).astype(np.float32), drawn.labels)
        assert _score(name, drawn.manifest, drawn.scores, drawn.labels).value == pytest.approx(expected, rel=1e-5)


def test_parts_and_matrix_are_those_of_scikit_learn() -> None:
    """F1 of each class and the confusion matrix."""
    import sklearn.metrics as sk

    drawn = _draw("five")
    counted = drawn.labels != -100
    true, predicted = drawn.labels[counted], drawn.scores[counted].argmax(-1)
    parts = _score("f1", drawn.manifest, drawn.scores, drawn.labels).parts
    assert list(parts.values()) == pytest.approx(sk.f1_score(true, predicted, average=None))
    matrix = _score("confusion", drawn.manifest, drawn.scores, drawn.labels).matrix
    assert np.array_equal(np.asarray(matrix), sk.confusion_matrix(true, predicted))


def test_perplexity_of_a_language_model_is_that_of_torch() -> None:
    """Position t predicts label t + 1; ignored labels do not count."""
    import torch

    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(5, 6, 7)).astype(np.float32) * 4, rng.integers(0, 7, (5, 6))
    labels[:, 4:] = -100
    losses = torch.nn.functional.cross_entropy(
        torch.from_numpy(scores[:, :-1].reshape(-1, 7)), torch.from_numpy(labels[:, 1:].reshape(-1)), ignore_index=-100
    )
    assert _score("perplexity", CAUSAL, scores, labels, 2).value == pytest.approx(float(losses.exp()), rel=1e-5)


def _slow_distance(one: str, other: str) -> int:
    """The recursion by which the distance is defined."""
    table = {(i, 0): i for i in range(len(one) + 1)} | {(0, j): j for j in range(len(other) + 1)}
    for i, j in itertools.product(range(1, len(one) + 1), range(1, len(other) + 1)):
        changed = table[i - 1, j - 1] + (one[i - 1] != other[j - 1])
        table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, changed)
    return table[len(one), len(other)]


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=9), st.text("abc", max_size=9))
def test_the_edit_distance_is_its_definition(one: str, other: str) -> None:
    """For all short texts."""
    assert distance(list(one), list(other)) == _slow_distance(one, other)


def test_error_rates_of_texts() -> None:
    """Edits over all texts, divided by the length of the true ones."""
    assert word_error_rate(["the cat sat", "a"], ["the cat sat down", "b"]) == pytest.approx(2 / 5)
    assert character_error_rate(["abc", ""], ["abd", "xy"]) == pytest.approx(3 / 5)
    assert np.isnan(word_error_rate([], []))


def _one_hot(rows: list[list[int]], classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[np.asarray(rows)]


def test_error_rates_of_a_model() -> None:
    """Each class is a character; a space or a bar separates words; ignored positions are left out."""
    true = np.array([[0, 1, 2, 3, -100], [0, 4, 1, 1, 3]])  # "ab c", "a|bbc"
    scores = _one_hot([[0, 1, 2, 0, 3], [0, 4, 1, 1, 3]], 5)
    assert _score("cer", SPELLER, scores, true, 1).value == pytest.approx(1 / 9)
    assert _score("wer", SPELLER, scores, true, 1).value == pytest.approx(1 / 4)
    assert not _score("wer", SPELLER, scores, true).greater_is_better


def test_error_rates_of_ctc() -> None:
    """Repetitions and blanks are left out of what the frames say, and padding out of the labels."""
    manifest = _manifest(
        "ctc", LabelSpec("y", "int64", ("batch", "length"), 5, -100), ("batch", "time", 5), None, ("length", "time")
    )
    manifest = replace(manifest, loss=LossSpec("ctc", {"blank": 0}))
    frames = [[0, 1, 1, 0, 1, 2], [3, 3, 0, 0, 4, 0]]  # 1 1 2 and 3 4
    true = np.array([[1, 1, 2, -100], [3, 1, 4, 0]])
    assert _score("cer", manifest, _one_hot(frames, 5), true, 1).value == pytest.approx(1 / 6)
    counted = replace(manifest, loss=LossSpec("ctc", {"blank": 0, "frames": "counts"}))
    collector = metric_of("cer").collector(counted)
    collector.add({"scores": _one_hot(frames, 5), "counts": np.array([5, 6])}, {"y": true})  # 1 1 and 3 4
    assert collector.score().value == pytest.approx(2 / 6)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_recall_of_embeddings_is_over_the_whole_data(similarity: str) -> None:
    """Whether the own positive is among the k most similar ones, for one output of pairs and for two outputs."""
    draw = np.random.default_rng(0)
    anchors, positives = (draw.normal(size=(300, 6)).astype(np.float32) for _ in range(2))
    positives += anchors
    one = TensorSpec("scores", "float32", ("batch", "texts", 6))
    two = tuple(TensorSpec(name, "float32", ("batch", 6)) for name in ("a", "b"))
    scale = (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)) if similarity == "cosine" else (lambda x: x)
    order = np.argsort(-(scale(anchors) @ scale(positives).T), axis=1)
    expected = np.mean([row in order[row, :3] for row in range(300)])
    assert 0.1 < expected < 0.98
    for outputs in ((one,), two):
        loss = LossSpec("multiple_negatives", {"similarity": similarity})
        collector = metric_of("recall@3").collector(replace(YES, loss=loss, outputs=outputs, labels=()))
        for rows in np.array_split(np.arange(300), 7):
            pair = (anchors[rows], positives[rows])
            collector.add(
                {"scores": np.stack(pair, 1)} if outputs == (one,) else dict(zip("ab", pair, strict=True)), {}
            )
        assert collector.score().value == pytest.approx(expected)


def test_entities_are_spans_of_one_type() -> None:
    """By the rules of CoNLL-2000, listed case by case."""
    cases: dict[str, set[tuple[str, int, int]]] = {
        "O B-per I-per O": {("per", 1, 3)},
        "B-per B-per": {("per", 0, 1), ("per", 1, 2)},
        "I-per I-org": {("per", 0, 1), ("org", 1, 2)},
        "B-per I-org I-org": {("per", 0, 1), ("org", 1, 3)},
        "O O": set(),
        "B-per O I-per": {("per", 0, 1), ("per", 2, 3)},
        "": set(),
    }
    for tags, expected in cases.items():
        assert entities(tags.split()) == expected


def test_f1_of_entities() -> None:
    """Of three true entities one is found, with another one that is none."""
    true = np.array([[1, 2, 0, 3], [1, -100, 0, 0]])
    scores = _one_hot([[1, 2, 0, 1], [1, 2, 0, 0]], 5)
    found, wanted = {("per", 0, 2)}, 3
    value = _score("entity_f1", TAGGER, scores, true).value
    assert value == pytest.approx(2 * (len(found) + 1) / (3 + wanted))


def test_metrics_that_do_not_fit_are_refused() -> None:
    """By name, with those that do."""
    for name, manifest in (("f1", NUMBER), ("mae", YES), ("perplexity", YES), ("cer", _classes(3)), ("auc", CAUSAL)):
        with pytest.raises(SettingError) as caught:
            metric_of(name).collector(manifest)
        assert caught.value.code == "wrong-metric"
    for name in ("f2", "recall@none", "recall@0", "f1@3"):
        with pytest.raises(SettingError):
            metric_of(name)


def test_nothing_to_count_is_not_a_number() -> None:
    """And is never better than anything."""
    for name in ("accuracy", "f1", "auc", "recall@3", "perplexity", "confusion"):
        score = _score(name, _classes(3), np.zeros((2, 3), np.float32), np.array([-100, -100]))
        assert np.isnan(score.value)
        assert not score.better_than(None)
