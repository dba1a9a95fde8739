"""Every number in the tables of a page equals one that is computed here from the files of the run."""

from __future__ import annotations

import json
import math
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from decimal import Decimal
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from scipy import stats
from test_reasons_page import add_reasons

from limbeck.lab.page.report import write

Row = dict[str, Any]
Values = dict[str, list[float | None]]  # setting -> values by seed
NUMBER = re.compile(r"([+\u2212-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)( %| s\b| min\b| h\b)?")
UNITS = {" %": 0.01, " s": 1.0, " min": 60.0, " h": 3600.0, "": 1.0}


class Tables(HTMLParser):
    """The tables of a page: the heading above, the class, and the texts of the cells by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str, list[list[str]]]] = []
        self.heading, self.into = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h2", "h3"):
            self.heading, self.into = "", "heading"
        elif tag == "table":
            self.found.append((self.heading, dict(attrs).get("class") or "", []))
        elif tag == "tr":
            self.found[-1][2].append([])
        elif tag in ("td", "th"):
            self.found[-1][2][-1].append("")
            self.into = "cell"

    def handle_endtag(self, tag: str) -> None:
        self.into = "" if tag in ("td", "th", "h2", "h3") else self.into

    def handle_data(self, data: str) -> None:
        if self.into == "heading":
            self.heading += data
        elif self.into == "cell":
            cells = self.found[-1][2][-1]
            cells[-1] = f"{cells[-1]} {data}".strip()


def shown(text: str) -> list[tuple[float, float]]:
    """The numbers of a text, each with half a unit of its last digit."""
    found = []
    for digits, unit in NUMBER.findall(text):
        value = Decimal(digits.replace("\u2212", "-"))
        exponent = value.as_tuple().exponent
        assert isinstance(exponent, int)
        found.append((float(value) * UNITS[unit], 0.5001 * 10.0**exponent * UNITS[unit]))
    return found


def assert_shows(text: str, expected: Iterable[float | None]) -> None:
    """The text has these numbers and no others, as exactly as its digits can say; a dash where all are None."""
    wanted = [value for value in expected if value is not None]
    numbers = shown(text)
    assert len(numbers) == len(wanted), (text, wanted)
    assert wanted or text == "\u2013"
    for (value, half), number in zip(numbers, wanted, strict=True):
        assert abs(value - number) <= half, (text, number)


def assert_spread(text: str, values: list[float | None]) -> None:
    """Mean and range over the seeds, or the mean alone where all three are written alike."""
    known = [value for value in values if value is not None]
    numbers = shown(text)
    if not known or len(numbers) == 3:
        assert_shows(text, [mean(known), min(known), max(known)] if known else [])
        return
    assert_shows(text, [mean(known)])
    assert max(known) - min(known) <= 2 * numbers[0][1]


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


class Files:
    """The lines of a run, or of the arms of a study under the names of study.json."""

    def __init__(self, folder: Path) -> None:
        study = folder / "study.json"
        arms = json.loads(study.read_text())["arms"] if study.is_file() else [{"folder": ".", "settings": {}}]
        found: dict[str, list[Row]] = {"metrics": [], "evals": [], "reasons": []}
        for arm in arms:
            for name, rows in found.items():
                for row in lines(folder / arm["folder"] / f"{name}.jsonl"):
                    rows.append({**row, "setting": arm["settings"].get(row.get("setting"), row.get("setting"))})
                    if "settings" in row:
                        rows[-1]["settings"] = [arm["settings"].get(it, it) for it in row["settings"]]
        self.metrics, self.evals, self.reasons = found.values()
        self.learners = list(dict.fromkeys((row["setting"], row["seed"]) for row in self.metrics))
        self.settings = list(dict.fromkeys(setting for setting, _ in self.learners))
        self.step = max(row["step"] for row in self.evals)

    def of(self, rows: list[Row], setting: str, seed: int) -> list[Row]:
        return [row for row in rows if (row["setting"], row["seed"]) == (setting, seed)]

    def by_setting(self, value: Callable[[str, int], float | None]) -> Values:
        return {it: [value(it, seed) for one, seed in self.learners if one == it] for it in self.settings}

    def at_the_end(self, split: str, *keys: str) -> Values:
        """One entry of the evaluations at the last step."""

        def value(setting: str, seed: int) -> float | None:
            (row,) = [
                it for it in self.of(self.evals, setting, seed) if (it["split"], it["step"]) == (split, self.step)
            ]
            found: Any = row
            for key in keys:
                found = (found or {}).get(key)
            return found

        return self.by_setting(value)

    def spent(self, setting: str, seed: int, step: int, by: str) -> float:
        rows = [row for row in self.of(self.metrics, setting, seed) if row["step"] <= step]
        return sum(row["seconds"] for row in rows) if by == "seconds" else rows[-1]["flops"] if rows else 0.0

    def budget(self, by: str) -> float:
        return min(self.spent(*learner, self.step, by) for learner in self.learners)

    def at_budget(self, by: str, *keys: str) -> Values:
        """The measure where a learner has spent the budget, on a straight line between two evaluations."""
        budget = self.budget(by)

        def value(setting: str, seed: int) -> float:
            rows = [row for row in self.of(self.evals, setting, seed) if row["split"] == "test"]
            costs = [self.spent(setting, seed, row["step"], by) for row in rows]
            values = [row["metrics"][keys[1]] if keys[0] == "metrics" else row[keys[0]] for row in rows]
            after = min(bisect_left(costs, budget), len(costs) - 1)
            if costs[after] == budget:
                return values[after]
            part = (budget - costs[after - 1]) / (costs[after] - costs[after - 1])
            return values[after - 1] + part * (values[after] - values[after - 1])

        return self.by_setting(value)

    def last_quarter(self, setting: str, seed: int) -> float:
        rows = self.of(self.metrics, setting, seed)
        return mean(row["grad_norm_mean"] for row in rows if row["step"] > 0.75 * rows[-1]["step"])

    def probe(self, setting: str, seed: int) -> Row | None:
        return next((row for row in reversed(self.of(self.metrics, setting, seed)) if row.get("gradient_share")), None)

    def least_share(self, setting: str, seed: int) -> float | None:
        row = self.probe(setting, seed)
        return min(row["gradient_share"].values()) if row else None


def of_text(files: Files) -> dict[str, Values]:
    """Heading of the table of results -> its values, for running text; budgets are left out of the headings."""
    return {
        "logit loss, test text (nats per token)": files.at_the_end("test", "logit_loss"),
        "logit loss, training text (nats per token)": files.at_the_end("train", "logit_loss"),
        "top-1 agreement with the teacher, test text": files.at_the_end("test", "agreement"),
        "label loss, test text (nats per token)": files.at_the_end("test", "label_loss"),
        "label accuracy, test text": files.at_the_end("test", "label_accuracy"),
        "logit loss, test text, at equal compute": files.at_budget("flops", "logit_loss"),
        "logit loss, test text, at equal time": files.at_budget("seconds", "logit_loss"),
        **of_training(files),
    }


def of_rows(files: Files) -> dict[str, Values]:
    """The same for a classification."""
    found: dict[str, Values] = {}
    for name, key in (("accuracy", "accuracy"), ("F1 of class yes", "f1"), ("Matthews correlation", "matthews")):
        mine, theirs = (files.at_the_end("test", table, key) for table in ("metrics", "teacher_metrics"))
        found[f"{name}, held-out rows"], found[f"the teacher's {name}"] = mine, theirs
        pairs = {it: zip(mine[it], theirs[it], strict=True) for it in mine}
        found[f"share of the teacher's {name}"] = {
            it: [a / b if a is not None and b is not None else None for a, b in both] for it, both in pairs.items()
        }
    return found | {
        "logit loss, held-out rows (nats per row)": files.at_the_end("test", "logit_loss"),
        "logit loss, training rows (nats per row)": files.at_the_end("train", "logit_loss"),
        "top-1 agreement with the teacher, held-out rows": files.at_the_end("test", "agreement"),
        "label loss, held-out rows (nats per row)": files.at_the_end("test", "label_loss"),
        "accuracy, held-out rows, at equal compute": files.at_budget("flops", "metrics", "accuracy"),
        "accuracy, held-out rows, at equal time": files.at_budget("seconds", "metrics", "accuracy"),
        **of_training(files),
    }


def of_training(files: Files) -> dict[str, Values]:
    shares = files.by_setting(files.least_share)
    some = any(value is not None for values in shares.values() for value in values)
    return {
        "average gradient norm, last quarter of the steps": files.by_setting(files.last_quarter),
        **({"smallest share of a term in the gradient, last probe": shares} if some else {}),
        "time it would take alone": files.by_setting(lambda it, seed: files.spent(it, seed, files.step, "seconds")),
        "training compute (FLOPs)": files.by_setting(lambda it, seed: files.spent(it, seed, files.step, "flops")),
    }


def varied(folder: Path, seed: int = 7) -> Path:
    """The run with evaluations and gradient norms that follow no formula."""
    draws = random.Random(seed)
    measured = ("logit_loss", "agreement", "label_loss", "label_accuracy")
    for name, keys in (("evals", measured), ("metrics", ("grad_norm_mean",))):
        rows = lines(folder / f"{name}.jsonl")
        for row in rows:
            row |= {key: row[key] * draws.uniform(0.7, 1.0) for key in keys if row.get(key) is not None}
            if row.get("metrics"):
                row["metrics"] = {key: value * draws.uniform(0.7, 1.0) for key, value in row["metrics"].items()}
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


Made = tuple[Files, list[tuple[str, str, list[list[str]]]]]


def made(folder: Path) -> Made:
    return Files(folder), Tables(write(folder).read_text(encoding="utf-8")).found


@pytest.fixture
def text(make_run: Callable[..., Path]) -> Made:
    return made(varied(add_reasons(make_run(seeds=(0, 1)))))


@pytest.fixture
def classes(make_run: Callable[..., Path]) -> Made:
    return made(varied(make_run(task="classification", settings=("logit", "multi", "other"), seeds=(0, 1, 2))))


@pytest.fixture
def study(make_run: Callable[..., Path], tmp_path: Path) -> Made:
    arms = []
    for place, rate in enumerate((0.1, 0.2), start=1):
        varied(add_reasons(make_run(f"study/arms/0{place}")), place)
        names = {it: f"{it} lr={rate}" for it in ("logit", "multi")}
        arms.append({"name": f"lr={rate}", "folder": f"arms/0{place}", "settings": names})
    (tmp_path / "study" / "study.json").write_text(json.dumps({"name": "rates", "arms": arms}))
    return made(tmp_path / "study")


EXPECTED = {"text": of_text, "classes": of_rows, "study": of_text}


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_table_of_results(kind: str, request: pytest.FixtureRequest) -> None:
    files, tables = request.getfixturevalue(kind)
    ((_, _, rows),) = [table for table in tables if table[1] == "results"]
    assert rows[0] == ["", *files.settings]
    expected = EXPECTED[kind](files)
    seen = set()
    for heading, *cells in rows[1:]:
        name, _, budget = heading.partition(" (") if "at equal" in heading else (heading, "", "")
        if budget:
            assert_shows(budget, [files.budget("flops" if "compute" in name else "seconds")])
        for cell, setting in zip(cells, files.settings, strict=True):
            assert_spread(cell, expected[name][setting])
        seen.add(name)
    assert seen == set(expected)


def test_baselines_stand_beside_the_settings(make_run: Callable[..., Path]) -> None:
    folder = varied(make_run(seeds=(0, 1), facts={"baselines": ["initial"]}))
    rows = lines(folder / "evals.jsonl")
    for row in rows:  # the settings begin as one student
        first = next(it for it in rows if (it["seed"], it["step"], it["split"]) == (row["seed"], 0, row["split"]))
        row |= {key: first[key] for key in WORDS["text"]} if row["step"] == 0 else {}
    (folder / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files, tables = made(folder)
    ((_, _, (head, *body)),) = [table for table in tables if table[1] == "results"]
    assert head == ["", "logit", "multi", "initial"]
    told = {line[0]: line[3] for line in body}
    files.step = 0
    for key in ("logit_loss", "label_loss"):
        assert_spread(told[f"{NAMES[key]}, test text (nats per token)"], files.at_the_end("test", key)["logit"])
    assert told["training compute (FLOPs)"] == "\u2013"


NAMES = {"logit_loss": "logit loss", "label_loss": "label loss", "agreement": "agreement"}
WORDS = {
    "text": {**NAMES, "label_accuracy": "label accuracy"},
    "classes": {**NAMES, "accuracy": "accuracy", "f1": "F1 of class yes", "matthews": "Matthews correlation"}
    | {"label_accuracy": "label accuracy"},
}


def holm(values: list[float]) -> list[float]:
    """Holm's adjusted p of every p."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        found[place] = least
    return found


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_tables_of_verdicts(kind: str, request: pytest.FixtureRequest) -> None:
    files, tables = request.getfixturevalue(kind)
    names = WORDS.get(kind, WORDS["text"])
    verdicts = [(heading.removeprefix("Verdicts: "), rows) for heading, it, rows in tables if it == "verdicts"]
    found = {heading.partition(", ")[0]: rows for heading, rows in verdicts}
    assert set(found) == set(names.values())
    for key, name in names.items():
        table = ("metrics", key) if kind == "classes" and key in ("accuracy", "f1", "matthews") else (key,)
        values = files.at_the_end("test", *table)
        tests = {}
        for first, second in combinations(files.settings, 2):
            differences = [b - a for a, b in zip(values[first], values[second], strict=True) if a and b]
            tests[second, first] = differences, stats.ttest_1samp(differences, 0.0)
        adjusted = dict(zip(tests, holm([float(test.pvalue) for _, test in tests.values()]), strict=True))
        assert [(row[0], row[2]) for row in found[name][1:]] == list(tests)
        for second, word, first, *cells in found[name][1:]:
            differences, test = tests[second, first]
            p, better = adjusted[second, first], (mean(differences) < 0) == key.endswith("_loss")
            assert word == ("inconclusive" if p >= 0.05 else "better" if better else "worse")
            assert_shows(cells[0], [mean(differences)])
            assert_shows(cells[1], list(test.confidence_interval(0.95)))
            assert len(cells) == 4  # no documents were recorded: no column of their error
            assert_shows(cells[2], [mean(differences) / stdev(differences)])
            if cells[3] == "< 0.001":
                assert p < 0.001
            else:
                assert_shows(cells[3], [p])


@pytest.mark.parametrize("kind", ["text", "study"])
def test_the_tables_of_reasons(kind: str, request: pytest.FixtureRequest) -> None:
    files, tables = request.getfixturevalue(kind)
    found = {heading: rows for heading, _, rows in tables}
    pulls, couples = found["Do the terms pull together?"], found["How far the settings went apart"]
    terms = [heading.removeprefix("with ") for heading in pulls[0][3:]]
    assert len(terms) == 4
    setting, seen = "", []
    for name, term, share, *cosines in pulls[1:]:
        setting = name or setting
        probes = [row for one, seed in files.learners if one == setting and (row := files.probe(one, seed))]
        assert_shows(share, [mean(row["gradient_share"][term] for row in probes)])
        for other, cell in zip(terms, cosines, strict=True):
            known = [row["gradient_cosines"][term][other] for row in probes]
            missing = other == term or None in known
            assert_shows(cell, [] if missing else [mean(known)])
        seen.append((setting, term))
    assert seen == [(it, term) for it in files.settings if it.startswith("multi") for term in terms]
    assert couples[0][2:] == ["same answer", "symmetric KL (nats per token)", "rise of the loss between them"]
    before, pairs = "", []
    for name, other, *cells in couples[1:]:
        before = name or before
        rows = [row for row in files.reasons if row["step"] == files.step and row.get("settings") == [before, other]]
        assert len(rows) == 2
        for cell, value in zip(cells, ("agreement", "symmetric_kl", "barrier"), strict=True):
            assert_shows(cell, [mean(row[value]["barrier"] if value == "barrier" else row[value] for row in rows)])
        pairs.append((before, other))
    made = dict.fromkeys(tuple(row["settings"]) for row in files.reasons if row["kind"] == "pair")
    assert pairs == list(made)


def test_a_number_that_is_off_is_found_out() -> None:
    assert_spread("2.548 2.540..2.556", [2.5401, 2.5559])
    for text in ("2.549 2.540..2.556", "2.548 2.540..2.557", "2.548", "\u2013"):
        with pytest.raises(AssertionError):
            assert_spread(text, [2.5401, 2.5559])
    assert_shows("\u22120.05662 .. +1.40 min", [-0.05662, 84.0])
    assert math.isclose(shown("13.2 %")[0][1], 0.0005, rel_tol=1e-3)
