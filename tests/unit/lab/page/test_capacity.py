"""Capacity ladders: score against size for each teacher, and whether a larger teacher is a better one; from made-up runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_rel

from limbeck.lab.data import capacity
from limbeck.lab.data.joined import gather, several
from limbeck.lab.figures import training
from limbeck.lab.figures.capacity import capacity as figure
from limbeck.lab.numbers import Spread
from limbeck.lab.page import report
from limbeck.lab.page.capacity import of_ladder
from limbeck.lab.statistics.verdicts import holm

DRAWN = {"test_the_page_has_the_section_and_the_figure"}
SEEDS = (0, 1, 2, 3)
KL, LABELS = {"loss": "forward_kl"}, {"loss": "cross_entropy"}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "small": [KL | {"teacher": "small"}, LABELS],
    "helper": [KL | {"teacher": "helper"}],
    "large": [KL],
    "both": [KL, KL | {"teacher": "small"}],  # no line: two teachers
    "own": [KL, KL | {"teacher": "self", "tap": "exit"}],  # nor this one
    "labels": [LABELS],
}
SIZES = {"small": 2000, "helper": 4000, "large": 9000}
MEANS = {  # student -> setting -> label loss: the largest teacher is the worst one of the smallest student
    100: {"small": 5.0, "helper": 4.8, "large": 5.4, "labels": 5.2, "both": 1.0, "own": 1.0},
    500: {"small": 4.5, "helper": 4.3, "large": 4.0, "labels": 4.9, "both": 1.0, "own": 1.0},
}
NOISE = {name: np.random.default_rng(place).normal(0, 0.01, len(SEEDS)) for place, name in enumerate(SETTINGS)}


def loss(setting: str, size: int, seed: int) -> float:
    return MEANS[size][setting] + float(NOISE[setting][seed]) + 0.3 * seed


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    lines = (folder / "evals.jsonl").read_text().splitlines()
    (folder / "evals.jsonl").write_text("".join(json.dumps(change(json.loads(line))) + "\n" for line in lines))


@pytest.fixture
def arm(make_run) -> Callable[..., Path]:
    """Writes a run of students of one size, which learn from teachers of three sizes."""

    def write(name: str, size: int, settings: Sequence[str] = tuple(SETTINGS), **how: Any) -> Path:
        made = [{"name": "teacher", "source": "embedded", "parameters": SIZES["large"], "sha256": "1"}]
        made += [
            {"name": f"{it}@{it}-seed{seed}", "source": f"${it}/{it}", "parameters": SIZES[it]}
            for seed in SEEDS
            for it in ("small", "helper")
        ]
        facts = {
            "teacher": made[0],
            "teachers": made[1:],
            "students": {f"{it}-seed{seed}": {"parameters": size} for it in settings for seed in SEEDS},
            "earlier": {it: {"recipe_sha256": it} for it in ("small", "helper")},
            "stage": "student",
        }
        folder = make_run(name, settings=settings, seeds=SEEDS, facts=facts, **how)
        if "task" not in how:
            rewritten(
                folder,
                lambda row: row | {"label_loss": loss(row["setting"], size, row["seed"]), "teacher_label_loss": 3.0},
            )
        said = {"stage": "student", "settings": {it: {"terms": SETTINGS[it]} for it in settings}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "gap", "stages": [{"stage": "small"}, said]}))
        return folder

    return write


@pytest.fixture
def study(arm, make_run, tmp_path: Path) -> Path:
    """Students of two sizes; the stage of the smallest teacher lies with the first arm."""
    folder = tmp_path / "gap"
    arms = [{"name": f"hidden={size}", "folder": f"arms/{size}"} for size in (500, 100)]
    for size in (500, 100):
        arm(f"gap/arms/{size}", size)
    stage = make_run(
        "gap/arms/500/stages/small",
        settings=("small",),
        seeds=SEEDS,
        facts={"recipe_sha256": "small", "stage": "train"},
    )
    rewritten(stage, lambda row: row | {"label_loss": 3.5 + row["seed"] + (row["step"] < 40)})
    told = [it | {"settings": {name: f"{name} {it['name']}" for name in SETTINGS}, "steps": 40} for it in arms]
    (folder / "study.json").write_text(json.dumps({"name": "gap", "arms": told}))
    return folder


def test_a_line_for_each_teacher_and_its_students_by_size(study: Path) -> None:
    ladder = capacity.of_run(gather(study))
    assert ladder is not None and ladder.measure.key == "label_loss" and ladder.sizes == [100, 500]
    assert [(line.name, line.size) for line in ladder.lines] == [
        ("small (2.00 k)", 2000),
        ("helper (4.00 k)", 4000),
        ("large (9.00 k)", 9000),
        ("labels", None),
    ]
    assert ladder.lines[0].settings == {100: "small hidden=100", 500: "small hidden=500"}
    small, helper, large, labels = (line.reached for line in ladder.lines)
    assert small == Spread({0: 3.5, 1: 4.5, 2: 5.5, 3: 6.5}), "the last evaluation of its own stage"
    assert large == Spread(dict.fromkeys(SEEDS, 3.0)) and helper is None and labels is None
    score = ladder.scores["large hidden=100"]
    assert score.by_seed == {seed: loss("large", 100, seed) for seed in SEEDS}
    assert [(a.name[:5], b.name[:5]) for a, b in ladder.steps(100)] == [("small", "helpe"), ("helpe", "large")]


def test_a_stage_of_other_text_or_another_recipe_tells_nothing_of_the_teacher(study: Path) -> None:
    path = study / "arms" / "500" / "stages" / "small" / "manifest.json"
    kept = json.loads(path.read_text())
    for other in ({"recipe_sha256": "x"}, {"data": kept["data"] | {"heldout_sha256": "x"}}, []):
        path.write_text(json.dumps(kept | other if other else other))
        ladder = capacity.of_run(gather(study))
        assert ladder is not None and ladder.lines[0].reached is None


def test_where_a_larger_teacher_stops_helping(study: Path) -> None:
    told = of_ladder(gather(study))
    assert told is not None
    assert told.sentences == [
        "For the student of 100 parameters a larger teacher stops helping: large (9.00 k) teaches it worse than helper (4.00 k).",
        "For the student of 500 parameters each larger teacher is better than those of the next smaller size, up to large (9.00 k).",
    ]
    best = {name: [text.split()[0] for text, bold in line if bold] for name, line in told.lines}
    expected = [np.mean([loss(*who, seed) for seed in SEEDS]) for who in (("helper", 100), ("large", 500))]
    assert best == {
        "100": [f"{expected[0]:.3f}"],
        "500": [f"{expected[1]:.3f}"],
        "the teacher itself": [],
    }
    assert [text for text, _ in told.lines[-1][1]] == ["5.000 (3.500..6.500)", "\u2013", "3.000", "\u2013"]


def test_the_verdicts_are_paired_by_seed_and_corrected_over_the_steps_alone(study: Path) -> None:
    told = of_ladder(gather(study))
    assert told is not None
    pairs = [("small", "helper"), ("helper", "large")]
    p = [
        ttest_rel(*([loss(it, size, seed) for seed in SEEDS] for it in pair)).pvalue
        for size in (100, 500)
        for pair in pairs
    ]
    assert [line[-1] for line in told.judged.lines] == [f"{it:.3f}" if it >= 0.001 else "< 0.001" for it in holm(p)]
    assert "p by Holm over 4 pairs" in told.judged.remark


def test_what_is_not_shown(study: Path) -> None:
    """A step to a larger teacher that is now better and now worse, and one seed alone."""
    arms = [study / "arms" / str(size) for size in (100, 500)]

    def shaken(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"label_loss": row["label_loss"] + (row["setting"] == "helper") * (2 * (row["seed"] % 2) - 1)}

    for folder in arms:
        rewritten(folder, shaken)
    told = of_ladder(gather(study))
    assert told is not None
    assert told.sentences[1] == (
        "For the student of 500 parameters it is not shown where a larger teacher stops helping: no verdict on helper (4.00 k) "
        "against small (2.00 k) and large (9.00 k) against helper (4.00 k)."
    )
    for folder in arms:
        lines = (folder / "evals.jsonl").read_text().splitlines(keepends=True)
        (folder / "evals.jsonl").write_text("".join(line for line in lines if json.loads(line)["seed"] == 0))
    told = of_ladder(gather(study))
    assert told is not None and all("it is not shown where" in sentence for sentence in told.sentences)
    assert {line[1] for line in told.judged.lines} == {"no verdict"}
    assert "Seeds were not varied" in told.judged.remark


def test_of_a_task_the_first_metric_counts_and_more_is_better(arm, tmp_path: Path) -> None:
    folders = [arm(name, size, task="classification") for name, size in (("a", 100), ("b", 500))]
    better = {"small": 0.5, "helper": 0.6, "large": 0.7}
    for folder, gain in zip(folders, (0.0, 0.1), strict=True):

        def change(row: dict[str, Any], gain: float = gain) -> dict[str, Any]:
            accuracy = better.get(row["setting"], 0.1) + gain + float(NOISE[row["setting"]][row["seed"]])
            return row | {"metrics": row["metrics"] | {"accuracy": accuracy}}

        rewritten(folder, change)
    run = several(folders, tmp_path)
    told, ladder = of_ladder(run), capacity.of_run(run)
    assert told is not None and ladder is not None and ladder.measure.key == "metrics.accuracy"
    assert ladder.lines[2].reached == Spread(dict.fromkeys(SEEDS, 0.9))
    assert all([bold for _, bold in line] == [False, False, True, False] for _, line in told.lines[:-1])
    assert told.judged.name == "accuracy, held-out rows"
    assert [line[1] for line in told.judged.lines] == ["better"] * 4


def test_runs_and_studies_side_by_side(study: Path, arm, tmp_path: Path) -> None:
    other = arm("third", 100)
    told = json.loads((other / "manifest.json").read_text())
    told["students"] = {learner: {"parameters": 50} for learner in told["students"]}
    (other / "manifest.json").write_text(json.dumps(told))
    ladder = capacity.of_run(several([study, other], tmp_path))
    assert ladder is not None and ladder.sizes == [50, 100, 500]
    assert ladder.lines[0].settings == {50: "small", 100: "small hidden=100", 500: "small hidden=500"}


def test_where_there_is_no_ladder(arm, tmp_path: Path) -> None:
    first, same = arm("first", 100), arm("same", 100)
    one_teacher = [arm(f"one-{size}", size, settings=("large", "labels")) for size in (100, 500)]
    bare = arm("bare", 500)
    (bare / "recipe.yaml").unlink()
    assert capacity.of_run(gather(first)) is None, "a run alone has one size"
    assert capacity.of_run(several([first, same], tmp_path)) is None, "two settings in one place"
    assert capacity.of_run(several(one_teacher, tmp_path)) is None
    assert capacity.of_run(several([first, bare], tmp_path)) is None, "nobody knows who taught these"
    for run in (gather(first), several(one_teacher, tmp_path)):
        assert figure(run) is None and "Which teacher" not in report.render(run, [])


def test_the_figure(study: Path) -> None:
    run = gather(study)
    chart = figure(run)
    assert chart is not None
    left, right = chart.axes
    assert left.get_xscale() == right.get_xscale() == "log"
    lines = {it.get_label(): it for it in left.containers}
    assert left.get_ylim()[0] > 3.9, "the losses of 1.0 belong to settings without a place"
    assert len(lines) == 4 and len(right.containers) == 2, "four teachers, two of which are known themselves"
    drawn = left.containers[0].lines[0]
    np.testing.assert_allclose(drawn.get_xdata(), [100, 500], rtol=0.05)
    np.testing.assert_allclose(
        drawn.get_ydata(), [np.mean([loss("small", it, seed) for seed in SEEDS]) for it in (100, 500)]
    )
    (bars,) = left.containers[0].lines[2]
    ends = [sorted(end[1] for end in bar) for bar in bars.get_segments()]
    np.testing.assert_allclose(
        ends, [[f(loss("small", it, seed) for seed in SEEDS) for f in (min, max)] for it in (100, 500)]
    )
    assert [float(it.lines[0].get_ydata()[0]) for it in right.containers] == [5.0, 3.0]
    assert "label loss, nats per token" in left.get_ylabel()
    said = [text for _, _, texts in chart.said for text in texts]
    assert "small (2.00 k) itself, 5.000 (3.500..6.500)" in said and len(said) == 4 * 2 + 2


def test_the_page_has_the_section_and_the_figure(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "FIGURES", {"capacity": training.FIGURES["capacity"]})
    page = report.write(study).read_text()
    assert "Which teacher is best for each student: label loss, test text" in page
    assert "large (9.00 k) teaches it worse than helper (4.00 k)" in page
    assert 'id="capacity"' in page and "Label loss against size, on held-out text" in page
