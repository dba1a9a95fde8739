"""The model card beside an exported student."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.training.export import model_card

MANIFEST: dict[str, Any] = {
    "name": "first", "versions": {"limbeck": "0.1.0"}, "students": {"kd-seed1": {"parameters": 8514}},
    "teacher": {"name": "teacher", "source": "bert", "parameters": 22442, "sha256": "ab" * 32},
    "data": {"corpus": "rows.tsv", "documents": 288, "tokens": 1307, "sha256": "cd" * 32},
}  # fmt: skip
ROW = {"logit_loss": 0.25, "agreement": 0.5, "label_loss": 0.75, "label_accuracy": 0.125, "tokens": 50}


def card(rows: list[dict[str, Any]], **facts: Any) -> list[str]:
    return model_card(MANIFEST | facts, "name: first", {"setting": "kd", "seed": 1}, "kd-seed1", rows).splitlines()


def test_the_card_of_a_language_model_is_as_before() -> None:
    lines = card([ROW | {"split": "train"}, ROW | {"split": "test"}])
    assert "- teacher: `bert` (22,442 parameters, sha256 `abababababababab`)" in lines
    assert "- data: `rows.tsv`, 288 documents, 1,307 tokens (sha256 `cdcdcdcdcdcdcdcd`)" in lines
    assert "The run's last evaluation, on 50 of 1,307 (train) and 50 (test) tokens; losses in nats a token." in lines
    whole = card([ROW | {"split": "test"}], data=MANIFEST["data"] | {"heldout_tokens": 9_000, "heldout_documents": 70})
    assert "The run's last evaluation, on 50 of 9,000 (test) tokens; losses in nats a token." in whole
    assert "| split | logit loss, KL(teacher, student) | top-1 agreement | label loss | label accuracy |" in lines
    assert "| test | 0.2500 | 0.5000 | 0.7500 | 0.1250 |" in lines


def test_the_card_of_a_classifier_has_the_metrics_of_both() -> None:
    row = ROW | {
        "split": "test",
        "metrics": {"accuracy": 0.8, "f1": None},
        "teacher_metrics": {"accuracy": 0.9, "f1": 0.7},
    }
    more = {"corpus": "more.tsv", "documents": 7, "tokens": 40, "sha256": "ef" * 32}
    lines = card([row], data=MANIFEST["data"] | {"classes": ["no", "yes"], "unlabelled": more, "heldout_documents": 70})
    assert "| split | accuracy | F1 | logit loss, KL(teacher, student) | top-1 agreement | label loss |" in lines
    assert "| test | 0.8000 |  | 0.2500 | 0.5000 | 0.7500 |" in lines
    assert "| test, the teacher | 0.9000 | 0.7000 |  |  |  |" in lines
    assert "- unlabelled: `more.tsv`, 7 rows, 40 tokens (sha256 `efefefefefefefef`)" in lines
    assert "- classes: no, yes" in lines
    assert any("on 50 of 70 (test) rows; losses in nats a row." in line for line in lines)


def test_the_card_of_a_regression_speaks_of_squared_errors() -> None:
    row = ROW | {"split": "test", "agreement": None, "label_accuracy": None, "teacher_metrics": None}
    row["metrics"] = {"pearson": 0.8, "spearman": 0.7}
    row["exits"] = {"exit.2": {"logit_loss": None, "label_loss": 0.9, "metrics": {"pearson": 0.6, "spearman": 0.5}}}
    lines = card([row], teacher=None)
    words = "| split | Pearson correlation | Spearman correlation | squared error against the teacher | squared error against the labels |"
    assert words in lines
    assert "| test | 0.8000 | 0.7000 | 0.2500 | 0.7500 |" in lines
    assert "| test, exit after layer 2 | 0.6000 | 0.5000 |  | 0.9000 |" in lines
    assert "- teacher: none: trained on labels alone" in lines
    assert any("losses are squared errors." in line for line in lines)
    assert "nats" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("names", "taught"),
    [
        (["tune-seed0", "tune-seed1"], ["tune-seed1"]),
        (["kd-seed1", "other-seed1", "kd-seed0"], ["kd-seed1"]),
        (["tune-seed0"], ["tune-seed0"]),
    ],
)
def test_of_the_students_of_a_stage_the_one_that_taught_is_named(names: list[str], taught: list[str]) -> None:
    teachers = [MANIFEST["teacher"] | {"name": f"teacher@{name}", "source": "$hints/x"} for name in names]
    lines = card([ROW | {"split": "test"}], teacher=teachers[0], teachers=teachers[1:])
    found = [line.split("`")[1] for line in lines if line.startswith("- teacher:")]
    assert found == taught
    assert all("of the stage `hints`" in line for line in lines if line.startswith("- teacher:"))


def test_files_and_folders_are_told_by_name_alone() -> None:
    """The card goes to the Hub with the model."""
    recipe = "out: /home/me/runs/my first\ndata:\n  corpus: /home/me/rows.tsv\n  cache: ~/cache"
    facts = MANIFEST | {
        "teacher": MANIFEST["teacher"] | {"source": "/home/me/models/bert"},
        "data": MANIFEST["data"] | {"corpus": "/home/me/rows.tsv"},
    }
    text = model_card(facts, recipe, {"setting": "kd", "seed": 1}, "kd-seed1", [ROW | {"split": "test"}])
    assert "- teacher: `bert` (" in text and "- data: `rows.tsv`, " in text
    assert "out: my first\ndata:\n  corpus: rows.tsv\n  cache: cache\n" in text
    assert "/home" not in text and "~" not in text
