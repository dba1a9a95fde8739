"""Runs on rows with a class or a score: the metrics lead, beside those of the teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.lab import names
from limbeck.lab.data.run import read
from limbeck.lab.figures.captions import caption
from limbeck.lab.figures.lines import evaluated
from limbeck.lab.figures.training import FIGURES, draw, metric_test, metric_train
from limbeck.lab.page import made_of
from limbeck.lab.page.report import write
from limbeck.lab.page.results import as_markdown, as_text, best, cells, rows
from limbeck.lab.page.summary import findings

Make = Callable[..., Path]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    lines = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    (folder / "evals.jsonl").write_text("".join(json.dumps(change(line)) + "\n" for line in lines))
    return folder


def first_of(folder: Path) -> str:
    """The first sentence of the page."""
    run = read(folder)
    return findings(run, rows(run))[0]


def lines_of(text: str) -> dict[str, str]:
    """Heading -> the rest of its line."""
    found = (line.strip().partition("  ") for line in text.splitlines())
    return {heading: rest.strip() for heading, _, rest in found}


# the table


def test_the_metrics_lead_beside_the_teachers(make_run: Make) -> None:
    results = rows(read(make_run(task="classification")))
    headings = [column.heading for column, _ in cells(results)]
    assert headings[:4] == [
        "accuracy, held-out rows",
        "the teacher's accuracy",
        "share of the teacher's accuracy",
        "F1 of class yes, held-out rows",
    ]
    assert headings[9] == "logit loss, held-out rows (nats per row)"
    assert "label accuracy" not in as_text(results)  # it is the accuracy
    assert "text" not in as_text(results) and "token" not in as_text(results)
    told = lines_of(as_text(results))
    assert told["accuracy, held-out rows"].split("  ")[-1] == "82.5 % (82.0 %..83.0 %)"
    assert told["the teacher's accuracy"].split() == ["90.0", "%", "90.0", "%"]
    assert told["share of the teacher's accuracy"].endswith("91.7 % (91.1 %..92.2 %)")  # 0.825 / 0.9
    assert told["F1 of class yes, held-out rows"].endswith("0.725 (0.720..0.730)")
    assert results[1]["metrics.matthews"].by_seed == pytest.approx({0: 0.62, 1: 0.63})


def test_a_regression_speaks_of_squared_errors(make_run: Make) -> None:
    results = rows(read(make_run(task="regression")))
    text = as_text(results)
    headings = [column.heading for column, _ in cells(results)]
    assert headings[0] == "Pearson correlation, held-out rows"
    assert headings[3] == "Spearman correlation, held-out rows"
    assert "squared error against the teacher, training rows" in headings
    assert "squared error against the labels, held-out rows" in headings
    for absent in ("nats", "logit", "agreement", "accuracy", "token"):
        assert absent not in text.replace(" logit", "", 1)  # the name of a setting
    assert "Pearson correlation, held-out rows, at equal compute (4.00e10 FLOPs)" in text


def test_higher_metrics_and_lower_losses_are_best(make_run: Make) -> None:
    results = rows(read(make_run(task="classification")))
    told = {column.key: best(results, column) for column, _ in cells(results)}
    assert told["metrics.accuracy"] == told["test_logit_loss"] == [False, True]
    assert told["equal_flops"] == [True, False]
    assert told["teacher_metrics.accuracy"] == told["share_metrics.accuracy"] == [False, False]


def test_equal_compute_is_told_of_the_metric(make_run: Make) -> None:
    logit, multi = rows(read(make_run(task="classification", seeds=(0,))))
    assert multi["equal_flops"].mean == pytest.approx(0.5 + 0.008 * 40 / 1.5)  # multi is there after 26 2/3 steps
    assert logit["equal_flops"].mean == pytest.approx(0.74)


def test_all_that_are_best_are_named_and_none_is_bold_where_all_are_equal(make_run: Make) -> None:
    folder = make_run(task="classification", settings=("a", "b", "c"))
    same = "a 74.5 %, b 74.5 %, c 74.5 % (2 seeds, p 1.000 after Holm)."
    assert first_of(folder).startswith(f"No verdict between any two of a, b and c: held-out accuracy {same}")
    results = rows(read(folder))
    column = next(column for column, _ in cells(results) if column.key == "metrics.accuracy")
    assert best(results, column) == [False] * 3
    rewritten(folder, lambda row: row | {"metrics": {"accuracy": 0.1}} if row["setting"] == "b" else row)
    assert first_of(folder).startswith(
        "a and c are better than b. Held-out accuracy: a 74.5 %, c 74.5 %, b 10.0 % (2 seeds, p 0.015 after "
        "Holm). No verdict between a and c."
    )
    assert best(rows(read(folder)), column) == [True, False, True]


def test_the_share_of_a_teacher_at_or_below_zero_is_not_told(make_run: Make) -> None:
    folder = make_run(task="regression")
    rewritten(folder, lambda row: row | {"teacher_metrics": {"pearson": -0.1, "spearman": 0.5}})
    told = lines_of(as_text(rows(read(folder))))
    assert "share of the teacher's Pearson correlation" not in told
    assert told["the teacher's Pearson correlation"].split() == ["-0.100", "-0.100"]
    assert told["share of the teacher's Spearman correlation"].startswith("129 %")


@pytest.mark.parametrize(
    ("mine", "theirs", "told"),
    [
        ((-0.3, -0.2), 0.04, None),  # -676 % of nearly nothing
        ((0.3, 0.4), 0.04, None),
        ((-0.01, 0.4), 0.5, None),
        ((0.3, 0.4), 0.5, "70.0 % (60.0 %..80.0 %)"),
        ((0.0, 0.0), 0.5, "0.00 %"),
    ],
)
def test_a_share_is_told_only_where_it_means_something(
    make_run: Make, mine: tuple[float, float], theirs: float, told: str | None
) -> None:
    folder = make_run(task="classification", settings=("kd",))
    rewritten(
        folder,
        lambda row: (
            row | {"metrics": row["metrics"] | {"matthews": mine[row["seed"]]}, "teacher_metrics": {"matthews": theirs}}
        ),
    )
    found = lines_of(as_text(rows(read(folder))))
    assert found.get("share of the teacher's Matthews correlation") == told
    assert found["the teacher's Matthews correlation"] == f"{theirs:.3f}"


def test_a_part_of_the_rows_is_called_so(make_run: Make) -> None:
    """`train.eval_blocks: 50` of 1,043 rows."""
    data = {
        "classes": ["no", "yes"],
        "documents": 900,
        "tokens": 9_000,
        "heldout_documents": 1_043,
        "heldout_tokens": 8_000,
    }
    run = read(make_run("part", task="classification", facts={"data": data}))
    headings = [column.heading for column, _ in cells(rows(run))]
    assert headings[0] == "accuracy, 50 of 1,043 held-out rows"
    assert "logit loss, 50 of 1,043 held-out rows (nats per row)" in headings
    assert dict(made_of.lines(run))["held-out rows"] == "1,043 rows, 8,000 tokens; evaluations measure 50 of the rows"
    assert "<h2>Verdicts: accuracy, 50 of 1,043 held-out rows</h2>" in write(run.folder).read_text()
    whole = read(make_run("whole", task="classification", facts={"data": data | {"heldout_documents": 50}}))
    assert next(column.heading for column, _ in cells(rows(whole))) == "accuracy, held-out rows"
    assert dict(made_of.lines(whole))["held-out rows"] == "50 rows, 8,000 tokens"


def test_several_classes_and_a_hostile_one(make_run: Make) -> None:
    many = rows(read(make_run("many", task="classification", facts={"data": {"classes": ["a", "b", "c"]}})))
    assert "F1, mean over the classes, held-out rows" in as_text(many)
    odd = make_run("odd", task="classification", facts={"data": {"classes": ["no", "<b>|" + "x" * 90]}})
    assert "F1 of class &lt;b>\\|" + "x" * 36 + ", held" in as_markdown(rows(read(odd)))
    assert "<b>" not in write(odd).read_text()


# the sentences


def varied(folder: Path) -> Path:
    """The run with a first metric of multi whose lead is not the same in every seed."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        more = 0.01 * row["seed"] if row["setting"] == "multi" else 0.0
        first = next(iter(row["metrics"]))
        return row | {"metrics": row["metrics"] | {first: row["metrics"][first] + more}}

    return rewritten(folder, change)


def test_the_first_sentence_is_about_the_metric_and_names_the_teacher(make_run: Make) -> None:
    assert first_of(varied(make_run(task="classification"))) == (
        "multi is better than logit: held-out accuracy 83.0 % against 74.5 % (2 seeds, p 0.037 after Holm). "
        "The teacher's held-out accuracy is 90.0 %."
    )
    assert first_of(varied(make_run("scores", task="regression", teacher=False))) == (
        "multi is better than logit: held-out Pearson correlation 0.830 against 0.745 (2 seeds, p 0.037 after Holm)."
    )


def test_a_metric_that_is_not_defined(make_run: Make) -> None:
    """A student that gives one answer to everything has no correlation."""
    folder = make_run(task="regression")
    nothing = {"metrics": {"pearson": None, "spearman": None}}
    rewritten(folder, lambda row: row | nothing if row["setting"] == "multi" and row["seed"] == 1 else row)
    results = rows(read(folder))
    assert first_of(folder) == (
        "No verdict between logit and multi: held-out Pearson correlation 0.745 and undefined (2 seeds, no finite value "
        "in seeds 1). The teacher's held-out Pearson correlation is 0.900."
    )
    assert lines_of(as_text(results))["Pearson correlation, held-out rows"].endswith("undefined")
    assert {path.stem for path in draw(folder)} >= {"metric-test", "metric-train"}


def test_a_metric_that_is_undefined_at_the_last_step_is_called_so(make_run: Make) -> None:
    folder = make_run(task="regression")
    nothing = {"metrics": {"pearson": None, "spearman": None}}
    rewritten(folder, lambda row: row | nothing if row["setting"] == "multi" and row["step"] == 40 else row)
    results = rows(read(folder))
    assert lines_of(as_text(results))["Pearson correlation, held-out rows"].endswith("undefined")
    assert first_of(folder).startswith(
        "After 40 steps, the mean held-out Pearson correlation is 0.745 for logit. "
        "The held-out Pearson correlation of multi is undefined."
    )


def test_rows_without_labels_are_compared_by_the_logit_loss(make_run: Make) -> None:
    folder = make_run(task="classification")
    none = dict.fromkeys(("accuracy", "f1", "matthews"))
    rewritten(folder, lambda row: row | {"metrics": none, "teacher_metrics": none, "label_loss": None})
    results = rows(read(folder))
    assert "multi is better than logit: held-out logit loss 3.479 against " in first_of(folder)
    assert as_text(results).splitlines()[2].startswith("logit loss, held-out rows (nats per row)")
    assert not {path.stem for path in draw(folder)} & {"metric-test", "metric-train"}


# the figures


def test_the_curve_of_the_first_metric_and_the_teachers_line(make_run: Make) -> None:
    run = read(make_run(task="classification"))
    held, trained = metric_test(run), metric_train(run)
    assert held is not None and trained is not None
    axes = held.axes[0]
    curves = {tuple(np.asarray(line.get_ydata(), float).round(3)) for line in axes.lines}
    assert (0.505, 0.585, 0.665, 0.745, 0.825) in curves
    (teacher,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(teacher.get_ydata()) == [0.9, 0.9]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["logit", "multi", "teacher"]
    assert axes.get_ylabel() == "accuracy (share of 1),\nheld-out rows"
    assert axes.get_ylim() == trained.axes[0].get_ylim()
    assert axes.get_ylim()[0] < 0.5 and axes.get_ylim()[1] > 0.9  # the teacher is inside
    assert axes.get_yscale() == "linear"


def test_a_correlation_is_never_drawn_on_a_log_scale(make_run: Make) -> None:
    folder = make_run(task="regression", teacher=False)
    low = {0: 0.01, 10: 0.02}
    rewritten(folder, lambda row: row | {"metrics": {"pearson": low.get(row["step"], 0.9), "spearman": 0.1}})
    figure = metric_test(read(folder))
    assert figure is not None
    assert figure.axes[0].get_yscale() == "linear"
    assert not [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]


def test_teachers_of_their_own_are_lines_in_the_colours_of_the_settings(make_run: Make) -> None:
    folder = make_run(task="regression")
    own = {"logit": 0.6, "multi": 0.8}
    rewritten(folder, lambda row: row | {"teacher_metrics": {"pearson": own[row["setting"]], "spearman": 0.5}})
    figure = metric_test(read(folder))
    assert figure is not None
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [np.asarray(line.get_ydata())[0] for line in dashed] == [0.6, 0.8]
    assert len({line.get_color() for line in dashed}) == 2
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert legend.get_texts()[-1].get_text() == "teacher of the setting"
    assert "The teacher's" not in first_of(folder)


@pytest.mark.parametrize(("task", "title"), [("classification", "Accuracy"), ("regression", "Pearson correlation")])
def test_a_task_has_its_figures_and_no_accuracy_of_labels(make_run: Make, task: str, title: str) -> None:
    folder = make_run(task=task, teacher=False)
    names = [path.stem for path in draw(folder) if path.suffix == ".svg"]
    assert names[:2] == ["metric-test", "metric-train"]
    assert "label-loss-test" in names and "label-accuracy-test" not in names
    assert caption("metric-test", read(folder)).title == f"{title} on held-out rows"
    assert "metric-test" not in {path.stem for path in draw(make_run("text"))}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("task", [None, "classification", "regression"])
def test_the_words_around_a_figure_are_those_of_the_task(make_run: Make, name: str, task: str | None) -> None:
    if task is None and name.startswith("metric-"):
        return
    said = " ".join(caption(name, read(make_run(task=task))))
    assert "{" not in said and "  " not in said
    if task is None or name.startswith("label-accuracy"):
        return
    assert "text" not in said
    assert task == "classification" or "logit" not in said


def test_the_dashed_line_is_explained_where_there_is_one(make_run: Make) -> None:
    taught, alone = (read(make_run(f"{has}", task="regression", teacher=has)) for has in (True, False))
    assert "The dashed line is the teacher" in caption("metric-test", taught).reading
    assert "dashed" not in caption("metric-test", alone).reading


def test_losses_of_scores_have_no_nats_on_their_axes(make_run: Make) -> None:
    run = read(make_run(task="regression"))
    made = {name: make(run) for name, make in FIGURES.items()}
    labels = {name: axes.get_ylabel() for name, figure in made.items() if figure for axes in figure.axes}
    assert labels["logit-loss-test"].startswith("squared error against the teacher,\nheld-out rows")
    assert "squared error per unit of weight" in labels["logit-gradient-norm"]
    assert not [label for label in labels.values() if "nats" in label]


# the page


def test_the_page_of_a_task(make_run: Make) -> None:
    text = write(make_run(task="regression")).read_text()
    before = text.partition("<h2>Recipe")[0]
    assert "nats" not in before
    assert '<tr class="under"><th scope="row">the teacher&#39;s Pearson correlation</th>' in before
    assert "the Pearson correlation where each setting has spent" in before


def test_a_run_of_before_has_no_task_and_is_still_read(make_run: Make) -> None:
    run = read(make_run())
    assert run.task is None and names.of(run) is names.TEXT
    assert run.shares_teacher
    assert evaluated(run, "metrics.accuracy", "test", "accuracy") is None
