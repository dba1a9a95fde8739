"""`limbeck eval`: an exported folder is measured as its run measured it, and as transformers alone answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from limbeck.errors import UserError
from limbeck.recipe import load
from limbeck.recipe.data import Data
from limbeck.text.block_feed import Feed
from limbeck.text.blocks import prepare
from limbeck.tools.evaluate_model import examine, write_answers

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


def made(folder: Path, classes: Sequence[str] = (), count: int = 2) -> Path:
    """A classifier that nobody trained, whose classes have these names."""
    model = small(classes=count)
    if classes:
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: number for number, name in enumerate(classes)}
    model.save_pretrained(folder)
    framed().save_pretrained(folder)
    return folder


def rows_of(tmp_path: Path, dev: Sequence[dict[str, Any]], length: int = 12, **task: Any) -> Data:
    train, held = table(tmp_path / "train.jsonl", told(40)), table(tmp_path / "dev.jsonl", dev)
    how: dict[str, Any] = {"cache": str(tmp_path / "cache"), "max_length": length}
    return Data(corpus=str(train), heldout=str(held), task={"kind": "classification", **task}, **how)  # pyright: ignore


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    named, dev = made(tmp_path / "named", ("bad", "good")), told(21, 40)
    for classes, line in (
        (["good", "bad"], "it predicts bad, good, and the task has good, bad; name data.task.classes in the order"),
        (["bad", "good", "odd"], "it predicts bad, good, and the task has bad, good, odd (2 and 3); name all"),
    ):
        with pytest.raises(UserError) as error:
            examine(named, rows_of(tmp_path, dev, classes=classes))
        assert line in str(error.value)


def test_answers_are_named_as_the_rows_name_their_classes(tmp_path: Path) -> None:
    """Of a model that only counts its classes, and of one that calls them otherwise than the recipe."""
    dev = told(21, 40)
    counted = examine(made(tmp_path / "counted"), rows_of(tmp_path, dev))
    assert set(counted.answers) <= {"bad", "good"}
    right = sum(said == row["label"] for said, row in zip(counted.answers, dev, strict=True)) / 21
    assert counted.metrics["accuracy"] == pytest.approx(right)
    other = made(tmp_path / "other", ("NEGATIVE", "POSITIVE"))
    assert examine(other, rows_of(tmp_path, dev, classes=["bad", "good"])).answers == counted.answers


def test_rows_without_labels_are_answered(tmp_path: Path) -> None:
    model, bare = made(tmp_path / "model"), [{"sentence": row["sentence"]} for row in told(21, 40)]
    whole = examine(model, rows_of(tmp_path, told(21, 40)))
    with pytest.raises(UserError, match="no held-out row has a label to be measured by"):
        examine(model, rows_of(tmp_path, bare))
    found = examine(model, rows_of(tmp_path, bare), answering=True)
    assert found.answers == whole.answers and (found.rows, found.label_loss) == (0, None)
    assert set(found.metrics.values()) == {None}


def test_no_answer_stands_under_the_number_of_another_row(tmp_path: Path) -> None:
    dev = told(21, 40)
    dev[3]["sentence"] = " "
    data, model = rows_of(tmp_path, dev), made(tmp_path / "model")
    assert examine(model, data).rows == 20
    with pytest.raises(UserError, match=r"dev\.jsonl:4: a row without text, which has no answer; remove it"):
        examine(model, data, answering=True)


def test_what_cannot_be_read_so(world: Path, tmp_path: Path) -> None:
    model, dev = made(tmp_path / "model"), told(21, 40)
    with pytest.raises(UserError, match=r"--device: nonsense cannot be used here"):
        examine(model, rows_of(tmp_path, dev), device="nonsense")
    dev[0]["sentence"] = " ".join(WORDS * 5)
    with pytest.raises(UserError, match=r"rows of 42 tokens are more than its 32 positions; lower data.max_length"):
        examine(model, rows_of(tmp_path, dev, 64))
    assert examine(model, rows_of(tmp_path, dev, 32)).rows == 21
    text = load.load(of_text(world, tmp_path / "text")).data
    text = text.model_copy(update={"masking": text.masking.model_copy(update={"mode": "none"})})
    with pytest.raises(UserError, match=r"measured by masked tokens, and none is masked; set data.masking.mode"):
        examine(world / "teacher", text)


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
    for place, line in (
        (tmp_path / "none" / "p.tsv", "its folder is not there; make it, or"),
        (tmp_path, "is a folder;"),
    ):
        status, _, err = answer(monkeypatch, capsys, "eval", folder, "--task", said, "--predictions", str(place))
        assert status == 2 and f"{place}: {line} choose another file with --predictions" in err
