"""The verdicts on the page and in the terminal, and the tables beside them, say what the files say."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from limbeck.lab.data.joined import gather
from limbeck.lab.data.run import read
from limbeck.lab.page import report, tables, verdicts

MakeRun = Callable[..., Path]


def spoiled(folder: Path, values: dict[tuple[str, int], float]) -> Path:
    """The run with other logit losses at its last evaluation."""
    path = folder / "evals.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    last = max(row["step"] for row in rows)
    for row in rows:
        if row["step"] == last and row["split"] == "test":
            row["logit_loss"] = values[row["setting"], row["seed"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def main_of(folder: Path) -> verdicts.Judged:
    (found,) = [each for each in verdicts.judged(read(folder)) if each.main]
    return found


FAR = {0: (3.0, 2.0), 1: (3.2, 2.15), 2: (2.9, 1.92), 3: (3.1, 2.05), 4: (3.3, 2.3)}
NEAR = {0: (3.0, 2.9), 1: (3.2, 3.4), 2: (2.9, 2.7), 3: (3.1, 3.2), 4: (3.3, 3.2)}


def run_of(make_run: MakeRun, pairs: dict[int, tuple[float, float]], name: str = "run") -> Path:
    values = {(name, seed): pair[i] for seed, pair in pairs.items() for i, name in enumerate(("logit", "multi"))}
    return spoiled(make_run(name, seeds=tuple(pairs)), values)


@pytest.mark.parametrize(("pairs", "word"), [(FAR, "better"), (NEAR, "inconclusive")])
def test_a_word_is_that_of_the_paired_t_test(make_run: MakeRun, pairs: Any, word: str) -> None:
    first, second = zip(*pairs.values(), strict=True)
    test = stats.ttest_rel(second, first)
    low, high = test.confidence_interval(0.95)
    found = main_of(run_of(make_run, pairs))
    assert found.name == "logit loss, test text"
    (line,) = found.lines
    assert line[:3] == ["multi", word, "logit"]
    assert float(line[3].replace("−", "-")) == pytest.approx(sum(second) / 5 - sum(first) / 5, rel=1e-3)
    ends = [float(end.replace("−", "-")) for end in line[4].split(" .. ")]
    assert ends == pytest.approx([low, high], rel=1e-3)
    assert float(line[7].removeprefix("< ")) == pytest.approx(test.pvalue, abs=1e-3)
    assert (test.pvalue < 0.05) == (word == "better")


def test_below_five_seeds_the_page_says_what_could_have_been_seen(make_run: MakeRun) -> None:
    few = {seed: FAR[seed] for seed in (0, 1, 2)}
    assert "would have been found with 80 % power" in main_of(run_of(make_run, few)).remark
    assert "power" not in main_of(run_of(make_run, FAR, "more")).remark


def test_a_single_seed_gives_no_verdict(make_run: MakeRun) -> None:
    found = main_of(run_of(make_run, {0: FAR[0]}))
    assert found.lines[0][1] == "no verdict"
    assert found.remark.startswith("Seeds were not varied: no verdict.")


def test_a_single_setting_has_nothing_to_be_compared_with(make_run: MakeRun) -> None:
    folder = make_run(settings=("logit",))
    assert verdicts.judged(read(folder)) == [] and verdicts.sentences(read(folder)) == []


def test_the_page_shows_the_verdict_before_the_results(make_run: MakeRun) -> None:
    folder = run_of(make_run, FAR)
    page = report.write(folder).read_text(encoding="utf-8")
    assert page.index("Verdicts: logit loss") < page.index("<h2>Results")
    row = re.search(r'<tr><th scope="row">multi</th><td class="better">better</td>(.*?)</tr>', page, re.S)
    assert row is not None
    assert re.findall(r"<td>(.*?)</td>", row[1])[0] == main_of(folder).lines[0][2]


def test_the_terminal_says_it_too(make_run: MakeRun) -> None:
    heading, line, remark = verdicts.sentences(gather(run_of(make_run, FAR)))
    assert heading == "verdicts, logit loss, test text:"
    assert line.strip().startswith("multi is better than logit: −")
    assert "5 seeds" in remark


def test_evidence_equals_the_files(make_run: MakeRun) -> None:
    folder = run_of(make_run, FAR)
    written = {path.name: path for path in tables.write(read(folder))}
    assert set(written) == {"results.csv", "results.md", "results.tex", "verdicts.csv", "evals.csv", "metrics.csv"}
    (pair,) = [
        row
        for row in csv.DictReader(written["verdicts.csv"].read_text().splitlines())
        if row["measure"] == "logit_loss"
    ]
    first, second = zip(*FAR.values(), strict=True)
    assert float(pair["p"]) == pytest.approx(stats.ttest_rel(second, first).pvalue)
    results = list(csv.DictReader(written["results.csv"].read_text().splitlines()))
    told = {
        int(row["seed"]): float(row["value"])
        for row in results
        if row["setting"] == "multi" and row["quantity"].startswith("logit loss, test text (")
    }
    assert told == {seed: pair[1] for seed, pair in FAR.items()}
    evals = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    assert len(list(csv.DictReader(written["evals.csv"].read_text().splitlines()))) == len(evals)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader(written["metrics.csv"].read_text().splitlines()))
    assert sorted(float(row["terms.logit"]) for row in rows) == sorted(row["terms"]["logit"] for row in steps)
    latex = written["results.tex"].read_text()
    assert latex.startswith("\\begin{tabular}{lrr}") and "\\%" in latex and "%" not in latex.replace("\\%", "")
