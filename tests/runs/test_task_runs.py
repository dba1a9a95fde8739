"""Whole runs of tasks: what they leave behind is what transformers and scikit-learn find in the exported folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kernel import answer, lay_out, views
from kernel import recipe as of_text
from places import SHARED
from rows import CLASSES, OPINIONS, bare, framed, likenesses, of_task, opinions, recipe, small, table
from runfiles import same_run, stopped, untimed, weights
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import limbeck
from limbeck.assemble import design
from limbeck.assemble.study import Study, build_study
from limbeck.assemble.text import read_text
from limbeck.errors import UserError
from limbeck.lab.page import report
from limbeck.recipe.load import load
from limbeck.system.processes import World
from limbeck.text.mixed_feed import Mixed

Rows = list[dict[str, Any]]
HELD = 21  # rows of the held-out files

pytestmark = pytest.mark.usefixtures("fast")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Language models to begin as, and files of rows."""
    folder = tmp_path_factory.mktemp("world")
    for name, model, tokenizer in (
        ("bert", small(layers=2), framed()),
        ("gpt2", small("gpt2", layers=2), bare("<s>", "$A", "</s>")),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, kind, ending in (("opinions", opinions, "tsv"), ("likenesses", likenesses, "jsonl")):
        table(folder / name / f"train.{ending}", kind(48))
        table(folder / name / f"dev.{ending}", kind(HELD, 48))
    return folder


@pytest.fixture(scope="module")
def tuned(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """A classifier of opinions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder: folder)
        return limbeck.run(of_task(world, tmp_path_factory.mktemp("runs") / "tuned", steps=12), quiet=True)


def distilled(world: Path, tuned: limbeck.Run, out: Path, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A recipe of one layer that learns from the classifier."""
    said = of_task(world, out, **more.pop("train", {}))
    said["models"] = {"teacher": str(tuned.students["a-seed0"]), "student": {"layers": 1}}
    said["data"] |= more.pop("data", {})
    return said | {"settings": settings} | more


@torch.no_grad()
def answers(folder: Path, rows: Rows, texts: Sequence[str]) -> torch.Tensor:
    """What transformers says of rows, each read alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        one = tokenizer(*(row[text] for text in texts), truncation=True, max_length=20, return_tensors="pt")
        found.append(model(**one).logits[0])
    return torch.stack(found)


@torch.no_grad()
def in_batches(folder: Path, rows: Rows, texts: Sequence[str]) -> torch.Tensor:
    """The same in padded batches, with the padding that the exported config names."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    columns = [[row[text] for row in rows] for text in texts]
    whole = tokenizer(*columns, padding=True, truncation=True, max_length=20, return_tensors="pt")
    return model(**whole).logits


def of_classes(logits: torch.Tensor, rows: Rows) -> dict[str, float]:
    labels, said = [CLASSES.index(row["label"]) for row in rows], logits.argmax(-1).tolist()
    return {
        "accuracy": float(accuracy_score(labels, said)),
        "f1": float(f1_score(labels, said, average="macro")),
        "matthews": float(matthews_corrcoef(labels, said)),
    }


def of_scores(logits: torch.Tensor, rows: Rows) -> dict[str, float]:
    labels, said = [row["score"] for row in rows], logits[:, 0].tolist()
    found: Any = {"pearson": pearsonr(said, labels)[0], "spearman": spearmanr(said, labels)[0]}
    return {name: float(value) for name, value in found.items()}


def last(run: limbeck.Run, setting: str = "a", split: str = "test") -> dict[str, Any]:
    return [row for row in run.evals if (row["setting"], row["split"]) == (setting, split)][-1]


# what is left behind


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("name", ["opinions", "likenesses"])
def test_the_metrics_are_those_of_the_exported_folder(world: Path, tmp_path: Path, name: str, family: str) -> None:
    """Single texts and pairs, classes and scores; a causal tokenizer without padding whose rows end with the end of text."""
    run = limbeck.run(of_task(world, tmp_path / "run", name, family, precision="fp64"), quiet=True)
    files, folder = world / name, run.students["a-seed0"]
    rows = opinions(HELD, 48) if name == "opinions" else likenesses(HELD, 48)
    texts, measured = (["sentence"], of_classes) if name == "opinions" else (["one", "two"], of_scores)
    assert (files / "dev.tsv").exists() or (files / "dev.jsonl").exists()
    alone, together = answers(folder, rows, texts), in_batches(folder, rows, texts)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    row = last(run)
    assert len(set(alone.argmax(-1).tolist())) > 1 or alone.std() > 0.02, "else little is shown"
    assert row["metrics"] == pytest.approx(measured(alone, rows), abs=1e-6)
    assert row["teacher_metrics"] is None and row["logit_loss"] is None
    assert row["tokens"] == HELD, "all held-out rows"
    assert last(run, split="train")["tokens"] == HELD, "and as many of the training rows"
    if name == "opinions":
        labels = torch.tensor([CLASSES.index(each["label"]) for each in rows])
        assert row["label_loss"] == pytest.approx(torch.nn.functional.cross_entropy(alone, labels).item(), rel=1e-5)
        assert row["label_accuracy"] == pytest.approx(row["metrics"]["accuracy"])
    else:
        labels = torch.tensor([each["score"] for each in rows])
        assert row["label_loss"] == pytest.approx((alone[:, 0] - labels).square().mean().item(), rel=1e-5)
        assert row["label_accuracy"] is None and row["agreement"] is None
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert list(config["id2label"].values()) == (list(CLASSES) if name == "opinions" else ["score"])


@pytest.mark.slow
def test_a_teacher_is_tuned_and_taught_from_in_two_stages(world: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", of_task(world, tmp_path / "run", steps=8, precision="fp64")
    one = {"stage": "tune", "settings": said.pop("settings")}
    said |= {"seeds": [0, 1]}
    settings = {
        "soft": {"terms": [{"loss": "forward_kl"}]},
        "both": {"terms": [{"loss": "forward_kl"}, {"loss": "cross_entropy", "name": "label"}]},
    }
    two = {"stage": "distil", "models": {"teacher": "$tune", "student": {"init": "random", "layers": 1}}}
    said |= {"stages": [one, two | {"settings": settings}]}
    run = limbeck.run(said, quiet=True)
    assert run.folder == out and sorted(run.students) == ["both-seed0", "both-seed1", "soft-seed0", "soft-seed1"]
    rows = opinions(HELD, 48)
    for name, folder in run.students.items():
        setting, seed = name.split("-seed")
        found = [row for row in run.evals if row["learner"] == name and row["split"] == "test"][-1]
        teacher = out / "stages" / "tune" / "students" / f"a-seed{seed}"
        mine, theirs = (answers(each, rows, ["sentence"]) for each in (folder, teacher))
        assert found["stage"] == "distil" and found["setting"] == setting
        assert found["metrics"] == pytest.approx(of_classes(mine, rows), abs=1e-6)
        assert found["teacher_metrics"] == pytest.approx(of_classes(theirs, rows), abs=1e-6)
        assert len(set(mine.argmax(-1).tolist())) > 1, "else little is shown"
        agreed = (mine.argmax(-1) == theirs.argmax(-1)).double().mean().item()
        assert found["agreement"] == pytest.approx(agreed)
        kl = torch.nn.functional.kl_div(mine.log_softmax(-1), theirs.softmax(-1), reduction="batchmean").item()
        assert found["logit_loss"] == pytest.approx(kl, rel=1e-4)
    assert run.manifest["data"]["classes"] == list(CLASSES)


def test_a_score_is_distilled(world: Path, tmp_path: Path) -> None:
    first = limbeck.run(of_task(world, tmp_path / "teacher", "likenesses"), quiet=True)
    said = of_task(world, tmp_path / "run", "likenesses", precision="fp64")
    said["models"] = {"teacher": str(first.students["a-seed0"]), "student": {"layers": 1}}
    said["settings"] = {"a": {"terms": [{"loss": "logit_mse"}, {"loss": "squared_error", "name": "label"}]}}
    run, rows = limbeck.run(said, quiet=True), likenesses(HELD, 48)
    mine, theirs = (answers(each.students["a-seed0"], rows, ["one", "two"]) for each in (run, first))
    row = last(run)
    assert row["metrics"] == pytest.approx(of_scores(mine, rows), abs=1e-5)
    assert row["teacher_metrics"] == pytest.approx(of_scores(theirs, rows), abs=1e-5)
    assert row["logit_loss"] == pytest.approx((mine - theirs).square().mean().item(), rel=1e-4)
    assert all(line["logit_loss"] == pytest.approx(line["terms"]["logit"]) for line in run.metrics)


SETTINGS: dict[str, Any] = {
    "soft": {"terms": [{"loss": "forward_kl", "temperature": 2.0}]},
    "inner": {"terms": [{"loss": "cross_entropy"}, {"loss": "mse", "tap": "hidden"}, {"loss": "cka", "tap": "pooled"}]},
    "mutual": {"peers": 2, "terms": [{"loss": "cross_entropy"}, {"loss": "forward_kl", "teacher": "peers"}]},
}


@pytest.fixture(scope="module")
def company(world: Path, tuned: limbeck.Run, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """Three settings with dropout and unlabelled rows, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder: folder)
        return limbeck.run(crowd(world, tuned, tmp_path_factory.mktemp("runs") / "company"), quiet=True)


def crowd(world: Path, tuned: limbeck.Run, out: Path) -> dict[str, Any]:
    table(world / "more.tsv", opinions(20, 100))
    more = {"unlabelled": {"corpus": str(world / "more.tsv"), "share": 0.25}}
    said = distilled(world, tuned, out, SETTINGS, data=more, train={"accumulate": 2, "probe_every": 2})
    said["models"]["student"] |= {"dropout": 0.1}
    return said


@pytest.mark.parametrize("setting", SETTINGS)
def test_company_is_solo(company: limbeck.Run, world: Path, tuned: limbeck.Run, tmp_path: Path, setting: str) -> None:
    solo = limbeck.run(crowd(world, tuned, tmp_path / "solo") | {"only": [setting]}, quiet=True)
    assert all(weights(solo, name) == weights(company, name) for name in solo.students)
    assert untimed(solo.metrics) == untimed([row for row in company.metrics if row["setting"] == setting])
    assert untimed(solo.evals) == untimed([row for row in company.evals if row["setting"] == setting])


@pytest.mark.parametrize("after", [1, 3])
def test_stopped_and_gone_on_is_undisturbed(
    company: limbeck.Run, world: Path, tuned: limbeck.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    said = crowd(world, tuned, tmp_path / "stopped")
    stopped(said, monkeypatch, after)
    same_run(limbeck.run(said, quiet=True), company, checkpoints=False)


def test_a_stopped_run_does_not_go_on_over_other_unlabelled_text(
    world: Path, tuned: limbeck.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = distilled(world, tuned, tmp_path / "stopped", {"a": SETTINGS["soft"]})
    said["data"]["unlabelled"] = {"corpus": str(table(tmp_path / "more.tsv", opinions(20, 100))), "share": 0.5}
    stopped(said, monkeypatch, 1)
    table(tmp_path / "more.tsv", opinions(20, 130))
    with pytest.raises(UserError, match="the unlabelled text changed since this run began"):
        limbeck.run(said, quiet=True)


# rows without labels


def study_of(said: dict[str, Any]) -> Study:
    plan = design.design(load(said))
    return build_study(plan, World(), read_text(plan, lambda line: None))


@pytest.mark.parametrize("named", [True, False])
def test_half_of_every_batch_has_no_label(world: Path, tuned: limbeck.Run, tmp_path: Path, named: bool) -> None:
    """Whether or not the file has a column of labels: none of it is used, and the teacher speaks of all rows."""
    rows = [row | {"label": "of another task"} for row in opinions(20, 100)]
    more = table(tmp_path / "more.tsv", rows if named else [{"sentence": row["sentence"]} for row in rows])
    settings = {"a": {"terms": [{"loss": "forward_kl"}, {"loss": "cross_entropy", "name": "label"}]}}
    said = distilled(world, tuned, tmp_path / "run", settings)
    said["data"]["unlabelled"] = {"corpus": str(more), "share": 0.5}
    study = study_of(said)
    feed, text = study.feeds[0], study.material
    assert isinstance(feed, Mixed) and text.others
    for step in range(12):
        found = feed.batch(step)
        here = found["labels"] == -100
        assert int(here.sum()) == 4 and torch.equal(here, found["documents"] >= len(text.corpus.train))
        for part in (slice(0, 2), slice(2, 4), slice(4, 8)):
            assert int((feed.batch(step, part)["labels"] == -100).sum()) == (part.stop - part.start) // 2
    still, whole = study.stills[0], [feed.batch(0)]
    (one,) = still.learners
    tally = still.gradients(*views(whole), 0)[one.name]
    logits = one.logits(one.forward(whole[0]).features).detach()
    labels, taught = whole[0]["labels"], still.actors["teacher"]
    expected = torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100])
    torch.testing.assert_close(tally.terms["label"], expected)
    target = taught.logits(taught.forward(whole[0]).features)
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), target.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(tally.terms["logit"], kl)
    run = limbeck.run(said, quiet=True)
    told = run.manifest["data"]["unlabelled"]
    assert told["corpus"] == str(more) and told["documents"] == 20
    assert run.manifest["data"]["documents"] == 48 and last(run)["tokens"] == HELD


def test_packed_text_without_labels(tmp_path: Path) -> None:
    """Of a masked language model: the teacher speaks of masked places there, and no label is learned."""
    world = lay_out(tmp_path)
    texts = (world / "corpus.txt").read_text(encoding="utf-8").split("\n\n")
    (world / "more.txt").write_text("\n\n".join(texts[:60]), encoding="utf-8")
    (world / "corpus.txt").write_text("\n\n".join(texts[60:]), encoding="utf-8")
    settings = {"a": {"terms": [{"loss": "forward_kl"}, {"loss": "cross_entropy", "name": "label"}]}}
    said = of_text(world, tmp_path / "run", settings=settings)
    said["data"]["unlabelled"] = {"corpus": str(world / "more.txt"), "share": 0.5}
    study = study_of(said)
    for step in range(8):
        found = study.feeds[0].batch(step)
        bare_rows = (found["labels"] == -100).all(1)
        assert int((found["blocks"] >= len(study.material.corpus.train)).sum()) == 2
        assert bool(bare_rows[found["blocks"] >= len(study.material.corpus.train)].all())
    run = limbeck.run(said, quiet=True)
    assert run.manifest["data"]["unlabelled"]["corpus"] == str(world / "more.txt")
    assert all(row["terms"]["logit"] > 0 for row in run.metrics)


def test_what_is_held_out_is_not_read_without_labels_either(world: Path, tuned: limbeck.Run, tmp_path: Path) -> None:
    """The dev file of the corpus among the rows of the unlabelled one: left out there."""
    held = opinions(HELD, 48)
    more = table(tmp_path / "more.tsv", [*opinions(20, 100), *held])
    said = distilled(world, tuned, tmp_path / "run", {"a": SETTINGS["soft"]})
    said["data"]["unlabelled"] = {"corpus": str(more), "share": 0.5}
    text = study_of(said).material
    assert text.others and len(text.others["unlabelled"].train) == 20
    tests = {tuple(row) for row in map(list, text.corpus.heldout.rows(range(HELD)))}
    assert not tests & {tuple(row) for row in map(list, text.others["unlabelled"].train.rows(range(20)))}


def test_a_transfer_set_without_labels_is_measured_on_rows_that_have_some(
    world: Path, tuned: limbeck.Run, tmp_path: Path
) -> None:
    """The training file has no column of labels, the held-out file has one: it is named, and the metrics are there."""
    train = table(tmp_path / "transfer.tsv", [{"sentence": row["sentence"]} for row in opinions(40, 200)])
    data = {"corpus": str(train), "heldout": str(table(tmp_path / "held.tsv", opinions(HELD, 48)))}
    said = distilled(world, tuned, tmp_path / "run", {"a": SETTINGS["soft"]}, data=data)
    run, rows = limbeck.run(said, quiet=True), opinions(HELD, 48)
    mine = answers(run.students["a-seed0"], rows, ["sentence"])
    assert last(run)["metrics"] == pytest.approx(of_classes(mine, rows), abs=1e-6)
    assert set(last(run, split="train")["metrics"].values()) == {None}
    notes = run.manifest["data"]["notes"]
    assert "40 of 40 training rows have no label" in notes
    said |= {"settings": {"a": SETTINGS["inner"]}, "out": str(tmp_path / "other")}
    with pytest.raises(UserError, match=r"settings\.a\.logit: learns labels, and no training row of .* has one in the"):
        limbeck.run(said, quiet=True)


def test_a_transfer_set_of_which_nothing_is_labelled(world: Path, tuned: limbeck.Run, tmp_path: Path) -> None:
    """No metrics, and the teacher's measures all the same."""
    data = {"task": OPINIONS | {"label": None}}
    run = limbeck.run(distilled(world, tuned, tmp_path / "run", {"a": SETTINGS["soft"]}, data=data), quiet=True)
    row = last(run)
    assert set(row["metrics"].values()) == set(row["teacher_metrics"].values()) == {None}
    assert row["label_loss"] is None and row["logit_loss"] > 0 and 0 <= row["agreement"] <= 1


def test_fewer_rows_are_asked_when_a_recipe_says_so(world: Path, tmp_path: Path) -> None:
    run = limbeck.run(of_task(world, tmp_path / "run", eval_blocks=5), quiet=True)
    assert last(run)["tokens"] == 5


# as a stranger meets it


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: (status, standard output, standard error)."""

    def go(*words: str) -> tuple[int, str, str]:
        return answer(monkeypatch, capsys, *words)

    return go


def test_check(world: Path, tuned: limbeck.Run, tmp_path: Path, command: Callable[..., Any]) -> None:
    said = crowd(world, tuned, tmp_path / "run")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    status, out, err = command("check", str(tmp_path / "task.yaml"))
    assert (status, err) == (0, "")
    for line in (
        rf"{world / 'opinions'}: 48 rows, ",
        f"held out          {HELD} rows, ",
        "classes           bad, good, middling",
        rf"unlabelled        {world / 'more.tsv'}: 20 rows, ",
    ):
        assert line in out
    assert out.splitlines()[-1] == "ok" and not (tmp_path / "run").exists()


MISTAKES = [
    (["data.task.label=lable"], "no row has a label in the column 'lable'; set data.task.label to one of: sentence, label;"),
    (["data.task.text=text"], "dev.tsv:1: no column 'text'; set data.task.text to one of: sentence, label"),
    (["data.task.pair=other"], "dev.tsv:1: no column 'other'; set data.task.pair to one of: sentence, label"),
    (["data.task.classes=[bad, good]"], ": it predicts bad, good, middling, and the task has bad, good (3 and 2); name all"),
    (["data.task.classes=[good, bad, middling]"], "and the task has good, bad, middling; name data.task.classes in the order"),
    (["data.task.classes=[x, y, z]"], "is not among the classes x, y, z; name the labels of the rows in data.task.classes"),
    (["data.task.classes=[0, 1, 2]"], "data.task.classes[0]: must be text, not 0; put it in quotes"),
    (["data.task.kind=regression"], "made for single_label_classification, and the task is a regression; take another"),
    (["data.heldout=0.0001", "data.corpus={folder}/opinions/train.tsv"], "no row to hold out with data.heldout at 0.0001"),
    (["data.heldout=nope.tsv"], "nope.tsv: no such file or folder; name"),
    (["data.positions=masked"], "data.positions: rows of a task are not masked; leave the key out"),
    (["data.masking.mode=static"], "data.masking: rows of a task are not masked; leave the key out"),
    (["data.masking.probability=0.3"], "data.masking: rows of a task are not masked; leave the key out"),
    (["data.unlabelled.share=0.3"], "makes 2.4 rows, and must be a whole number of them beside others"),
    (["data.unlabelled.corpus=nope.tsv"], "nope.tsv: no such file or folder; name"),
    (["data.task=null"], "a classifier of rows, and the data are running text; set data.task, or take a language model"),
    (["settings.soft.terms.0.loss=squared_error", "settings.soft.terms.0.temperature=null"], "unknown key for the loss"),
    (["settings.inner.terms.0.loss=squared_error"], "settings.inner.logit: squared_error learns scores; use cross_entropy"),
    (["data.task.label=null"], "cross_entropy learns labels, and data.task.label is null; name their column"),
    (["models.teacher={folder}/bert"], "models.teacher: a language model, which predicts no class yet; fine-tune it first"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda it: " ".join(it) if isinstance(it, list) else "")
def test_mistakes(
    world: Path, tuned: limbeck.Run, tmp_path: Path, command: Callable[..., Any], words: list[str], said: str
) -> None:
    recipe_ = crowd(world, tuned, tmp_path / "run")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(recipe_), encoding="utf-8")
    for verb in ("check", "run"):
        status, out, err = command(verb, str(tmp_path / "task.yaml"), *(word.format(folder=world) for word in words))
        assert status == 2 and out == ""
        lines = [line for line in err.splitlines() if line.startswith("limbeck: error: ")]
        assert len(lines) == 1 and said in lines[0], err
        assert not (tmp_path / "run").exists()


# real rows


def real(folder: Path, task: dict[str, Any], loss: str, out: Path) -> limbeck.Run:
    model = SHARED / "models" / "wiki-minilm-mlm"
    for place in (folder, model):
        if not place.exists():
            pytest.skip(f"{place.parent.name}/{place.name} is not here")
    data = {"corpus": str(folder), "task": task, "max_length": 40, "max_bytes": 60_000}
    student = {"init": str(model), "layers": 2}
    said = recipe(
        data, {"student": student}, out, loss, steps=3, eval_every=3, eval_blocks=64, reasons_blocks=0, lr=1e-4
    )
    return limbeck.run(said, quiet=True)


def test_sentiments(tmp_path: Path) -> None:
    run = real(SHARED / "data" / "glue" / "SST-2", {"kind": "classification"}, "cross_entropy", tmp_path / "run")
    assert run.manifest["data"]["classes"] == ["0", "1"]
    for row in run.evals:
        assert 0.3 < row["metrics"]["accuracy"] < 1 and row["tokens"] == 64
    assert [row["metrics"]["accuracy"] == pytest.approx(row["label_accuracy"]) for row in run.evals] == [True] * 4


def test_likenesses(tmp_path: Path) -> None:
    task = {"kind": "regression", "text": 5, "pair": 6, "label": 4}
    run = real(SHARED / "data" / "glue" / "STS-B", task, "squared_error", tmp_path / "run")
    for row in run.evals:
        assert set(row["metrics"]) == {"pearson", "spearman"} and -1 <= row["metrics"]["pearson"] <= 1
    first, final = (row["label_loss"] for row in run.evals if row["split"] == "test")
    assert final < first
