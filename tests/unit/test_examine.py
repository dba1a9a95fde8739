"""`limbeck eval`: an exported folder is measured as its run measured it, and as transformers alone answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel import answer
from kernel import recipe as of_text
from rows import framed, recipe, small, table
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import limbeck
from limbeck import load
from limbeck.errors import UserError
from limbeck.examine import examine, write_answers
from limbeck.feeds.blocks import prepare
from limbeck.feeds.feed import Feed

pytestmark = pytest.mark.usefixtures("fast")
WORDS = ("ba", "be", "bi", "bo", "bu", "da", "de", "di")


def told(count: int, first: int = 0) -> list[dict[str, Any]]:
    rows = []
    for i in range(first, first + count):
        words = [WORDS[(i * k + k * k + i) % len(WORDS)] for k in range(3 + i % 5)]
        rows.append({"sentence": " ".join(words), "label": "good" if i % 3 else "bad", "score": i % 7 / 2})
    return rows


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[limbeck.Run, Any]]:
    """A finished run of a task, and its table `data`."""

    def go(kind: str) -> tuple[limbeck.Run, Any]:
        small(layers=2).save_pretrained(tmp_path / "bert")
        framed().save_pretrained(tmp_path / "bert")
        table(tmp_path / "rows" / "train.jsonl", told(40))
        table(tmp_path / "rows" / "dev.jsonl", told(21, 40))
        task = {"kind": kind, "label": "label" if kind == "classification" else "score"}
        data = {"corpus": str(tmp_path / "rows"), "task": task, "cache": str(tmp_path / "cache"), "max_length": 12}
        loss = "cross_entropy" if kind == "classification" else "squared_error"
        said = recipe(data, {"student": {"init": str(tmp_path / "bert")}}, tmp_path / kind, loss, steps=8)
        return limbeck.run(said, quiet=True), load.load(said).data

    return go


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_task_is_measured_as_the_run_measured_it(
    trained: Callable[..., tuple[limbeck.Run, Any]], kind: str, tmp_path: Path
) -> None:
    run, data = trained(kind)
    folder = run.students["a-seed0"]
    last = [row for row in run.evals if row["split"] == "test"][-1]
    found = examine(folder, data, batch_size=4)
    assert found.rows == 21 and found.label_loss == pytest.approx(last["label_loss"], rel=1e-5)
    assert found.metrics == pytest.approx(last["metrics"], rel=1e-5)
    write_answers(found, tmp_path / "answers.tsv")
    lines = [line.split("\t") for line in (tmp_path / "answers.tsv").read_text().splitlines()]
    assert lines[0] == ["index", "prediction"] and [line[0] for line in lines[1:]] == [str(i) for i in range(21)]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for row, (_, said) in zip(told(21, 40), lines[1:], strict=True):
        with torch.no_grad():
            logits = model.eval()(
                **tokenizer(row["sentence"], truncation=True, max_length=12, return_tensors="pt")
            ).logits[0]
        if kind == "regression":
            assert float(said) == pytest.approx(logits.item(), abs=1e-4)
        else:
            assert said == model.config.id2label[int(logits.argmax())]


def test_running_text(train: Callable[..., limbeck.Run], world: Path, tmp_path: Path) -> None:
    run, data = train("text"), load.load(of_text(world, tmp_path / "text")).data
    folder = run.students["logit-seed0"]
    found = examine(folder, data)
    corpus = prepare(data, AutoTokenizer.from_pretrained(folder), tell=lambda line: None)
    feed = Feed(corpus.heldout, masking=data.masking, positions="masked")
    (batch,) = feed.fixed(len(corpus.heldout), 1000)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits
    kept = batch["labels"] != -100
    loss = F.cross_entropy(logits[kept], batch["labels"][kept]).item()
    assert found.rows == int(kept.sum()) and found.label_loss == pytest.approx(loss, rel=1e-5)
    right = (logits[kept].argmax(-1) == batch["labels"][kept]).float().mean().item()
    assert found.metrics == pytest.approx({"accuracy": right, "perplexity": math.exp(loss)}, rel=1e-5)
    with pytest.raises(UserError, match="running text has no rows"):
        write_answers(found, tmp_path / "none.tsv")


def test_a_model_that_does_not_fit(
    trained: Callable[..., tuple[limbeck.Run, Any]], world: Path, tmp_path: Path
) -> None:
    run, data = trained("classification")
    with pytest.raises(UserError, match="a language model, and the data are a task"):
        examine(world / "teacher", data)
    text = load.load(of_text(world, tmp_path / "text")).data
    with pytest.raises(UserError, match="made for a task, and the data are running text"):
        examine(run.students["a-seed0"], text)
    scores = data.model_copy(update={"task": data.task.model_copy(update={"kind": "regression", "label": "score"})})
    with pytest.raises(UserError, match="made for single_label_classification, and the task is a regression"):
        examine(run.students["a-seed0"], scores)


def test_the_command(
    trained: Callable[..., tuple[limbeck.Run, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, _ = trained("classification")
    folder, said = str(run.students["a-seed0"]), str(run.folder / "recipe.yaml")
    status, out, _ = answer(
        monkeypatch, capsys, "eval", folder, "--task", said, "--predictions", str(tmp_path / "p.tsv")
    )
    last = [row for row in run.evals if row["split"] == "test"][-1]
    assert status == 0 and f"accuracy       {last['metrics']['accuracy']:.4f}" in out and "21 rows" in out
    assert len((tmp_path / "p.tsv").read_text().splitlines()) == 22
    status, _, err = answer(monkeypatch, capsys, "eval", str(tmp_path / "none"), "--task", said)
    assert status == 2 and "no such model folder" in err and len(err.strip().splitlines()) == 1
    status, _, err = answer(monkeypatch, capsys, "eval", folder, "--task", said, "--precision", "fp8")
    assert status == 2 and "--precision: fp8 is none" in err
