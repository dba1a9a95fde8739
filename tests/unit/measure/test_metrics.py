"""The metrics of tasks against their formulas written out, and where they are not defined."""

from __future__ import annotations

from math import fsum, sqrt

import numpy as np
import pytest

from limbeck.measure.metrics import scores
from limbeck.recipe.keys import METRICS

Rows = list[float]


def logits_of(answers: list[int], count: int) -> np.ndarray:
    """Logits whose largest is the answer, otherwise random."""
    draw = np.random.default_rng(0).normal(size=(len(answers), count))
    draw[np.arange(len(answers)), answers] = 9
    return draw


def confusion(labels: list[int], answers: list[int], count: int) -> list[list[int]]:
    """Rows of a label and an answer: how many there are."""
    return [
        [sum(y == a and z == b for y, z in zip(labels, answers, strict=True)) for b in range(count)]
        for a in range(count)
    ]


def f1(table: list[list[int]], one: int) -> float:
    right, said, meant = table[one][one], sum(row[one] for row in table), sum(table[one])
    return 2 * right / (said + meant)


def matthews(table: list[list[int]]) -> float:
    """Gorodkin's R_K; of two classes Matthews' coefficient."""
    every, count = sum(map(sum, table)), range(len(table))
    right = sum(table[k][k] for k in count)
    meant, said = [sum(table[k]) for k in count], [sum(row[k] for row in table) for k in count]
    below = (every**2 - sum(p * p for p in said)) * (every**2 - sum(t * t for t in meant))
    return (right * every - sum(p * t for p, t in zip(said, meant, strict=True))) / sqrt(below)


def pearson(x: Rows, y: Rows) -> float:
    mx, my = fsum(x) / len(x), fsum(y) / len(y)
    both = fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return both / sqrt(fsum((a - mx) ** 2 for a in x) * fsum((b - my) ** 2 for b in y))


def ranks(x: Rows) -> Rows:
    """From 1; ties have the mean of their places."""
    return [1 + sum(b < a for b in x) + (sum(b == a for b in x) - 1) / 2 for a in x]


@pytest.mark.parametrize("seed", range(5))
def test_two_classes(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels, answers = draw.integers(0, 2, 23).tolist(), draw.integers(0, 2, 23).tolist()
    (a, b), (c, d) = table = confusion(labels, answers, 2)
    found = scores("classification", logits_of(answers, 2), np.array(labels))
    by_hand = (a * d - b * c) / sqrt((a + b) * (c + d) * (a + c) * (b + d))
    assert found == pytest.approx({"accuracy": (a + d) / 23, "f1": 2 * d / (2 * d + b + c), "matthews": by_hand})
    assert matthews(table) == pytest.approx(by_hand)


@pytest.mark.parametrize("seed", range(5))
def test_three_classes(seed: int) -> None:
    """F1 is the mean over the classes, however many rows each has."""
    draw = np.random.default_rng(seed)
    labels, answers = draw.choice(3, 40, p=[0.6, 0.3, 0.1]).tolist(), draw.integers(0, 3, 40).tolist()
    table = confusion(labels, answers, 3)
    found = scores("classification", logits_of(answers, 3), np.array(labels))
    mean = sum(f1(table, one) for one in range(3)) / 3
    right = sum(table[one][one] for one in range(3)) / 40
    assert found == pytest.approx({"accuracy": right, "f1": mean, "matthews": matthews(table)})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grain", [0.0, 0.5, 2.0])
def test_scores(seed: int, grain: float) -> None:
    """With ties, which a grain makes."""
    draw = np.random.default_rng(seed)
    labels, answers = draw.normal(size=30) * 2, draw.normal(size=30) * 2
    if grain:
        labels, answers = np.round(labels / grain) * grain, np.round(answers / grain) * grain
    x, y = answers.tolist(), labels.astype(np.float32).tolist()
    found = scores("regression", answers[:, None], labels.astype(np.float32))
    assert found == pytest.approx({"pearson": pearson(x, y), "spearman": pearson(ranks(x), ranks(y))}, rel=1e-12)


def test_scores_in_order_are_ranked_alike() -> None:
    found = scores("regression", np.array([[1.0], [10.0], [100.0]]), np.array([1, 2, 3], np.float32))
    assert found["spearman"] == pytest.approx(1) and found["pearson"] == pytest.approx(pearson([1, 10, 100], [1, 2, 3]))


@pytest.mark.parametrize("kind", METRICS)
def test_no_rows_have_no_metrics(kind: str) -> None:
    count = 1 if kind == "regression" else 3
    for labels in (np.zeros(0), np.full(4, -100)):
        assert scores(kind, np.zeros((len(labels), count)), labels) == dict.fromkeys(METRICS[kind])


@pytest.mark.parametrize("kind", METRICS)
def test_rows_without_a_label_are_left_out(kind: str) -> None:
    """Whatever was answered there, even nothing."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(20, 1 if kind == "regression" else 3))
    labels = draw.normal(size=20).astype(np.float32) if kind == "regression" else draw.integers(0, 3, 20)
    labels[::3] = -100
    logits[::3] = np.nan
    kept = labels != -100
    found = scores(kind, logits, labels)
    assert found == scores(kind, logits[kept], labels[kept]) and None not in found.values()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("answer", [0, 1])
def test_one_class_alone(classes: int, label: int, answer: int) -> None:
    """All labels alike and all answers alike: nothing goes together, and nobody is warned."""
    found = scores("classification", logits_of([answer] * 5, classes), np.array([label] * 5))
    right = float(label == answer)
    positive = right if classes == 3 else right * label  # of two, the second is the one that is looked for
    assert found == {"accuracy": right, "f1": positive, "matthews": 0.0}


def test_answers_that_are_all_alike() -> None:
    found = scores("classification", logits_of([1] * 4, 2), np.array([0, 1, 1, 0]))
    assert found == pytest.approx({"accuracy": 0.5, "f1": 2 / 3, "matthews": 0.0})
    found = scores("classification", logits_of([0, 1, 1, 0], 2), np.array([1] * 4))
    assert found == pytest.approx({"accuracy": 0.5, "f1": 2 / 3, "matthews": 0.0})


def test_a_class_that_is_nowhere_costs_nothing() -> None:
    """All answers right, of three classes two among them."""
    assert scores("classification", logits_of([0, 1, 1], 3), np.array([0, 1, 1]))["f1"] == 1
    found = scores("classification", logits_of([0, 1, 2], 3), np.array([0, 1, 1]))
    assert found["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3), "one that is answered counts"


@pytest.mark.parametrize("answers", [[2.0, 2.0, 2.0], [0.1 + 0.2, 0.3, 0.3]])
def test_constant_scores_have_no_correlation(answers: Rows) -> None:
    found = scores("regression", np.array(answers, np.float32)[:, None], np.array([1, 2, 3], np.float32))
    assert found == {"pearson": None, "spearman": None}
    found = scores("regression", np.array([[1.0], [2.0]]), np.array([3, 3], np.float32))
    assert found == {"pearson": None, "spearman": None}
    assert scores("regression", np.array([[1.0]]), np.array([3], np.float32))["pearson"] is None


def test_scores_that_hardly_differ() -> None:
    """A warning of scipy's is no matter of the user's: the number says it."""
    found = scores("regression", np.array([[1e9], [1e9 + 1e-6], [1e9]]), np.array([1, 2, 3], np.float32))
    assert found["spearman"] is not None and abs(found["spearman"]) <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", METRICS)
def test_a_student_that_is_lost_has_no_metrics(kind: str, value: float) -> None:
    logits = np.ones((3, 1 if kind == "regression" else 2))
    logits[1, 0] = value
    assert scores(kind, logits, np.array([0, 1, 0])) == dict.fromkeys(METRICS[kind])
