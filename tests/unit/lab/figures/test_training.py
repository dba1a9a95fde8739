from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from limbeck.lab.data.run import read
from limbeck.lab.figures import style
from limbeck.lab.figures.captions import CAPTIONS
from limbeck.lab.figures.training import FIGURES, draw, logit_loss_test, multi_loss_terms

DRAWN = True

FIVE = ["multi-loss-terms", "logit-loss-train", "logit-loss-test", "gradient-norm", "gradient-norm-layers"]


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes(make_run):
    first, second = draw(make_run("a")), draw(make_run("b"))
    assert [path.name for path in first] == [path.name for path in second]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    again = draw(first[0].parents[1])
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in second]


def test_the_five_pictures_exist_as_svg_and_png(make_run):
    folder = make_run()
    names = {path.name for path in draw(folder)}
    assert {f"{name}.{kind}" for name in FIVE for kind in ("svg", "png")} <= names
    assert {path.name for path in (folder / "figures").iterdir()} == names  # no temporary file is left
    for name in FIVE:
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ElementTree.parse(folder / "figures" / f"{name}.svg")


def test_every_figure_has_a_caption_and_units(make_run):
    assert list(CAPTIONS) == list(FIGURES)
    run = read(make_run())
    for name, make in FIGURES.items():
        figure = make(run)
        if figure is not None:
            labels = [axes.get_ylabel() for axes in figure.axes]
            assert all(labels), name
            assert "step (optimizer updates)" in [axes.get_xlabel() for axes in figure.axes], name


def test_the_line_of_the_test_loss_is_the_mean_of_the_file(make_run):
    run = read(make_run())
    figure = logit_loss_test(run)
    assert figure is not None
    line = figure.axes[0].lines[1]
    seeds = [run.series("logit_loss", "multi", seed, "test")[1] for seed in (0, 1)]
    np.testing.assert_allclose(np.asarray(line.get_ydata()), np.mean(seeds, axis=0))
    assert np.asarray(line.get_xdata()).tolist() == [0, 10, 20, 30, 40]
    assert line.get_color() == style.colour(run.settings, "multi")


def test_terms_are_drawn_weighted_and_only_for_settings_of_several(make_run):
    run = read(make_run())
    figure = multi_loss_terms(run)
    assert figure is not None
    left, right = figure.axes
    assert left.get_title("left") == "multi"
    logit = np.asarray(left.lines[3].get_ydata())
    np.testing.assert_allclose(logit, 0.5 * run.series("terms.logit", "multi", 0)[1])
    outline = np.asarray(right.collections[-1].get_paths()[0].vertices)
    assert outline[:, 1].max() == pytest.approx(1.0)
    assert multi_loss_terms(read(make_run("single", settings=("logit",)))) is None


def test_a_run_without_a_teacher_shows_its_labels(make_run):
    names = {path.stem for path in draw(make_run(teacher=False))}
    assert names >= {"label-loss-train", "label-loss-test", "label-accuracy-train", "label-accuracy-test"}
    assert not any(name.startswith("logit-") for name in names)


@pytest.mark.parametrize("name", ["_hidden", "$x_1$", "<script>", "a" * 80, "per cent %s {0}"])
def test_any_name_of_a_setting_reaches_the_legend(make_run, name):
    figure = logit_loss_test(read(make_run(settings=("logit", name))))
    assert figure is not None
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert name.strip()[:30] in legend.get_texts()[1].get_text()


def test_a_run_of_one_step_and_one_seed_without_evaluations(make_run):
    folder: Path = make_run(seeds=(0,))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))
    (folder / "evals.jsonl").write_text("")
    assert {path.stem for path in draw(folder)} >= {"gradient-norm", "gradient-norm-layers"}


def test_a_diverged_learner_leaves_a_gap_and_no_warning(make_run):
    folder: Path = make_run()
    text = (folder / "evals.jsonl").read_text()
    late = [line for line in text.splitlines() if '"step": 40' in line and '"multi"' in line]
    for line in late:
        text = text.replace(line, line.replace('"logit_loss": ', '"logit_loss": null, "was": '))
    (folder / "evals.jsonl").write_text(text)
    figure = logit_loss_test(read(folder))
    assert figure is not None
    assert np.asarray(figure.axes[0].lines[1].get_xdata()).tolist() == [0, 10, 20, 30]
    assert draw(folder)


@pytest.mark.slow
def test_a_setting_that_was_never_finite_is_left_out(make_run):
    folder: Path = make_run()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["setting"] == "multi":
            row |= {"terms": dict.fromkeys(row["terms"]), "loss": None, "grad_norm_layers": [None] * 3}
            row |= {"logit_loss": None, "grad_norm_mean": None}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {path.stem for path in draw(folder)}
    assert "multi-loss-terms" not in names
    assert "gradient-norm-layers" in names


def test_an_axis_can_be_bounded_anew() -> None:
    """First by values that ask for a log scale, then by all values, which do not."""
    axes = Figure().subplots()
    style.value_axis(axes, 0.01, 0.4, "share")
    style.value_axis(axes, 0.0, 0.4, "share")
    assert axes.get_yscale() == "linear"
    assert axes.get_ylabel() == "share"
