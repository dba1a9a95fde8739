"""A teacher without a head: a `BertModel` whose states are learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import recipe
from runfiles import untimed, weights
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import limbeck
from limbeck.errors import UserError

Train = Callable[..., limbeck.Run]
STATES: dict[str, Any] = {
    "inside": {
        "terms": [
            {"loss": "mse", "tap": "hidden"},
            {"loss": "attention_scores_mse", "tap": "scores"},
            {"loss": "cross_entropy", "name": "label"},
        ]
    }
}


@pytest.fixture(scope="module")
def headless(world: Path) -> Path:
    """The teacher of the tests as its bare model."""
    folder = world / "headless"
    AutoModel.from_pretrained(world / "teacher", add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(world / "teacher").save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    return folder


def said(world: Path, out: Path, teacher: Path, **more: Any) -> dict[str, Any]:
    table = recipe(world, out, settings=STATES, **more)
    table["models"] |= {"teacher": str(teacher)}
    return table


def test_its_states_teach_as_those_of_the_whole_model(world: Path, headless: Path, tmp_path: Path) -> None:
    """The same bits; what would be measured by its predictions is not known, and the page does without."""
    whole = limbeck.run(said(world, tmp_path / "whole", world / "teacher"), quiet=True)
    run = limbeck.run(said(world, tmp_path / "run", headless), quiet=True)
    assert [weights(run, name) for name in run.students] == [weights(whole, name) for name in whole.students]
    mine, theirs = untimed(run.evals), untimed(whole.evals)
    assert [row["label_loss"] for row in mine] == [row["label_loss"] for row in theirs]
    assert all(row["logit_loss"] is None and row["agreement"] is None for row in mine)
    assert all(row["logit_loss"] is None for row in run.metrics)
    assert all("label loss, test text" in text for text in (run.table(), run.report.read_text(encoding="utf-8")))
    AutoModelForMaskedLM.from_pretrained(run.students["inside-seed0"])


def test_it_goes_on(world: Path, headless: Path, tmp_path: Path, fast: None) -> None:
    """The head that no file gave is the same at every start."""
    how = {"schedule": "constant", "steps": 4}
    whole = limbeck.run(said(world, tmp_path / "whole", headless, train=how), quiet=True)
    limbeck.run(said(world, tmp_path / "parts", headless, train=how | {"steps": 2}), quiet=True)
    run = limbeck.run(said(world, tmp_path / "parts", headless, train=how), quiet=True)
    assert run.manifest["teacher"] == whole.manifest["teacher"]
    assert weights(run, "inside-seed0") == weights(whole, "inside-seed0")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"settings": {"a": {"terms": [{"loss": "forward_kl"}]}}}, r"settings\.a\.logit learns predictions"),
        ({"cache": {}, "masking": "static"}, "cache keeps predictions"),
        ({"train": {"keep": "logit_loss"}}, "train.keep measures logit_loss"),
    ],
)
def test_what_asks_for_its_predictions_is_refused(
    more: dict[str, Any], message: str, world: Path, headless: Path, tmp_path: Path
) -> None:
    table = said(world, tmp_path / "run", headless, train=more.get("train"))
    table |= {word: more[word] for word in ("settings", "cache") if word in more}
    if "masking" in more:
        table["data"] |= {"masking": {"mode": more["masking"]}}
    with pytest.raises(UserError, match=f"models.teacher: saved as BertModel, without a head, and {message}"):
        limbeck.check(table)


def test_no_student_begins_without_a_head(world: Path, headless: Path, tmp_path: Path) -> None:
    table = recipe(world, tmp_path / "run", settings={"a": {"terms": [{"loss": "cross_entropy"}]}})
    for models in (
        {"student": {"init": str(headless)}},
        {"teacher": str(headless), "student": {"init": "teacher", "layers": 2}},
    ):
        with pytest.raises(UserError, match=r"models.student.init: saved as BertModel, without a head"):
            limbeck.check(table | {"models": models})
