from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from limbeck.errors import UserError
from limbeck.lab.data import reasons
from limbeck.lab.data.run import read
from limbeck.lab.figures import reasons as heat
from limbeck.lab.figures.svg import SVG
from limbeck.lab.page import reasons as words
from limbeck.lab.page import report
from limbeck.lab.page.report import write

DRAWN = {  # the others read the words of the page
    "test_the_cells_of_the_heat_map_are_the_mean_over_the_seeds",
    "test_the_legend_has_the_calibration_errors",
    "test_tied_learners_of_one_setting_stand_side_by_side",
    "test_pages_of_several_runs_have_the_reasons_of_each",
    "test_a_study_of_arms_has_the_reasons_of_all",
    "test_the_same_reasons_give_the_same_bytes",
}

SETTINGS, SEEDS, LAYERS, TEACHER_LAYERS = ("logit", "multi"), (0, 1), 4, 7  # layers with the embedding
BINS, PLACES = 15, 8


def cka(setting: str, seed: int, step: int) -> list[list[float]]:
    """Bright along the diagonal; multi is better by 0.1, a seed by 0.02; at step 0 half of it."""
    best = 0.8 + 0.1 * (setting == "multi") + 0.02 * seed
    grid = [
        [best - 0.07 * abs(2 * mine - theirs) - 0.01 * theirs for theirs in range(TEACHER_LAYERS)]
        for mine in range(LAYERS)
    ]
    return [[cell * (0.5 if step == 0 else 1.0) for cell in row] for row in grid]


def table(shift: float, seed: int) -> dict[str, Any]:
    """A model that is right less often than it says, by `shift`; the first bin is empty."""
    confidence = [None, *((place + 0.5) / BINS for place in range(1, BINS))]
    count = [0, *(100 * (1 + seed) + place for place in range(1, BINS))]
    return {
        "ece": shift + 0.004 * seed, "count": count, "confidence": confidence,
        "accuracy": [None if it is None else max(0.0, it - shift) for it in confidence],
    }  # fmt: skip


def learner(setting: str, seed: int, step: int) -> dict[str, Any]:
    better = 1.0 if setting == "multi" else 0.8
    return {
        "step": step, "stage": "train", "kind": "learner", "setting": setting, "seed": seed,
        "learner": f"{setting}-seed{seed}", "seconds": 1.5, "tokens": 5120, "states": 2048,
        "effective_rank": [40.0 * better + 3 * layer + seed for layer in range(LAYERS)],
        "teacher_effective_rank": [90.0 + 2 * layer for layer in range(TEACHER_LAYERS)],
        "cka": cka(setting, seed, step),
        "calibration": table(0.05 if setting == "multi" else 0.11, seed),
        "teacher_calibration": table(0.02, seed),
        "by_frequency": {
            "from": [0, 1, 10, 100, 1000], "count": [0, 50, 400, 2000, 2670],
            "agreement": [None, *(better * (0.3 + 0.1 * place + 0.01 * seed) for place in range(4))],
            "logit_loss": [None, *((3.0 - 0.5 * place) / better for place in range(4))],
        },
        "by_place": {
            "count": [640] * PLACES,
            "agreement": [better * (0.4 + 0.02 * place) for place in range(PLACES)],
            "logit_loss": [(2.0 - 0.1 * place) / better + 0.05 * seed for place in range(PLACES)],
        },
    }  # fmt: skip


def pair(seed: int, step: int, last: bool) -> dict[str, Any]:
    line = {"alphas": [0.0, 0.5, 1.0], "losses": [3.0, 4.5, 2.8], "barrier": 1.6 + 0.1 * seed}
    return {
        "step": step, "stage": "train", "kind": "pair", "seed": seed, "settings": list(SETTINGS),
        "learners": [f"{setting}-seed{seed}" for setting in SETTINGS],
        "agreement": 0.623 + 0.01 * seed, "symmetric_kl": 0.717 + 0.02 * seed, "cka": [[0.5]],
    } | ({"barrier": line} if last else {})  # fmt: skip


COSINES = {
    "embedding": {"embedding": 1.0, "hidden": -0.27, "attention": None, "logit": 0.61},
    "hidden": {"embedding": -0.27, "hidden": 1.0, "attention": 0.04, "logit": 0.33},
    "attention": {"embedding": None, "hidden": 0.04, "attention": 1.0, "logit": 0.0},
    "logit": {"embedding": 0.61, "hidden": 0.33, "attention": 0.0, "logit": 1.0},
}
SHARES = {"embedding": 0.125, "hidden": 0.25, "attention": 0.5, "logit": 0.125}


def probed(row: dict[str, Any]) -> dict[str, Any]:
    """Cosines of multi at steps 1 and 31, 0.02 higher in seed 1 (for embedding and hidden), other ones at step 1."""
    if row["setting"] != "multi" or row["step"] not in (1, 31):
        return row | {"gradient_cosines": None, "gradient_share": None}
    found = json.loads(json.dumps(COSINES))
    shift = 0.02 * row["seed"] + (0.5 if row["step"] == 1 else 0.0)
    for one, other in (("embedding", "hidden"), ("hidden", "embedding")):
        found[one][other] += shift
    return row | {"gradient_cosines": found, "gradient_share": SHARES}


def add_reasons(folder: Path, settings: tuple[str, ...] = SETTINGS) -> Path:
    """Give a synthetic run reasons at steps 0 and 40, and probes."""
    lines = [learner(setting, seed, step) for step in (0, 40) for setting in settings for seed in SEEDS]
    lines += [pair(seed, step, step == 40) for step in (0, 40) for seed in SEEDS] if settings == SETTINGS else []
    write_lines(folder / "reasons.jsonl", lines)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    write_lines(folder / "metrics.jsonl", [probed(row) for row in metrics])
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Section(HTMLParser):
    """What stands in the section on reasons: words, cells of tables by row, names of figures, tooltips."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside, self.tag = False, ""
        self.words: list[str] = []
        self.figures: list[str] = []
        self.titles: list[str] = []
        self.rows: list[list[str]] = []
        self.labels: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        self.inside = self.inside or said.get("id") == "reasons"
        self.tag = tag
        if self.inside and tag == "figure":
            self.figures.append(said["id"] or "")
        if self.inside and tag == "svg":
            self.labels[self.figures[-1]] = said["aria-label"] or ""
        if self.inside and tag == "tr":
            self.rows.append([])
        if self.inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "section"
        self.tag = ""

    def handle_data(self, data: str) -> None:
        if self.inside and self.tag in ("td", "th"):
            self.rows[-1][-1] += data
        if self.inside and self.tag == "title":
            self.titles.append(data)
        elif self.inside:
            self.words.append(data)


def section(folder: Path) -> Section:
    return Section(write(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory, report: Path) -> Path:
    """A run with reasons, and its report; to be read only."""
    folder = tmp_path_factory.mktemp("reasons") / "run"
    shutil.copytree(report.parent, folder)
    write(add_reasons(folder))
    return folder


@pytest.fixture(scope="module")
def found(explained: Path) -> Section:
    return Section((explained / "report.html").read_text(encoding="utf-8"))


def texts(folder: Path, name: str) -> list[str]:
    root = ElementTree.parse(folder / "figures" / f"{name}.svg").getroot()
    return [text for element in root.iter(f"{{{SVG}}}text") if (text := "".join(element.itertext()).strip())]


@pytest.mark.slow
def test_the_cells_of_the_heat_map_are_the_mean_over_the_seeds(explained):
    said = texts(explained, "reasons-cka")
    cells = [text for text in said if re.fullmatch(r"\.\d\d|1\.00", text)]
    expected = [
        f"{value:.2f}".removeprefix("0")
        for setting in SETTINGS
        for row in np.mean([cka(setting, seed, 40) for seed in SEEDS], axis=0)
        for value in row
    ]
    assert cells == expected
    assert set(SETTINGS) <= set(said)


def test_a_large_grid_has_no_text_in_its_cells(make_run):
    folder = make_run(settings=("multi",), seeds=(0,))
    row = learner("multi", 0, 40) | {"cka": [[0.5] * 13] * 9}
    write_lines(folder / "reasons.jsonl", [row])
    section(folder)
    assert not [text for text in texts(folder, "reasons-cka") if text.startswith(".")]


def test_the_caption_compares_with_step_0(found):
    then = {it: np.mean([cka(it, seed, 0) for seed in SEEDS]) for it in SETTINGS}
    now = {it: np.mean([cka(it, seed, 40) for seed in SEEDS]) for it in SETTINGS}
    assert ("; ".join(f"{it} {then[it]:.3f} and {now[it]:.3f}" for it in SETTINGS)) in " ".join(found.words)
    grid = np.mean([cka("multi", seed, 40) for seed in SEEDS], axis=0)
    assert f"highest {grid.max():.3f} at student layer 0 and teacher layer 0" in found.labels["reasons-cka"]


def test_the_section_has_all_figures_with_words_and_they_are_files_too(explained, found):
    assert found.figures == list(heat.FIGURES) == list(words.CAPTIONS)
    assert all(found.labels.values())
    for name in found.figures:
        assert (explained / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = (explained / "report.html").read_text()
    assert text.index("<h2>Figures</h2>") < text.index('<section id="reasons">') < text.index("<h2>Recipe</h2>")
    assert "step 40 on 5,120 fixed tokens" in " ".join(found.words)


def test_points_say_their_values_under_the_pointer(found):
    assert "multi: layer 2, effective rank 46.50 (46.00..47.00)" in found.titles  # 40 + 3 * 2 + half a seed
    assert "teacher: layer 6, effective rank 102.0" in found.titles
    assert "logit: 10 to 99 times, agreement 0.3240 (0.3200..0.3280)" in found.titles  # 0.8 * (0.3 + 0.1 + 0.005)
    assert "multi: 1,000 times or more, logit loss 1.500" in found.titles
    assert "multi: eighth 8, logit loss 1.325 (1.300..1.350)" in found.titles  # 2 - 0.1 * 7 + 0.025
    right = (2.5 / BINS) - 0.05
    assert f"multi: confidence {2.5 / BINS:.4f}, accuracy {right:.4f}, 304 predictions" in found.titles


def test_the_legend_has_the_calibration_errors(explained):
    said = texts(explained, "reasons-calibration")
    assert {"logit, ECE 0.112", "multi, ECE 0.052", "teacher, ECE 0.022"} <= set(said)


def test_reliability_weighs_seeds_by_their_tokens():
    rows = [{"c": {"ece": 0.1, "count": [1, 0], "confidence": [0.2, None], "accuracy": [1.0, None]}},
            {"c": {"ece": 0.3, "count": [3, 0], "confidence": [0.4, None], "accuracy": [0.0, None]}}]  # fmt: skip
    pooled = reasons.calibrated(rows, "c")
    assert pooled is not None
    assert pooled["count"].tolist() == [4, 0]
    np.testing.assert_allclose(pooled["confidence"], [0.35, np.nan])
    np.testing.assert_allclose(pooled["accuracy"], [0.25, np.nan])
    np.testing.assert_allclose(pooled["ece"], 0.2)


def test_the_table_of_terms_is_that_of_the_last_probe(found):
    names = list(COSINES)
    assert ["setting", "term", "share", *(f"with {name}" for name in names)] in found.rows
    assert ["multi", "embedding", "12.5 %", "–", "−0.26", "–", "+0.61"] in found.rows  # seeds: -0.27, -0.25
    assert ["", "attention", "50.0 %", "–", "+0.04", "–", "0.00"] in found.rows
    assert not [row for row in found.rows if row[:2] == ["logit", "logit"]]  # a single term pulls alone


def test_the_table_of_pairs_is_the_mean_over_the_seeds(found):
    assert ["logit", "multi", "62.8 %", "0.7270", "1.650"] in found.rows
    assert "straight line between the weights" in " ".join(found.words)


def test_pairs_without_a_barrier_have_no_column_of_it(make_run):
    folder = make_run()
    write_lines(folder / "reasons.jsonl", [*(learner(it, 0, 40) for it in SETTINGS), pair(0, 40, last=False)])
    assert ["logit", "multi", "62.3 %", "0.7170"] in section(folder).rows


def test_a_run_without_the_file_has_no_section(report):
    assert 'id="reasons"' not in report.read_text()


def test_a_damaged_last_line_is_noted_and_one_before_it_is_an_error(make_run):
    folder = add_reasons(make_run())
    with (folder / "reasons.jsonl").open("a") as file:
        file.write('{"step": 5')
    write(folder)
    assert "The last line of reasons.jsonl (line 13) is damaged" in (folder / "report.html").read_text()
    with (folder / "reasons.jsonl").open("a") as file:
        file.write("\n" + json.dumps(learner("multi", 0, 40)) + "\n")
    with pytest.raises(UserError, match="line 13 is damaged"):
        write(folder)


def test_only_the_last_step_of_the_last_stage_counts_and_a_line_written_twice_once(make_run):
    folder = make_run()
    old = learner("multi", 0, 99) | {"stage": "before"}
    twice = learner("multi", 0, 40) | {"tokens": 7}
    write_lines(folder / "reasons.jsonl", [old, learner("multi", 0, 20), learner("multi", 0, 40), twice])
    why = reasons.of(read(folder))
    assert why is not None
    assert (why.step, why.learners) == (40, {"multi": [twice]})


def test_what_was_not_measured_leaves_no_figure(make_run):
    folder = make_run(teacher=False)
    names = ("teacher_effective_rank", "cka", "teacher_calibration", "by_frequency", "by_place")
    rows = [learner(setting, seed, 40) | dict.fromkeys(names) for setting in SETTINGS for seed in SEEDS]
    write_lines(folder / "reasons.jsonl", rows)
    assert section(folder).figures == ["reasons-rank", "reasons-calibration"]


def test_what_is_not_finite_is_left_out(make_run):
    folder = make_run(seeds=(0,))
    row = learner("multi", 0, 40)
    row["cka"] = [[None] * TEACHER_LAYERS] * LAYERS
    row["effective_rank"] = [None, 5.0, None, 7.0]
    write_lines(folder / "reasons.jsonl", [row, learner("logit", 0, 40)])
    said = section(folder)
    assert "multi: layer 1, effective rank 5.000" in said.titles
    assert not [title for title in said.titles if title.startswith("multi: layer 0")]


def test_settings_with_teachers_of_their_own_show_each(make_run):
    teachers = [{"name": f"teacher@{it}-seed0", "source": "x", "revision": None, "parameters": 1} for it in SETTINGS]
    folder = make_run(seeds=(0,), facts={"teacher": None, "teachers": teachers})
    write_lines(folder / "reasons.jsonl", [learner(it, 0, 40) for it in SETTINGS])
    assert {
        "teacher of logit: layer 0, effective rank 90.00",
        "teacher of multi: layer 0, effective rank 90.00",
    } <= set(section(folder).titles)


@pytest.mark.slow
def test_tied_learners_of_one_setting_stand_side_by_side(make_run):
    folder = make_run(settings=("mutual", "logit"), seeds=(0,))
    names = ("mutual-seed0-a", "mutual-seed0-b")
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mine = [row for row in metrics if row["setting"] == "mutual"]
    write_lines(folder / "metrics.jsonl", [row | {"learner": name} for name in names for row in mine])
    lines = [learner("mutual", 0, 40) | {"learner": name} for name in names]
    write_lines(folder / "reasons.jsonl", [*lines, pair(0, 40, True) | {"learners": list(names)}])
    said = section(folder)
    assert ["mutual-a", "mutual-b", "62.3 %", "0.7170", "1.600"] in said.rows
    assert {"mutual-a", "mutual-b"} <= set(texts(folder, "reasons-cka"))


@pytest.mark.slow
def test_pages_of_several_runs_have_the_reasons_of_each(make_run):
    first, second = add_reasons(make_run("a")), add_reasons(make_run("b"))
    rows = [json.loads(line) for line in (second / "reasons.jsonl").read_text().splitlines()]
    write_lines(second / "reasons.jsonl", [twice(row) for row in rows])
    said = Section(report.page(report.gathered([first, second])).read_text())
    names = [f"{run} {setting}" for run in "ab" for setting in SETTINGS]
    assert set(names) <= set(texts(first.parent / "compared", "reasons-cka"))
    assert "a multi: layer 2, effective rank 46.50 (46.00..47.00)" in said.titles
    assert "b multi: layer 2, effective rank 93.00 (92.00..94.00)" in said.titles
    assert [title for title in said.titles if "layer 6" in title] == ["teacher: layer 6, effective rank 102.0"]
    assert ["a logit", "a multi", "62.8 %", "0.7270", "1.650"] in said.rows
    assert ["b logit", "b multi", "62.8 %", "1.454", "1.650"] in said.rows
    assert not [row for row in said.rows if row[:2] == ["a logit", "b logit"]]
    assert ["b multi", "embedding", "12.5 %", "–", "−0.26", "–", "+0.61"] in said.rows
    assert "Measured at step 40 on 5,120 fixed tokens" in " ".join(said.words)


def twice(row: dict[str, Any]) -> dict[str, Any]:
    """A line of a run with twice the effective rank and the distance of pairs."""
    if row["kind"] == "pair":
        return row | {"symmetric_kl": 2 * row["symmetric_kl"]}
    return row | {"effective_rank": [2 * value for value in row["effective_rank"]]}


def test_runs_of_several_lengths_and_teachers_and_without_reasons(make_run):
    first = add_reasons(make_run("a", facts={"teacher": {"name": "teacher", "source": "x", "sha256": "1"}}))
    second = make_run("b", facts={"teacher": {"name": "teacher", "source": "y", "sha256": "2"}})
    write_lines(second / "reasons.jsonl", [learner(it, 0, 20) for it in SETTINGS])
    with (second / "reasons.jsonl").open("a") as file:
        file.write('{"step": 5')
    page = report.page(report.gathered([first, second, make_run("c")])).read_text()
    said = Section(page)
    assert "Measured at step 20 to 40, the last of each run, on" in " ".join(said.words)
    assert "teacher of b multi: layer 0, effective rank 90.00" in said.titles
    assert "<li>c: no reasons were recorded.</li>" in page
    assert "<li>b: The last line of reasons.jsonl (line 3) is damaged" in page


@pytest.mark.slow
def test_a_study_of_arms_has_the_reasons_of_all(make_run, tmp_path):
    arms = [add_reasons(make_run(f"study/arms/{name}")) for name in ("01", "02")]
    told = [
        {"name": f"lr={lr}", "folder": f"arms/{arm.name}", "settings": {it: f"{it} lr={lr}" for it in SETTINGS}}
        for lr, arm in zip((0.1, 0.2), arms, strict=True)
    ]
    (tmp_path / "study" / "study.json").write_text(json.dumps({"name": "rates", "arms": told}))
    said = section(tmp_path / "study")
    assert ["logit lr=0.2", "multi lr=0.2", "62.8 %", "0.7270", "1.650"] in said.rows
    assert {f"{it} lr={lr}" for it in SETTINGS for lr in (0.1, 0.2)} <= set(texts(tmp_path / "study", "reasons-cka"))


def test_scores_have_no_calibration_and_rows_no_places(make_run):
    folder = make_run(task="regression", seeds=(0,))
    names = ("calibration", "teacher_calibration", "by_frequency", "by_place")
    apart = pair(0, 40, True) | {"agreement": None}
    write_lines(folder / "reasons.jsonl", [*(learner(it, 0, 40) | dict.fromkeys(names) for it in SETTINGS), apart])
    said = section(folder)
    assert said.figures == ["reasons-cka", "reasons-rank"]
    assert ["logit", "multi", "0.7170", "1.600"] in said.rows


def test_a_hostile_name_stays_text(make_run):
    name = "<b>{x}"
    folder = add_reasons(make_run(settings=(name, "multi")), settings=(name, "multi"))
    said = section(folder)
    assert "<b>{x}" in said.labels["reasons-cka"]
    assert "<b>" not in (folder / "report.html").read_text()


@pytest.mark.slow
def test_the_same_reasons_give_the_same_bytes(explained):
    def parts() -> dict[str, bytes]:
        return {
            path.name: path.read_bytes() for path in [*explained.glob("figures/reasons-*"), explained / "report.html"]
        }

    before = parts()
    write(explained)
    assert parts() == before
