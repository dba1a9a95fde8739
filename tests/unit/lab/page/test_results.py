from __future__ import annotations

import json

import numpy as np
import pytest

from limbeck.lab.data.run import read
from limbeck.lab.numbers import coefficient, duration, flops, number, percent, points, share, whole
from limbeck.lab.page import made_of
from limbeck.lab.page.results import as_markdown, as_text, rows
from limbeck.lab.page.summary import findings, question


def test_a_row_holds_the_numbers_of_the_files(make_run):
    folder = make_run()
    logit, multi = rows(read(folder))
    lines = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    last = {row["seed"]: row for row in lines if (row["setting"], row["step"], row["split"]) == ("multi", 40, "test")}
    assert (multi["setting"], multi["seeds"], multi["step"]) == ("multi", [0, 1], 40)
    assert multi["test_logit_loss"].by_seed == {seed: row["logit_loss"] for seed, row in last.items()}
    assert multi["agreement"].mean == pytest.approx(np.mean([row["agreement"] for row in last.values()]))
    assert (multi["seconds"].mean, multi["flops"].mean) == (pytest.approx(40 * 0.6), 40 * 1.5e9)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    late = [row["grad_norm_mean"] for row in metrics if row["setting"] == "logit" and row["step"] > 30]
    assert logit["grad_norm_mean"].mean == pytest.approx(np.mean(late))


def test_equal_compute_by_hand(make_run):
    logit, multi = rows(read(make_run(seeds=(0,))))
    # logit spends 1e9 a step and ends at 4e10; multi, at 1.5e9, is there after 26 2/3 steps.
    assert logit["flops_budget"] == multi["flops_budget"] == 4e10
    loss_20, loss_30 = 9 / (1 + 0.04 * 20), 9 / (1 + 0.04 * 30)
    assert multi["equal_flops"].mean == pytest.approx(loss_20 + (loss_30 - loss_20) * 2 / 3)
    assert logit["equal_flops"].mean == pytest.approx(logit["test_logit_loss"].mean)
    # by time: 40 steps of 0.5 s are 33 1/3 steps of 0.6 s
    loss_40 = 9 / (1 + 0.04 * 40)
    assert multi["seconds_budget"] == pytest.approx(20.0)
    assert multi["equal_seconds"].mean == pytest.approx(loss_30 + (loss_40 - loss_30) / 3)


def test_the_printed_tables(make_run):
    results = rows(read(make_run()))
    markdown, text = as_markdown(results).splitlines(), as_text(results).splitlines()
    assert markdown[0] == "| after 40 steps, mean (min..max) of 2 seeds | logit | multi |"
    low, high = 9 / 2.6, 9 * 1.01 / 2.6
    cell = f"{number((low + high) / 2)} ({number(low)}..{number(high)})"
    assert markdown[2].startswith("| logit loss, test text (nats per token) |")
    assert cell in markdown[2]
    assert cell in text[2]
    assert len({len(line) for line in text}) == 1
    assert as_markdown(rows(read(make_run("bar", settings=("a|b", "<b>"))))).splitlines()[0].count(" | ") == 2


def test_the_sentences_say_the_verdict_and_what_was_not_tested(make_run):
    run = read(make_run())
    results = rows(run)
    first, compute, time = findings(run, results)
    logit, multi = 9 * 1.005 / 2.2, 9 * 1.005 / 2.6
    reached = f"held-out logit loss {number(multi)} against {number(logit)} (2 seeds, p 0.003 after Holm)"
    assert first == f"multi is better than logit: {reached}."
    slow, fast = (row["equal_flops"].mean for row in results)
    assert compute == (
        f"At equal compute (4.00e10 FLOPs each, not tested), the mean held-out logit loss is {number(slow)} nats per "
        f"token for logit and {number(fast)} for multi; logit is ahead of multi in 2 of 2 seeds."
    )
    assert time.startswith("At equal time (20.0 s each, not tested), the mean held-out logit loss is ")
    assert time.endswith("; multi is ahead of logit in 2 of 2 seeds.")
    assert question(run) == "Does multi beat logit?"


def test_a_question_is_made_where_none_is_asked(make_run):
    folder = make_run(seeds=(0,))
    (folder / "recipe.yaml").write_text("name: first\nquestion: null\n")
    assert question(read(folder)) == "logit against multi: 1 seed, 40 steps"


def test_one_setting_alone_and_a_run_without_a_teacher(make_run):
    run = read(make_run("alone", settings=("logit",), seeds=(0,)))
    (alone,) = rows(run)
    assert (alone["equal_flops"], alone["flops_budget"]) == (None, None)
    assert findings(run, [alone]) == [
        f"After 40 steps, the held-out logit loss is {number(9 / 2.2)} nats per token for logit."
    ]
    run = read(make_run("labels", teacher=False))
    labels = rows(run)
    assert labels[0]["test_logit_loss"] is None
    assert labels[0]["measure"].key == "label_loss"
    assert "held-out label loss" in findings(run, labels)[0]
    assert "logit loss" not in as_text(labels)
    assert "label loss, test text, at equal compute" in as_text(labels)


def test_a_diverged_setting_is_called_not_finite(make_run):
    folder = make_run()
    lines = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    for row in lines:
        if row["setting"] == "multi" and row["step"] == 40 and row["seed"] == 1:
            row["logit_loss"] = None
    (folder / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    run = read(folder)
    results = rows(run)
    assert "not finite" in as_text(results)
    assert findings(run, results)[0] == (
        f"No verdict between logit and multi: held-out logit loss {number(9 * 1.005 / 2.2)} and not finite "
        "(2 seeds, no finite value in seeds 1)."
    )


def test_an_interrupted_run_is_compared_at_the_last_common_evaluation(make_run):
    folder = make_run(status="interrupted")
    lines = (folder / "evals.jsonl").read_text().splitlines(keepends=True)
    (folder / "evals.jsonl").write_text("".join(lines[:-1]))  # multi, seed 1, test, step 40
    assert {row["step"] for row in rows(read(folder))} == {30}


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (number, 2.31, "2.310"),
        (number, 1234.5, "1234"),
        (number, 0.0, "0.000"),
        (number, 0.00012345, "1.234e-04"),
        (number, float("nan"), "not finite"),
        (percent, 0.4123, "41.2 %"),
        (percent, 1.0, "100 %"),
        (duration, 83.21, "83.2 s"),
        (duration, 1404, "23.4 min"),
        (duration, 9000, "2.50 h"),
        (flops, 1.234e15, "1.23e15"),
        (coefficient, -0.03312, "-0.033"),
        (coefficient, -0.0001, "0.000"),
        (coefficient, float("nan"), "undefined"),
        (share, float("nan"), "undefined"),
        (share, 0.5, "50.0 %"),
        (points, 0.0412, "4.12 points"),
        (whole, 1200.0, "1,200"),
        (whole, 7 / 3, "2.3"),
        (whole, float("nan"), "not finite"),
    ],
)
def test_numbers_are_written_with_sensible_digits(write, value, text):
    assert write(value) == text


def test_the_tokens_that_were_measured_are_told(make_run):
    """Where the manifest says how much there is."""
    folder = make_run(
        facts={"data": {"heldout_documents": 3, "heldout_tokens": 299_307, "documents": 9, "tokens": 9_000}}
    )
    run = read(folder)
    told = {line.split("  ")[0]: line.split()[-2:] for line in as_text(rows(run)).splitlines()}
    assert told["tokens measured, test text"] == ["4,096", "4,096"]
    assert dict(made_of.lines(run))["held-out text"] == (
        "3 documents, 299,307 tokens; evaluations measure 4,096 of the tokens"
    )
    assert dict(made_of.lines(run))["training text"].endswith("9,000 tokens; evaluations measure 4,096 of the tokens")
    assert "tokens measured" not in as_text(rows(read(make_run("plain"))))


def test_updates_that_were_skipped_have_a_row_where_there_were_some(make_run):
    folder = make_run()
    assert "skipped updates" not in as_text(rows(read(folder)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in lines:
        spoiled = row["setting"] == "multi" and row["step"] <= 3 + row["seed"]
        row["skipped"] = "term hidden, layer 1" if spoiled else None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (line,) = [line for line in as_text(rows(read(folder))).splitlines() if line.startswith("skipped updates")]
    assert line.split()[2:] == ["0", "3.5", "(3..4)"]
