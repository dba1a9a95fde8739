"""A real run through `limbeck.run`: what it writes is what the lab reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel import WORDS, lay_out, recipe

import limbeck
from limbeck.rundir import shared_recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """A classifier is fine-tuned, then distilled into a student with an early exit."""
    world = lay_out(tmp_path_factory.mktemp("world"))
    lines = [f"{WORDS[i % 55]} {WORDS[i * 7 % 55]}\t{'high' if i % 55 > 27 else 'low'}" for i in range(80)]
    (world / "rows.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    made = recipe(world, tmp_path_factory.mktemp("runs") / "staged", question="Does it help?")
    student = made["models"]["student"]
    same = dict.fromkeys(("layers", "hidden", "heads", "intermediate"))
    terms = [{"loss": "forward_kl"}, {"loss": "cross_entropy", "tap": "exit"}]
    made |= {
        "data": {"corpus": str(world / "rows.tsv"), "heldout": 0.3, "max_length": 8, "cache": str(world / "cache")}
        | {"task": {"kind": "classification"}},
        "models": {"student": student},
        "stages": [
            {
                "stage": "tuned",
                "models": {"student": same | {"init": str(world / "teacher")}},
                "settings": {"tune": {"terms": [{"loss": "cross_entropy"}]}},
            },
            {"stage": "small", "models": {"teacher": "$tuned"}, "settings": {"kd": {"exits": [1], "terms": terms}}},
        ],
    }
    del made["settings"]
    return limbeck.run(made, quiet=True)


def test_the_table_has_metrics_teacher_and_exits(finished: limbeck.Run) -> None:
    table = finished.table()
    last = next(row for row in finished.evals if row["step"] == 6 and row["split"] == "test")
    accuracy, theirs = last["metrics"]["accuracy"], last["teacher_metrics"]["accuracy"]
    lines = [line.split("  ") for line in table.splitlines()]
    told = {next(filter(None, line)).strip(): line[-1].strip() for line in lines if any(line)}
    rows = f"{last['tokens']:,} of {finished.manifest['data']['heldout_documents']:,} held-out rows"
    assert told[f"accuracy, {rows}"] == f"{100 * accuracy:#.3g} %".replace(". ", " ")
    assert told["the teacher's accuracy"] == f"{100 * theirs:#.3g} %".replace(". ", " ")
    assert f"F1 of class low, {rows}" in told
    assert "after layer 1" in table and "last layer" in table


def test_the_page_links_to_the_earlier_stage(finished: limbeck.Run) -> None:
    page = finished.report.read_text()
    assert "Does it help?" in page and "stage small" in page
    assert '<a href="stages/tuned/report.html">tuned</a>' in page
    assert (finished.folder / "stages/tuned/report.html").is_file()
    assert "tune-seed0 of the stage tuned" in page
    assert {"metric-test.svg", "metric-train.svg"} <= {path.name for path in (finished.folder / "figures").iterdir()}
    assert "stage tuned" in (finished.folder / "stages/tuned/report.html").read_text()


def test_the_card_has_both(finished: limbeck.Run) -> None:
    card = (finished.students["kd-seed0"] / "README.md").read_text().partition("## Recipe")[0]
    assert "| test, the teacher |" in card and "| test, exit after layer 1 |" in card
    assert "`tune-seed0` of the stage `tuned`" in card
    assert "teacher@" not in card


def test_what_is_given_away_tells_no_folder_of_this_disk(finished: limbeck.Run) -> None:
    """The files of the run itself keep their paths."""
    card, page = (finished.students["kd-seed0"] / "README.md").read_text(), finished.report.read_text()
    world = str(finished.manifest["data"]["corpus"]).removesuffix("/rows.tsv")
    assert Path(world).is_absolute() and str(finished.folder) in (finished.folder / "recipe.yaml").read_text()
    for text in (card, page):
        assert world not in text and str(finished.folder.parent) not in text
        assert "corpus: rows.tsv" in text and "out: staged" in text
    assert shared_recipe((finished.folder / "recipe.yaml").read_text(encoding="utf-8")).strip() in card
    assert "- data: `rows.tsv`, " in card and "<dt>training rows</dt><dd>rows.tsv: " in page
    for path in finished.students["kd-seed0"].glob("*.json"):
        assert world not in path.read_text(encoding="utf-8")
