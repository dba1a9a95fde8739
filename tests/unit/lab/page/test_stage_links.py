"""Which stage a page is of, the pages of those before it, and what the run was made of."""

from __future__ import annotations

from pathlib import Path

from limbeck.lab.data.run import read
from limbeck.lab.figures.captions import caption
from limbeck.lab.figures.training import draw
from limbeck.lab.page import made_of, stages
from limbeck.lab.page.report import write
from limbeck.lab.page.results import best, cells, rows
from limbeck.lab.page.summary import findings, question

STAGED = """
name: staged
question: Do hints help?
stages:
- {stage: hints, data: {unlabelled: null}}
- {stage: student, data: {unlabelled: {corpus: more.tsv, share: 0.25}}}
"""
TEACHER = {"name": "teacher@tune-seed0", "source": "$hints", "parameters": 1234, "sha256": "ab"}


def staged(make_run, task=None, **facts) -> Path:
    """hints, tune and student, one after another."""
    place = {name: {"folder": "elsewhere"} for name in ("hints", "tune")}
    folder = make_run(task=task, facts={"stage": "student", "earlier": place, **facts})
    (folder / "recipe.yaml").write_text(STAGED)
    write(make_run("run/stages/hints", seeds=(0,), facts={"stage": "hints", "earlier": {}}))
    make_run("run/stages/tune", task="classification", facts={"stage": "tune", "earlier": {"hints": place["hints"]}})
    return folder


def test_a_page_names_its_stage_and_links_to_those_before(make_run):
    folder = staged(make_run)
    hints, tune = stages.earlier(read(folder))
    assert hints == (
        "hints",
        "stages/hints/report.html",
        "40 steps; held-out logit loss: logit 4.091, multi 3.462 nats per token",
    )
    assert tune.link is None  # its report is not written
    assert tune.reached.startswith("40 steps; held-out accuracy: logit 74.5 % (74.0 %..75.0 %), multi 82.5 %")
    page = write(folder).read_text()
    assert "first, stage student</p>" in page
    assert '<a href="stages/hints/report.html">hints</a>' in page
    assert (folder / "stages/hints/report.html").is_file()


def test_an_earlier_stage_links_to_those_beside_it(make_run):
    folder = staged(make_run)
    (hints,) = stages.earlier(read(folder / "stages/tune"))
    assert hints.link == "../hints/report.html"
    assert stages.earlier(read(folder / "stages/hints")) == []
    assert stages.here(read(folder / "stages/hints")) == "hints"


def test_a_stage_that_is_gone_or_damaged_is_said_to_be(make_run):
    folder = staged(make_run)
    (folder / "stages/hints/metrics.jsonl").write_text("")
    (folder / "stages/tune").rename(folder / "stages/other")
    hints, tune = stages.earlier(read(folder))
    assert hints[1:] == ("stages/hints/report.html", "its numbers cannot be read")
    assert tune[1:] == (None, "its run directory is not there any more")
    write(folder)


def test_a_run_without_stages_says_nothing_of_them(make_run):
    for name, manifest in {"old": {}, "new": {"stage": "train", "earlier": {}}}.items():
        folder = make_run(name, facts=manifest)
        assert stages.here(read(folder)) is None
        page = write(folder).read_text()
        assert "Stages before" not in page and "stage train" not in page


def test_the_question_of_a_staged_recipe(make_run):
    assert question(read(staged(make_run))) == "Do hints help?"


def test_what_a_run_was_made_of(make_run):
    data = {
        "corpus": "rows.tsv", "heldout": 0.2, "documents": 1200, "tokens": 9000, "labelled": 1000, "heldout_documents": 300,
        "heldout_tokens": 2000, "heldout_labelled": 300, "classes": ["no", "yes"],
        "unlabelled": {"corpus": "more.tsv", "documents": 70, "tokens": 400, "labelled": 0, "classes": ["no", "yes"]},
    }  # fmt: skip
    teachers = [TEACHER | {"name": "teacher@tune-seed1"}, {"name": "old", "source": "bert", "parameters": 99}]
    students = {f"logit-seed{seed}": {"parameters": 10} for seed in (0, 1)} | {"multi-seed0": {"parameters": 1000}}
    folder = staged(make_run, task="classification", data=data, teacher=TEACHER, teachers=teachers, students=students)
    assert dict(made_of.lines(read(folder))) == {
        "teacher": "tune-seed0, tune-seed1 of the stage hints: 1,234 parameters each",
        "old": "bert: 99 parameters",
        "students": "logit-seed0, logit-seed1 of 10 parameters each; multi-seed0 of 1,000 parameters",
        "training rows": "rows.tsv: 1,200 rows, 9,000 tokens; 1,000 of the rows are labelled; evaluations measure 50 of the rows",
        "held-out rows": "300 rows, 2,000 tokens; evaluations measure 50 of the rows",
        "unlabelled rows": "more.tsv: 70 rows, 400 tokens; 25 % of every batch",
        "classes": "no, yes",
    }
    page = write(folder).read_text()
    assert "<dt>unlabelled rows</dt><dd>more.tsv: 70 rows" in page
    assert "{&#39;" not in page  # no Python stands on the page: teachers are a list of tables


def test_an_old_manifest_has_few_facts(make_run):
    lines = dict(made_of.lines(read(make_run())))
    assert lines == {"teacher": "embedded: 1,234 parameters", "training text": "docs: 10 documents"}


def test_settings_with_teachers_of_their_own_are_compared_by_labels(make_run):
    """What is measured against different teachers is not compared; the students of one setting, seed by seed, are one."""
    seeds = [TEACHER | {"name": f"teacher@{name}"} for name in ("logit-seed0", "logit-seed1")]
    one = read(make_run("one", facts={"teacher": seeds[0], "teachers": seeds[1:]}))
    assert one.notes == () and "logit loss" in findings(one, rows(one))[0]
    own = [*seeds, TEACHER | {"name": "teacher@multi-seed0"}]
    run = read(make_run("own", facts={"teacher": own[0], "teachers": own[1:]}))
    assert "does not compare across settings" in run.notes[0]
    assert findings(run, rows(run))[0].startswith("multi is better than logit: held-out label loss ")
    told = {column.key: best(rows(run), column) for column, _ in cells(rows(run))}
    assert told["test_logit_loss"] == told["agreement"] == [False, False] and told["label_loss"] == [False, True]
    assert "label-loss-test" in {path.stem for path in draw(run)}
    assert "Each setting has a teacher of its own, so the labels" in caption("label-loss-train", run).reading
    beside = read(make_run("beside", facts={"teacher": seeds[0], "teachers": [TEACHER | {"name": "old@multi-seed0"}]}))
    assert beside.shares_teacher
