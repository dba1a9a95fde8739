"""The best weights are kept, exported and measured at the end; a student that has waited long enough ends; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kernel import recipe
from rows import CLASSES, framed, likenesses, of_task, opinions, small, table
from runfiles import same_run, stopped, tensors, untimed, weights

import limbeck
from limbeck.assemble import design
from limbeck.assemble.actors import trained_head
from limbeck.assemble.tasks import measurable
from limbeck.errors import UserError
from limbeck.lab.page import report
from limbeck.recipe import identity
from limbeck.recipe.load import load
from limbeck.recipe.stages import expand
from limbeck.running import changes
from limbeck.training import checkpoint
from limbeck.training.best import Keeper

Change = Callable[..., dict[str, Any]]
STEPS = 7


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model to begin as, and files of rows; the labels of the held-out scores follow no text."""
    folder = tmp_path_factory.mktemp("world")
    small(layers=2).save_pretrained(folder / "bert")
    framed().save_pretrained(folder / "bert")
    for name, kind, ending in (("opinions", opinions, "tsv"), ("likenesses", likenesses, "jsonl")):
        table(folder / name / f"train.{ending}", kind(48))
        table(folder / name / f"dev.{ending}", kind(21, 48))
    return folder


def said(tasks: Path, out: Path, name: str = "opinions", **train: Any) -> dict[str, Any]:
    """Two settings at a rate that soon spoils one of them; an evaluation after every update."""
    how = {"steps": STEPS, "eval_every": 1, "lr": 3e-2, "schedule": "constant", "checkpoint_every": 5}
    made = of_task(tasks, out, name, **{**how, **train})
    term = made["settings"]["a"]["terms"][0]
    made["settings"] = {"a": {"terms": [term]}, "wild": {"terms": [term | {"weight": 50.0}]}}
    made["seeds"] = [0, 1]
    return made


def curve(run: limbeck.Run, learner: str, measure: str = "accuracy", split: str = "test") -> list[float]:
    rows = [row for row in run.evals if row["learner"] == learner and row["split"] == split]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    return [(row["metrics"] or {}).get(measure, row.get(measure)) for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("measure", ["accuracy", "label_loss"])
def test_the_best_weights_are_exported_and_measured(tasks: Path, tmp_path: Path, measure: str) -> None:
    """Held against the run that keeps the last ones, and against a run that ends at the best update."""
    run = limbeck.run(said(tasks, tmp_path / "best", keep=measure), quiet=True)
    plain = limbeck.run(said(tasks, tmp_path / "last"), quiet=True)
    assert untimed(run.metrics) == untimed(plain.metrics), "training is as it was"
    found = set()
    for name in run.students:
        scores = curve(plain, name, measure)
        best = (min if measure == "label_loss" else max)(scores[1:])  # at the beginning its head is new
        step = scores.index(best, 1)  # the first of equal ones; evaluations stand after 0, 1, ... updates
        last = [row for row in run.evals if row["learner"] == name][-2:]
        assert [row["kept_step"] for row in last] == [step, step] and last[0]["step"] == STEPS
        assert curve(run, name, measure) == [*scores[:-1], best]
        for split in ("train", "test"):
            assert curve(run, name, "label_loss", split)[-1] == curve(plain, name, "label_loss", split)[step]
        short = said(tasks, tmp_path / f"short-{name}", steps=step) | {"only": [name.split("-")[0]]}
        assert weights(limbeck.run(short, quiet=True), name) == weights(run, name)
        assert f"weights: of update {step}, " in (run.students[name] / "README.md").read_text()
        found.add(step)
    assert len(found) > 1 and found != {STEPS}, "else little is shown"
    assert all(tensors(run, name).keys() == tensors(plain, name).keys() for name in run.students)


HINTS = {"terms": [{"loss": "mse", "tap": "hidden"}]}
LOGITS = {"terms": [{"loss": "forward_kl"}]}


@pytest.mark.parametrize(
    ("begins", "first", "trained"),
    [
        ("teacher", None, True),
        ("classifier", None, True),
        ("bert", None, False),
        ("random", None, False),
        ("$first", ("bert", HINTS), False),  # its classifier is whole and nobody has trained it
        ("$first", ("bert", LOGITS), True),
        ("$first", ("teacher", HINTS), True),
    ],
)
def test_the_beginning_counts_where_the_head_was_trained(
    tasks: Path, tmp_path: Path, begins: str, first: tuple[str, Any] | None, trained: bool
) -> None:
    teacher = small(layers=2, classes=3)
    teacher.config.id2label = dict(enumerate(CLASSES))
    for name in ("classifier", "bert"):
        (teacher if name == "classifier" else small(layers=2)).save_pretrained(tmp_path / name)
        framed().save_pretrained(tmp_path / name)
    made = said(tasks, tmp_path / "run", keep="best")

    def models(init: str) -> dict[str, Any]:
        init = str(tmp_path / init) if init in ("classifier", "bert") else init
        return {"teacher": str(tmp_path / "classifier"), "student": {"init": init}}

    stages = [{"stage": "first", "models": models(first[0]), "settings": {"one": first[1]}}] if first else []
    last = {"stage": "last", "models": models(begins), "settings": {"a": LOGITS}}
    plain = {word: value for word, value in made.items() if word not in ("models", "settings")}
    plans = design.chain(expand(plain | {"stages": [*stages, last]}))
    assert trained_head(plans["last"], "a") is trained


@pytest.mark.parametrize(("init", "trained"), [("random", False), ("teacher", True)])
def test_the_beginning_of_a_language_model(world: Path, tmp_path: Path, init: str, trained: bool) -> None:
    text = recipe(world, tmp_path / "run")
    text["models"]["student"] = {"layers": 2, "init": init}
    assert trained_head(design.design(load(text)), "logit") is trained


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("init", "kept"), [("$first", 0), ("bert", 1)])
def test_a_lucky_beginning_is_kept_where_it_is_no_luck(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, kept: int
) -> None:
    """Every evaluation is worse than the one before it."""
    fall = iter(range(99, 0, -1))
    monkeypatch.setattr("limbeck.measure.evaluation.metrics.scores", lambda *_: {"accuracy": next(fall) / 100})
    made = said(tasks, tmp_path / "run", keep="best", steps=2) | {"seeds": [0]}
    student, settings = made.pop("models"), {"a": made.pop("settings")["a"]}
    begins = {"student": {"init": init}} if init == "$first" else student
    run = limbeck.run(
        made
        | {
            "settings": settings,
            "stages": [{"stage": "first", "models": student}, {"stage": "last", "models": begins}],
        },
        quiet=True,
    )
    assert run.evals[-1]["kept_step"] == kept


def test_what_best_means(tasks: Path, world: Path, tmp_path: Path) -> None:
    table_of = {"opinions": "accuracy", "likenesses": "pearson"}
    assert {name: load(said(tasks, tmp_path, name, keep="best")).measure for name in table_of} == table_of
    text = recipe(world, tmp_path / "run")
    text["train"]["keep"] = "best"
    assert load(text).measure == "logit_loss"
    assert load(said(tasks, tmp_path)).measure is None


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({"keep": "pearson"}, "train.keep: this run has no pearson; choose one of accuracy, f1, matthews, label_loss"),
        ({"keep": "logit_loss"}, "train.keep: this run has no logit_loss"),
        ({"keep": "acuracy"}, "train.keep"),
        ({"patience": 2}, "train.patience: waits for a better evaluation, and keep is last; set keep to best"),
        ({"keep": "best", "patience": 0}, "train.patience"),
    ],
)
def test_words_that_do_not_fit(tasks: Path, tmp_path: Path, train: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        load(said(tasks, tmp_path / "run", **train))
    assert line in str(error.value)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_evaluations_that_choose_the_weights_stay_where_they_are(tasks: Path, tmp_path: Path, keep: str) -> None:
    before, after = (load(said(tasks, tmp_path, keep=keep, eval_every=every)) for every in (1, 2))
    (tmp_path / "recipe.yaml").write_text(identity.text([before]))
    found = changes.changed_keys(tmp_path, {"recipe_sha256": identity.identity(before)}, after)
    line = ["train.eval_every (1 then, 2 now)"]
    assert (found.harmful, found.free) == ((line, []) if keep == "best" else ([], line))


@pytest.mark.parametrize(("keep", "refused"), [("best", True), ("f1", True), ("last", False), ("agreement", False)])
def test_nothing_is_chosen_by_labels_that_are_not_there(tasks: Path, tmp_path: Path, keep: str, refused: bool) -> None:
    made = said(tasks, tmp_path / "run", keep="last") | {"models": {"teacher": "of labels", "student": {"layers": 1}}}
    made["data"]["task"] = {**made["data"]["task"], "label": None}
    made["train"]["keep"] = keep
    for setting in made["settings"].values():
        setting["terms"] = [{"loss": "forward_kl"}]
    measurable(load(made), 21)
    if refused:
        with pytest.raises(
            UserError, match=r"train\.keep: (accuracy|f1) is measured by labels, and no held-out row has"
        ):
            measurable(load(made), 0)
    else:
        measurable(load(made), 0)


@pytest.mark.usefixtures("fast")
def test_it_is_said_before_anything_is_trained(tasks: Path, tmp_path: Path) -> None:
    """A held-out file without the column of labels."""
    held = table(tmp_path / "dev.tsv", [{"sentence": row["sentence"]} for row in opinions(21, 48)])
    made = said(tasks, tmp_path / "run", keep="best")
    made["data"] |= {"corpus": str(tasks / "opinions" / "train.tsv"), "heldout": str(held)}
    with pytest.raises(UserError, match=r"no held-out row has one; .*, or set train\.keep to last"):
        limbeck.check(made)


@pytest.fixture(scope="module")
def patient(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """Two settings, two seeds, which end where three evaluations in a row are no better; with its page."""
    return limbeck.run(
        said(tasks, tmp_path_factory.mktemp("runs") / "patient", keep="label_loss", patience=3), quiet=True
    )


@pytest.mark.slow
def test_patience_ends_a_student_and_leaves_the_others(patient: limbeck.Run, tasks: Path, tmp_path: Path) -> None:
    plain = limbeck.run(said(tasks, tmp_path / "plain"), quiet=True)
    ended = patient.manifest["ended"]
    assert ended and set(ended) < set(patient.students), "some end and some do not, else little is shown"
    for name in patient.students:
        scores = curve(plain, name, "label_loss")
        waits = next((k for k in range(3, STEPS) if min(scores[: k - 2]) <= min(scores[k - 2 : k + 1])), None)
        assert ended.get(name) == waits
        mine = untimed([row for row in patient.metrics if row["learner"] == name])
        assert mine == untimed([row for row in plain.metrics if row["learner"] == name])[: waits or STEPS]
        rows = [row for row in patient.evals if row["learner"] == name and row["split"] == "test"]
        assert [row["step"] for row in rows] == [*range((waits or STEPS - 1) + 1), STEPS]
        assert rows[-1]["label_loss"] == min(scores[: (waits or STEPS) + 1])


def test_alone_is_as_in_company(patient: limbeck.Run, tasks: Path, tmp_path: Path) -> None:
    for setting in ("a", "wild"):
        solo = said(tasks, tmp_path / setting, keep="label_loss", patience=3) | {"only": [setting]}
        run = limbeck.run(solo, quiet=True)
        assert all(weights(run, name) == weights(patient, name) for name in run.students)
        assert untimed(run.evals) == untimed([row for row in patient.evals if row["setting"] == setting])


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("after", [1, 4, 5, 6])
def test_stopped_and_gone_on_is_undisturbed(
    patient: limbeck.Run, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    made = said(tasks, tmp_path / "stopped", keep="label_loss", patience=3)
    stopped(made, monkeypatch, after)
    run = limbeck.run(made, quiet=True)
    same_run(run, patient, checkpoints=False)
    assert run.manifest["ended"] == patient.manifest["ended"]


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_where_all_have_ended_the_run_is_done(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = said(tasks, tmp_path / "run", steps=400, keep="label_loss", patience=2)
    run = limbeck.run(made, quiet=True)
    ended = run.manifest["ended"]
    assert run.manifest["status"] == "done" and set(ended) == set(run.students) and max(ended.values()) < 100
    assert max(row["step"] for row in run.metrics) == max(ended.values())
    rows = [row for row in run.evals if row["step"] == 400]
    assert {row["learner"] for row in rows} == set(run.students) and all("kept_step" in row for row in rows)
    (newest, *_) = checkpoint.list_all(run.folder / "checkpoints")
    assert newest.name == f"step-{max(ended.values()):06d}"
    before = untimed(run.evals)
    assert untimed(limbeck.run(made, quiet=True).evals) == before, "run again, it is done"

    with monkeypatch.context() as patch:  # killed while it ends
        patch.setattr("limbeck.running.session.export.export", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            limbeck.run(made | {"out": str(tmp_path / "killed")}, quiet=True)
    same_run(limbeck.run(made | {"out": str(tmp_path / "killed")}, quiet=True), run, checkpoints=False)


def test_an_undefined_measure_is_never_better() -> None:
    way: Any = SimpleNamespace(best={}, waited={})
    taken: list[int] = []
    values = [None, None, 0.4, None, 0.5, 0.5, None]
    for step, value in enumerate(values):
        held: Any = SimpleNamespace(
            learner=SimpleNamespace(name="a"), trained=True, take=lambda step=step: taken.append(step)
        )
        Keeper([held], "pearson").see(step, {"a": {"metrics": {"pearson": value}}}, way)
    assert taken == [0, 2, 4], "the first is taken, whatever it is worth"
    assert way.best == {"a": {"step": 4, "score": 0.5}} and way.waited == {"a": 2}


@pytest.mark.usefixtures("fast")
def test_checkpoints_verify_where_no_measure_was_defined(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.measure import evaluation

    monkeypatch.setattr(evaluation.metrics, "scores", lambda *_: {"pearson": None, "spearman": None})
    made = said(tasks, tmp_path / "run", "likenesses", steps=3, keep="best", checkpoint_every=1)
    stopped(made, monkeypatch, 2)
    (newest, *_) = checkpoint.list_all(tmp_path / "run" / "checkpoints")
    assert checkpoint.damage(newest) is None
    assert limbeck.run(made, quiet=True).manifest["status"] == "done", "and it goes on"


@pytest.mark.usefixtures("fast")
def test_peers_end_together(tasks: Path, tmp_path: Path) -> None:
    made = said(tasks, tmp_path / "run", steps=40, keep="label_loss", patience=2)
    mutual = {"peers": 2, "terms": [{"loss": "cross_entropy"}, {"loss": "forward_kl", "teacher": "peers"}]}
    shape = {
        "family": "bert",
        "layers": 1,
        "hidden": 16,
        "heads": 4,
        "intermediate": 32,
        "tokenizer": str(tasks / "bert"),
    }
    models = {"student": shape}
    run = limbeck.run(made | {"models": models, "settings": {"mutual": mutual}, "seeds": [0]}, quiet=True)
    ended = run.manifest["ended"]
    assert set(ended) == {"mutual-seed0-a", "mutual-seed0-b"} and len(set(ended.values())) == 1


def test_the_page_says_it(patient: limbeck.Run) -> None:
    report.write(patient.folder)
    page = (patient.folder / "report.html").read_text()
    assert "those of its best evaluation on held-out data, by label loss" in page
    assert all(f"{name} waited long enough" in page for name in patient.manifest["ended"])
