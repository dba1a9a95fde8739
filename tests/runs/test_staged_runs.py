"""Staged recipes as runs: each stage is the run that it would be alone, and what one takes from another is what that left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pair
import pytest
import torch
from kernel import recipe, with_dropout
from runfiles import hashes, same_run, stop_after, tensors, untimed, weights
from safetensors.torch import load_file
from test_processes import close
from transformers import AutoModelForMaskedLM

import limbeck
from limbeck.assemble.study import Study, build_study
from limbeck.assemble.text import feed_of, read_text
from limbeck.errors import Interrupted, UserError
from limbeck.models import fingerprint
from limbeck.recipe import stages
from limbeck.running import session
from limbeck.running import stages as chain
from limbeck.system.processes import World
from limbeck.training import checkpoint

KL: dict[str, Any] = {"terms": [{"loss": "forward_kl"}]}
HINT: dict[str, Any] = {"terms": [{"loss": "mse", "tap": "hidden"}]}
BOTH: dict[str, Any] = {"terms": [{"loss": "forward_kl"}, {"loss": "mse", "tap": "hidden", "weight": 0.1}]}
SHORT = {"steps": 4, "eval_every": 4, "eval_blocks": 8, "checkpoint_every": 2, "warmup": 1}
SMALL = {"layers": 1, "hidden": 16, "heads": 4, "intermediate": 16}
HINTS = [
    {"stage": "hints", "settings": {"kl": HINT}},
    {"stage": "logits", "settings": {"kl": BOTH}, "models": {"student": {"init": "$previous"}}},
]
CHAIN = [
    {"stage": "assistant", "settings": {"a": KL, "b": HINT}},
    {"stage": "student", "settings": {"a": KL, "b": BOTH}, "models": {"teacher": "$previous", "student": SMALL}},
]


def table_of(world: Path, out: Path, listed: list[Any], dropout: float = 0.0, **more: Any) -> dict[str, Any]:
    how = SHORT | more.pop("train", {})
    whole = with_dropout(recipe(world, out, train=how, **({"settings": {"kl": KL}} | more)), dropout)
    return whole | ({"stages": listed} if listed else {})


@pytest.fixture
def go(world: Path, tmp_path: Path, fast: None) -> Callable[..., limbeck.Run]:
    """Runs a staged recipe into a folder of its own."""

    def run(out: str, listed: list[Any], dropout: float = 0.0, **more: Any) -> limbeck.Run:
        return limbeck.run(table_of(world, tmp_path / out, listed, dropout, **more), quiet=True)

    return run


@pytest.fixture(scope="module")
def hinted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """Hints, then logits, with dropout, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.report, "write", lambda folder: folder)
        out = tmp_path_factory.mktemp("runs") / "hinted"
        return limbeck.run(table_of(world, out, HINTS, 0.1), quiet=True)


@pytest.fixture(scope="module")
def chained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """Teacher, assistants, students: two settings, two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.report, "write", lambda folder: folder)
        out = tmp_path_factory.mktemp("runs") / "chained"
        return limbeck.run(table_of(world, out, CHAIN, seeds=[0, 1]), quiet=True)


def inner(run: limbeck.Run, stage: str) -> limbeck.Run:
    return limbeck.Run(run.folder / "stages" / stage)


def initial(run: limbeck.Run) -> dict[str, str]:
    return {name: told["initial_sha256"] for name, told in run.manifest["students"].items()}


def digest(folder: Path) -> str:
    return fingerprint.digest(AutoModelForMaskedLM.from_pretrained(folder, dtype="auto").named_parameters())


def study_of(table: dict[str, Any], stage: str) -> Study:
    """A stage as it is before its first update; those before it are finished."""
    plan = chain.plans_of(stages.expand(table), World())[stage]
    return build_study(plan, World(), read_text(plan, lambda line: None))


# a stage is the run that it would be alone


def test_one_stage_is_no_stage(go: Callable[..., limbeck.Run]) -> None:
    same_run(go("staged", [{"stage": "train"}]), go("plain", []))


def test_a_chain_is_two_runs_one_after_another(go: Callable[..., limbeck.Run], chained: limbeck.Run) -> None:
    """The second run names the first one's exported folder as its teacher."""
    words = [{word: value for word, value in stage.items() if word != "models"} for stage in CHAIN]
    first = go("first", [], seeds=[0, 1], **words[0])
    same_run(inner(chained, "assistant"), first)
    for setting in ("a", "b"):
        for seed in (0, 1):
            name = f"{setting}-seed{seed}"
            models = {"teacher": str(first.students[name]), "student": SMALL}
            second = go(f"second-{name}", [], models=models, seeds=[seed], only=[setting], **words[1])
            assert weights(second, name) == weights(chained, name)
            mine = [row for row in chained.metrics if row["learner"] == name]
            assert untimed(second.metrics) == untimed(mine)
            assert untimed(second.evals) == untimed([row for row in chained.evals if row["learner"] == name])


@pytest.mark.parametrize("alone", [{"seeds": [1]}, {"seeds": [0, 1], "only": ["b"]}], ids=["seed", "setting"])
def test_in_company_is_alone(go: Callable[..., limbeck.Run], chained: limbeck.Run, alone: dict[str, Any]) -> None:
    solo = go("solo", CHAIN, **alone)
    assert 0 < len(solo.students) < len(chained.students)
    for run, other in ((solo, chained), (inner(solo, "assistant"), inner(chained, "assistant"))):
        assert all(weights(run, name) == weights(other, name) for name in run.students)
        assert untimed(run.evals) == untimed([row for row in other.evals if row["learner"] in run.students])


def test_each_student_is_measured_against_its_own_teacher(chained: limbeck.Run) -> None:
    """The mean KL(assistant of the same seed and setting, student), by transformers alone."""
    plan = chain.plans_of(stages.expand(chained.folder / "recipe.yaml"), World())["student"]
    material = read_text(plan, lambda line: None)
    batches = list(feed_of(plan, material, 0, "heldout").fixed(8, batch_size=16))
    told = {row["learner"]: row["logit_loss"] for row in chained.evals if (row["step"], row["split"]) == (4, "test")}
    found = {}
    for name, place in chained.students.items():
        for other, teacher in inner(chained, "assistant").students.items():
            models = [AutoModelForMaskedLM.from_pretrained(folder).eval() for folder in (teacher, place)]
            total, count = 0.0, 0
            for batch in batches:
                chosen = batch["select"] & (batch["documents"] >= 0)
                with torch.no_grad():
                    theirs, mine = (
                        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
                        .logits[chosen]
                        .double()
                        for model in models
                    )
                logs = theirs.log_softmax(-1), mine.log_softmax(-1)
                total, count = total + (logs[0].exp() * (logs[0] - logs[1])).sum().item(), count + len(mine)
            found[name, other] = total / count
    for (name, other), value in found.items():
        assert (told[name] == pytest.approx(value, rel=1e-4)) == (name == other), (name, other)
    assert [it["name"] for it in chained.manifest["teachers"]] == [
        f"teacher@{it}" for it in ("b-seed0", "a-seed1", "b-seed1")
    ]


# students that go on


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_students_begin_as_what_the_stage_before_left(go: Callable[..., limbeck.Run], precision: str) -> None:
    """Of the same seed and setting, to the last bit, in the precision of the run."""
    settings = {"a": HINT, "b": KL}
    listed = [{"settings": settings}, {"settings": settings, "models": {"student": {"init": "$stage-1"}}}]
    run = go("on", listed, seeds=[0, 1], train={"precision": precision, "steps": 2})
    left = {name: digest(folder) for name, folder in inner(run, "stage-1").students.items()}
    assert initial(run) == left and len(set(left.values())) == 4
    crossed = [listed[0], {"settings": {"x": KL}, "models": {"student": {"init": "$previous/b"}}}]
    other = go("crossed", crossed, seeds=[0, 1], train={"precision": precision, "steps": 2})
    assert initial(other) == {f"x-seed{seed}": left[f"b-seed{seed}"] for seed in (0, 1)}


def test_projections_go_on_where_names_and_shapes_agree(
    go: Callable[..., limbeck.Run], world: Path, tmp_path: Path
) -> None:
    more = [{"loss": "mse", "tap": "embedding", "name": "words"}, {"loss": "forward_kl"}]
    first = {"stage": "hints", "settings": {"kl": {"terms": [*HINT["terms"], {"loss": "mse", "tap": "embedding"}]}}}
    hints = inner(go("on", [first, {**HINTS[1], "settings": {"kl": KL}}]), "hints")
    place = hints.folder / "checkpoints" / "step-000004" / "kl-seed0.safetensors"
    kept = {key.removeprefix("bridges."): tensor for key, tensor in load_file(place).items() if "bridges." in key}
    shapes: dict[str, dict[str, Any]] = {"same": {}, "narrower": {"hidden": 8, "heads": 2}}
    for shape in shapes.values():
        goes_on, anew = (
            study_of(
                table_of(
                    world,
                    tmp_path / "on",
                    [
                        first,
                        {
                            "settings": {"kl": {"terms": [*HINT["terms"], *more]}},
                            "models": {"student": {"init": init} | shape},
                        },
                    ],
                ),
                "stage-2",
            ).learners[0]
            for init in ("$hints", str(hints.students["kl-seed0"]))
        )
        assert goes_on.optimizer.state_dict()["state"] == {}, "the optimizer begins anew"
        for (name, mine), fresh in zip(goes_on.modules.named_parameters(), anew.modules.parameters(), strict=True):
            carried = name in kept and kept[name].shape == mine.shape
            assert torch.equal(mine, kept[name] if carried else fresh), name
            assert not carried or not torch.equal(mine, fresh), name
        names = {name for name, _ in goes_on.modules.named_parameters()}
        assert any(name.startswith("words") for name in names - kept.keys()) and names & kept.keys()


def test_born_again(go: Callable[..., limbeck.Run]) -> None:
    """A generation begins with the random parameters of its seed, as the one before did; another seed gives others."""
    again = {"models": {"teacher": "$previous"}}
    run = go("again", [{"stage": "one"}, {"stage": "two", **again}, {"stage": "three", **again, "seeds": [1]}])
    one, two = (inner(run, stage) for stage in ("one", "two"))
    assert initial(one) == initial(two) and initial(run)["kl-seed1"] != initial(one)["kl-seed0"]
    assert weights(one, "kl-seed0") != weights(two, "kl-seed0")
    assert run.manifest["teacher"]["sha256"] == digest(two.students["kl-seed0"])
    assert two.manifest["teacher"]["sha256"] == digest(one.students["kl-seed0"])
    assert run.manifest["teacher"]["source"] == "$two" and list(run.manifest["earlier"]) == ["one", "two"]
    before = hashes(run.folder)
    for place in (one.folder, two.folder, run.folder):
        assert limbeck.run(place / "recipe.yaml", quiet=True).folder == place, "what a run wrote is that run, done"
    assert hashes(run.folder) == before


# other casts


@pytest.mark.slow
def test_ensembles_and_named_teachers_of_students(go: Callable[..., limbeck.Run], world: Path) -> None:
    """An ensemble of two stages, each with the student of the same seed, beside a named one."""
    both = [{"loss": "forward_kl"}, {"loss": "mse", "tap": "hidden", "teacher": "old"}]
    models = {"teacher": {"ensemble": ["$a", "$b/second"]}, "teachers": {"old": "$a"}}
    listed = [
        {"stage": "a"},
        {"stage": "b", "settings": {"first": HINT, "second": HINT}, "models": {"teacher": "$a"}},
        {"stage": "c", "settings": {"kl": {"terms": both}}, "models": models},
    ]
    run = go("both", listed, seeds=[0, 1], train={"steps": 2})
    told = {it["name"]: it["sha256"] for it in (run.manifest["teacher"], *run.manifest["teachers"])}
    a, b = inner(run, "a").students, inner(run, "b").students
    assert told == {
        name: digest(place)
        for seed in (0, 1)
        for name, place in (
            (f"teacher-1@kl-seed{seed}", a[f"kl-seed{seed}"]),
            (f"teacher-2@second-seed{seed}", b[f"second-seed{seed}"]),
            (f"old@kl-seed{seed}", a[f"kl-seed{seed}"]),
        )
    }
    folders = {"ensemble": [str(a["kl-seed1"]), str(b["second-seed1"])]}
    said = {
        "teacher": folders,
        "teachers": {"old": str(a["kl-seed1"])},
        "student": recipe(world, world)["models"]["student"],
    }
    alone = go("alone", [], models=said, settings={"kl": {"terms": both}}, seeds=[1], train={"steps": 2})
    assert weights(alone, "kl-seed1") == weights(run, "kl-seed1")


@pytest.mark.slow
def test_peers_averages_and_paraphrasers_in_stages(go: Callable[..., limbeck.Run], world: Path, tmp_path: Path) -> None:
    """The first of some peers is whom a later stage takes, the student and not its average; a paraphraser learns again."""
    peers = {"terms": [{"loss": "forward_kl"}, {"loss": "forward_kl", "name": "mates", "teacher": "peers"}], "peers": 2}
    mean = {"terms": [{"loss": "forward_kl"}, {"loss": "mse", "tap": "hidden", "teacher": "ema"}], "ema": 0.9}
    factor = {"terms": [{"loss": "factor_transfer", "tap": "hidden", "layers": "last", "paraphraser_steps": 3}]}
    listed = [
        {"stage": "first", "settings": {"peers": peers, "mean": mean}},
        {
            "stage": "last",
            "settings": {"peers": factor, "mean": KL},
            "models": {"teacher": "$first", "student": {"init": "$first"}},
        },
    ]
    run = go("odd", listed, train={"steps": 2})
    left = inner(run, "first").students
    begun = {"peers-seed0": digest(left["peers-seed0-a"]), "mean-seed0": digest(left["mean-seed0"])}
    assert initial(run) == begun and begun["peers-seed0"] != digest(left["peers-seed0-b"])
    said = {"teacher": str(left["peers-seed0-a"]), "student": {"init": str(left["peers-seed0-a"])}}
    alone = go("alone", [], models=said, settings={"peers": factor}, train={"steps": 2})
    assert weights(alone, "peers-seed0") == weights(run, "peers-seed0")
    with pytest.raises(UserError, match=r"stages\[1\]: models.student.init: peers that begin alike stay alike"):
        stages.expand(
            table_of(
                world, tmp_path, [listed[0], {"settings": {"peers": peers}, "models": {"student": {"init": "$first"}}}]
            )
        )


# stopped, killed, damaged


@pytest.mark.parametrize("after", [1, 4, 6])
def test_interrupted_and_gone_on_is_undisturbed(
    go: Callable[..., limbeck.Run], hinted: limbeck.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Within the first stage, at its end, within the last one."""
    with monkeypatch.context() as patch:
        stop_after(patch, after)
        with pytest.raises(Interrupted):
            go("stopped", HINTS, 0.1)
    first = tmp_path / "stopped" / "stages" / "hints"
    assert (tmp_path / "stopped" / "manifest.json").exists() == (after > 3)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")} if after > 3 else {}
    run = go("stopped", HINTS, 0.1)
    same_run(run, hinted, checkpoints=False)
    same_run(inner(run, "hints"), inner(hinted, "hints"), checkpoints=False)
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items()), "a finished stage is left alone"


KILL = """
import os, signal, sys
from limbeck import cli
from limbeck.running import session
from limbeck.lab.page import report
report.write = lambda folder: folder
plain = session.Session._save_now
def at(self, record):
    if self.table.stage == "logits" and record.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(self, record)
session.Session._save_now = at
sys.argv = ["limbeck", *sys.argv[1:]]
cli.main()
"""


def test_killed_in_the_last_stage(
    world: Path, hinted: limbeck.Run, tmp_path: Path, fast: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real process that gets no chance; what is run again says which stage it leaves alone."""
    table = table_of(world, tmp_path / "killed", HINTS, 0.1)
    (tmp_path / "tiny.yaml").write_text(json.dumps(table))
    told = subprocess.run(
        [sys.executable, "-c", KILL, "run", str(tmp_path / "tiny.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.returncode == -signal.SIGKILL, told.stderr
    assert "stage 1 of 2: hints" in told.stderr and "stage 2 of 2: logits" in told.stderr
    first = tmp_path / "killed" / "stages" / "hints"
    before = hashes(first)
    run = limbeck.run(table)
    said = capsys.readouterr().err
    assert f"{first}: the stage hints is done" in said and "goes on after step 2" in said and "stage 1 of 2" not in said
    assert hashes(first) == before
    same_run(run, hinted)
    limbeck.run(table)
    assert f"{run.folder}: this run is done" in capsys.readouterr().err


@pytest.fixture
def copied(hinted: limbeck.Run, world: Path, tmp_path: Path, fast: None) -> Callable[..., dict[str, Any]]:
    """A copy of the finished run, of which some parts are taken away, and the recipe that it is of."""

    def copy(*gone: str) -> dict[str, Any]:
        out = tmp_path / "copied"
        shutil.copytree(hinted.folder, out)
        for name in gone:
            paths = [path for path in out.iterdir() if path.name != "stages"] if name == "last" else [out / name]
            for path in paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return table_of(world, out, HINTS, 0.1)

    return copy


def test_the_last_stage_alone_is_trained_again(copied: Callable[..., dict[str, Any]], hinted: limbeck.Run) -> None:
    table = copied("last")
    first = Path(table["out"]) / "stages" / "hints"
    before = hashes(first)
    same_run(limbeck.run(table, quiet=True), hinted)
    assert hashes(first) == before


def test_a_finished_run_needs_its_earlier_stages_no_more(copied: Callable[..., dict[str, Any]]) -> None:
    """But it is not taken for the result of others."""
    table = copied("stages")
    before = hashes(Path(table["out"]))
    assert limbeck.run(table, quiet=True).manifest["status"] == "done"
    with pytest.raises(UserError, match="copied: was trained after another stage hints; choose another folder"):
        limbeck.run(table, ["stages[0].train.lr=0.5"], quiet=True)
    assert hashes(Path(table["out"])) == before


def test_a_finished_stage_of_another_recipe_is_refused(copied: Callable[..., dict[str, Any]]) -> None:
    table = copied("last")
    with pytest.raises(UserError, match=r"stages/hints: holds a run of another recipe; choose another folder"):
        limbeck.run(table, ["stages[0].train.lr=0.5"], quiet=True)


STUDENT = "stages/hints/students/kl-seed0"
LAST = "stages/hints/checkpoints/step-000004"


@pytest.mark.parametrize(
    ("gone", "spoilt", "message"),
    [
        (STUDENT, None, "kl-seed0: this student of the stage hints is gone; put it back, or remove .* to train it again"),
        (f"{STUDENT}/model.safetensors", None, "kl-seed0: not a usable model folder"),
        (None, f"{STUDENT}/model.safetensors", "kl-seed0: not a usable model folder"),
        (None, f"{STUDENT}/config.json", "kl-seed0: not a usable model folder"),
        (LAST, None, "step-000004: checkpoint.json is missing or damaged; put it back"),
        (None, f"{LAST}/kl-seed0.safetensors", "step-000004: kl-seed0.safetensors: bytes differs; put it back"),
    ],
)  # fmt: skip
def test_a_finished_stage_that_is_damaged(
    copied: Callable[..., dict[str, Any]], gone: str | None, spoilt: str | None, message: str
) -> None:
    table = copied("last", *([gone] if gone else []))
    if spoilt:
        path = Path(table["out"]) / spoilt
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=message) as caught:
        limbeck.run(table, quiet=True)
    assert str(caught.value).isprintable()
    assert not (Path(table["out"]) / "manifest.json").exists(), "the last stage has not begun"


def test_a_missing_student_stops_before_any_stage_trains(go: Callable[..., limbeck.Run], tmp_path: Path) -> None:
    """The stage in between is to be trained again, and the last one takes what is gone."""
    listed = [{"stage": "a"}, {"stage": "b"}, {"stage": "c", "models": {"teacher": "$a"}}]
    run = go("three", listed, train={"steps": 1, "eval_every": 1})
    for path in [*run.folder.iterdir(), *(run.folder / "stages" / "b").iterdir()]:
        if path.name != "stages":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(run.folder / "stages" / "a" / "students")
    with pytest.raises(UserError, match="this student of the stage a is gone"):
        go("three", listed, train={"steps": 1, "eval_every": 1})
    assert not (run.folder / "stages" / "b" / "manifest.json").exists()


# several processes


@pytest.mark.slow
def test_two_processes_are_one(world: Path, tmp_path: Path, fast: None) -> None:
    """Students that go on and learn from a named student, to the tolerance of a single recipe."""
    old = {"loss": "mse", "tap": "hidden", "name": "old", "teacher": "old"}
    settings = {"kl": {"terms": [*BOTH["terms"], old]}}
    models = {"teachers": {"old": "$hints"}, "student": {"init": "$hints"}}
    listed = [HINTS[0], {"stage": "logits", "settings": settings, "models": models}]
    how = {"precision": "fp64", "batch_size": 8, "accumulate": 2}
    solo = limbeck.run(table_of(world, tmp_path / "solo", listed, train=how, seeds=[0, 1]), quiet=True)
    pair.launch(table_of(world, tmp_path / "both", listed, train=how, seeds=[0, 1]), tmp_path)
    both = limbeck.Run(tmp_path / "both")
    assert both.manifest["status"] == "done" and both.manifest["processes"] == 2
    for run, other in ((inner(both, "hints"), inner(solo, "hints")), (both, solo)):
        for name in other.students:
            for key, tensor in tensors(run, name).items():
                torch.testing.assert_close(tensor, tensors(other, name)[key], rtol=1e-10, atol=1e-10)
        close(run.metrics, other.metrics)
        close(run.evals, other.evals)


def test_the_modules_of_the_last_checkpoint_are_kept(hinted: limbeck.Run) -> None:
    """Those of a checkpoint before it would be of other weights."""
    folder = inner(hinted, "hints").folder / "checkpoints"
    last, before = (checkpoint.modules(folder / f"step-00000{step}", "kl-seed0") for step in (4, 2))
    assert last.keys() == before.keys() and not any(torch.equal(last[name], before[name]) for name in last)
