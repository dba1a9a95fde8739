"""What the points of a figure say under the pointer: the numbers of the files, where the points are drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import write_run

from limbeck.lab.data.run import read
from limbeck.lab.figures import chart, lines, style, training
from limbeck.lab.figures.svg import SVG, XLINK

DRAWN = True

HEAT_MAP = "gradient-norm-layers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its figures; to be read only."""
    run = write_run(tmp_path_factory.mktemp("charts") / "run")
    training.draw(run)
    return run


def circles(path: Path) -> list[tuple[float, float, float, str]]:
    """Centre, radius and text of all that a pointer hits."""
    (group,) = [it for it in ElementTree.parse(path).iter(f"{{{SVG}}}g") if it.get("pointer-events") == "all"]
    assert group.get("fill") == "none"
    return [
        (float(it.attrib["cx"]), float(it.attrib["cy"]), float(it.attrib["r"]), it.findtext(f"{{{SVG}}}title") or "")
        for it in group.iter(f"{{{SVG}}}circle")
    ]


def titles(path: Path) -> list[str]:
    return [text for *_, text in circles(path)]


def test_every_curve_says_its_values(folder: Path) -> None:
    paths = [path for path in (folder / "figures").glob("*.svg") if path.stem != HEAT_MAP]
    assert len(paths) == 6
    for path in paths:
        found = circles(path)
        names = {text.partition(": ")[0] for *_, text in found}
        assert names == ({"embedding", "hidden", "attention", "logit"} if "terms" in path.stem else {"logit", "multi"})
        assert all(radius >= 4 for _, _, radius, _ in found)


def test_the_values_are_those_of_the_file(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    expected = []
    for setting in ("logit", "multi"):
        for step in range(0, 41, 10):
            it = (setting, step, "test")
            values = [row["logit_loss"] for row in rows if (row["setting"], row["step"], row["split"]) == it]
            expected.append(f"{setting}: step {step}, {np.mean(values):.3f} ({min(values):.3f}..{max(values):.3f})")
    assert titles(folder / "figures" / "logit-loss-test.svg") == expected


def test_a_pointer_hits_where_the_marks_are(folder: Path) -> None:
    path = folder / "figures" / "logit-loss-test.svg"
    marks = [
        (float(it.get("x") or "nan"), float(it.get("y") or "nan"))
        for group in ElementTree.parse(path).iter(f"{{{SVG}}}g")
        if re.fullmatch(r"line2d_\d+", group.get("id") or "")
        for it in group.iter(f"{{{SVG}}}use")
    ]
    for x, y, *_ in circles(path):
        assert min(np.hypot(x - a, y - b) for a, b in marks) < 0.1
    references = [it.get(f"{{{XLINK}}}href") for it in ElementTree.parse(path).iter(f"{{{SVG}}}use")]
    assert references, "marks are drawn by reference"


def test_shares_of_the_terms_are_said_in_the_middle_of_their_bands(folder: Path) -> None:
    found = [it for it in circles(folder / "figures" / "multi-loss-terms.svg") if it[3].endswith(" of the loss")]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if (row["setting"], row["seed"], row["step"]) == ("multi", 0, 40)]
    parts = {term: row["terms"][term] * row["weights"][term] for term in row["terms"]}
    said = {text for *_, text in found}
    for term, part in parts.items():
        assert f"{term}: step 40, {100 * part / sum(parts.values()):#.3g} % of the loss" in said
    heights = {text.partition(":")[0]: y for _, y, _, text in found if "step 40," in text}
    assert sorted(heights, key=heights.__getitem__) == list(reversed(parts))


def test_a_long_line_says_a_bounded_number_of_values(tmp_path: Path) -> None:
    made = chart.Chart(3.0)
    axes = made.subplots()
    x = np.arange(5000)
    y = np.where(x == 7, np.nan, x + 1.0)
    axes.plot(x, y)
    made.say(axes, x, y, lambda place: f"{place}")
    with style.rules():
        path, picture = chart.save(made, tmp_path, "long")
    said = titles(path)
    assert len(said) == chart.MOST and (said[0], said[-1]) == ("0", "4999")
    assert np.diff([int(text) for text in said]).max() <= 5000 // (chart.MOST - 1) + 1
    across = [x for x, *_ in circles(path)]
    assert np.diff(across).max() <= 2 * chart.RADIUS  # no gap between them
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {it.name for it in tmp_path.iterdir()} == {"long.svg", "long.png"}


def test_what_cannot_be_drawn_says_nothing_and_names_are_escaped(tmp_path: Path) -> None:
    made = chart.Chart(3.0)
    axes = made.subplots()
    x, y = np.arange(4), np.array([0.0, np.nan, 10.0, 100.0])
    axes.plot(x, y)
    axes.set_yscale("log")
    axes.set_ylim(1, 200)
    made.say(axes, x, y, lambda place: f"<b> & {place}")
    with style.rules():
        path, _ = chart.save(made, tmp_path, "odd")
    assert titles(path) == ["<b> & 2", "<b> & 3"]


def test_a_figure_without_points_has_no_group(folder: Path) -> None:
    assert "<circle" not in (folder / "figures" / f"{HEAT_MAP}.svg").read_text()


def test_the_level_of_the_teacher_is_said(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", task="classification"))
    made = training.metric_test(run)
    assert made is not None
    with style.rules():
        path, _ = chart.save(made, tmp_path, "metric")
    assert titles(path).count("teacher: 0.9000") == lines.LEVEL
