"""Runs that are stopped, killed, damaged, changed or finished, and run again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel import WORDS, answer, lay_out, recipe, with_dropout
from runfiles import hashes, same_run, same_state, stop_after, untimed, weights

import limbeck
from limbeck import api
from limbeck.errors import Failed, Interrupted, UserError
from limbeck.running import changes, session
from limbeck.system import files
from limbeck.training import checkpoint

# stopping and going on


@pytest.mark.parametrize("after", [1, 4, 5])
def test_interrupted_and_gone_on_is_undisturbed(
    train: Callable[..., limbeck.Run], through: limbeck.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, after)
        with pytest.raises(Interrupted, match=f"step {after}"):
            train("stopped", 0.1)
    folder = tmp_path / "stopped"
    assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted"
    assert (folder / "checkpoints" / f"step-{after:06d}").is_dir() and not (folder / "students").exists()
    gone_on = train("stopped", 0.1)
    assert gone_on.manifest["status"] == "done"
    assert gone_on.manifest["students"] == through.manifest["students"]
    assert [row["step"] for row in gone_on.metrics[::2]] == [1, 2, 3, 4, 5, 6]
    same_run(gone_on, through, checkpoints=False)  # the stop saved one more


class Killed(Exception):
    """What a killed process does not get to handle."""


@pytest.mark.parametrize("at", [1, 5])
def test_killed_and_gone_on_is_undisturbed(
    train: Callable[..., limbeck.Run], through: limbeck.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Killed after the lines of a step were written and before anything was saved: no line stands there twice."""

    def die(self: Any, record: Any) -> None:
        if record.step == at:
            raise Killed
        plain(self, record)

    plain = session.Session._save_now
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_save_now", die)
        with pytest.raises(Killed):
            train("killed", 0.1)
    folder = tmp_path / "killed"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lea')  # the line during which the power went
    (folder / "evals").mkdir(exist_ok=True)
    (folder / "evals" / "step-000099.parquet").write_bytes(b"of a step that is trained again")
    same_run(train("killed", 0.1), through)


def test_a_damaged_checkpoint_costs_steps_and_no_bits(
    train: Callable[..., limbeck.Run],
    through: limbeck.Run,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            train("damaged", 0.1)
    folder = tmp_path / "damaged"
    (folder / "checkpoints" / "step-000005" / "multi-seed0.safetensors").write_bytes(b"")
    limbeck.run(with_dropout(recipe(world, folder), 0.1))
    said = capsys.readouterr().err
    assert "step-000005" in said and "goes on after step 4" in said
    assert not (folder / "checkpoints" / "step-000005").exists(), "a damaged one stands where a sound one should"
    same_run(api.Run(folder), through)


def test_killed_while_finishing(
    train: Callable[..., limbeck.Run], through: limbeck.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is saved, the run is not yet called done: going on finishes it, with its numbers."""

    def die(self: Any, status: str, begin: float) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_status", die)
        with pytest.raises(Killed):
            train("late", 0.1)
    late = train("late", 0.1)
    assert late.manifest["status"] == "done"
    same_run(late, through)
    cards = [
        (run.students["multi-seed0"] / "README.md").read_text().partition("## Recipe")[0] for run in (late, through)
    ]
    assert cards[0] == cards[1], "the model card has its numbers"


def test_killed_while_the_run_directory_is_made(
    train: Callable[..., limbeck.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before, between and after the first two files: running again trains the run."""
    plain = files.write_text

    def die(path: Path, text: str) -> None:
        if path.name == dies_at:
            path.with_name(f".{path.name}.1.tmp").write_text(text[:10])
            raise Killed
        plain(path, text)

    for dies_at in ("manifest.json", "recipe.yaml"):
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_text", die)
            with pytest.raises(Killed):
                train(f"early-{dies_at}")
        again = train(f"early-{dies_at}")
        assert again.manifest["status"] == "done"
        assert (again.folder / "recipe.yaml").is_file()


def test_changed_inputs_are_not_gone_on_with(
    train: Callable[..., limbeck.Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that has begun refuses another text or teacher, and says what else has changed."""
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_finish", lambda self, begin: None)
        run = train("changed")
    began = run.manifest
    for table, name, what in (("data", "sha256", "the text"), ("teacher", "sha256", "the teacher")):
        files.write_json(run.folder / "manifest.json", began | {table: began[table] | {name: "0"}})
        with pytest.raises(UserError, match=f"{what} changed since this run began"):
            train("changed")
    found = changes.changes(began, began | {"versions": {"torch": "1.0"}, "processes": 7})
    assert found == ([], ["versions", "processes"], [])


def test_a_finished_run_run_again_does_nothing(finished: limbeck.Run, world: Path) -> None:
    before = hashes(finished.folder)
    times = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    again = limbeck.run(recipe(world, finished.folder, seeds=[0, 1]), quiet=True)
    assert again.folder == finished.folder and hashes(finished.folder) == before
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == times


def test_a_finished_run_without_its_page_gets_it(finished: limbeck.Run, world: Path) -> None:
    """Killed after it was called done and before the page was written."""
    page = finished.report.read_bytes()
    finished.report.unlink()
    limbeck.run(recipe(world, finished.folder, seeds=[0, 1]), quiet=True)
    assert finished.report.read_bytes() == page


def test_the_folder_of_another_recipe_is_left_alone(finished: limbeck.Run, world: Path, tmp_path: Path) -> None:
    before = hashes(finished.folder)
    with pytest.raises(UserError, match="another recipe"):
        limbeck.run(recipe(world, finished.folder), quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match="out=DIR"):
        limbeck.run(recipe(world, tmp_path / "mine"), quiet=True)
    assert hashes(finished.folder) == before and [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_loss_that_explodes_ends_with_one_line(train: Callable[..., limbeck.Run], tmp_path: Path) -> None:
    wild = [{"loss": "mse", "tap": "hidden", "name": "far", "weight": 1e38}]
    with pytest.raises(
        Failed, match=r"setting wild, seed 0: stopped at step \d, not finite 2 times in a row: (term|gradient)"
    ):
        train("wild", settings={"wild": {"terms": wild}}, train={"lr": 1e18, "clip": None, "skips": 2})
    assert not list((tmp_path / "wild").glob("students/*"))


# a changed recipe


def stopped_at(
    monkeypatch: pytest.MonkeyPatch, train: Callable[..., limbeck.Run], out: str, step: int, **more: Any
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted):
            train(out, 0.1, **more)


FREE = {
    "question": {"question": "what else?"},
    "report_to": {"report_to": []},
    "train.eval_every": {"train": {"eval_every": 2}},
    "train.checkpoint_every": {"train": {"checkpoint_every": 5}},
}


@pytest.mark.parametrize("word", FREE)
def test_a_word_that_no_bit_depends_on_may_change(
    word: str,
    train: Callable[..., limbeck.Run],
    through: limbeck.Run,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = {"report_to": ["tensorboard"]} if word == "report_to" else {}
    if first:
        monkeypatch.setattr(session, "Trackers", lambda *_: Silent())
        monkeypatch.setattr("limbeck.running.trackers.require", lambda names: None)
    stopped_at(monkeypatch, train, "run", 3, **first)
    capsys.readouterr()
    gone_on = limbeck.run(with_dropout(recipe(world, tmp_path / "run", **FREE[word]), 0.1))
    assert f"{word}" in (said := capsys.readouterr().err) and "it goes on, in the same bits" in said
    assert all(weights(gone_on, name) == weights(through, name) for name in through.students)
    assert untimed(gone_on.metrics) == untimed(through.metrics)
    (entry,) = gone_on.manifest["changed"]
    assert entry["when"].startswith("20") and word in entry["what"][0] and "forced" not in gone_on.manifest


class Silent:
    """A tracker."""

    def __call__(self, record: Any) -> None: ...

    def evaluated(self, rows: Any, step: int) -> None: ...

    def finish(self) -> None: ...


HARMFUL: dict[str, tuple[dict[str, Any], str]] = {
    "train.lr": ({"train": {"lr": 2e-2}}, r"train\.lr \(0\.01 then, 0\.02 now\)"),
    "train.steps": ({"train": {"steps": 8}}, r"train\.steps \(6 then, 8 now\)"),
    "a weight": (
        {
            "settings": {"logit": {"terms": [{"loss": "forward_kl", "temperature": 2.0, "weight": 3.0}]}},
            "only": ["logit"],
        },
        r"settings\.logit\.terms\[0\]\.weight \(1\.0 then, 3\.0 now\)",
    ),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_a_word_that_makes_it_another_run_is_named_and_needs_force(
    what: str, train: Callable[..., limbeck.Run], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, said = HARMFUL[what]
    begins = {"only": ["logit"]} if "only" in more else {}
    stopped_at(monkeypatch, train, "run", 3, **begins)
    before = hashes(tmp_path / "run")
    with pytest.raises(UserError, match=said) as error:
        train("run", 0.1, **more)
    assert "another recipe" in str(error.value) and "--force" in str(error.value)
    assert hashes(tmp_path / "run") == before, "a refused run changes nothing"
    table = with_dropout(recipe(world, tmp_path / "run", **more), 0.1)
    forced = limbeck.run(table, quiet=True, force=True)
    assert forced.manifest["status"] == "done"
    (entry,) = forced.manifest["forced"]
    assert any(what.removeprefix("a ") in it for it in entry["what"]) and entry["when"].startswith("20")
    assert entry["recipe_sha256"] != forced.manifest["recipe_sha256"]
    assert (forced.folder / "checkpoints" / "step-000003").exists() or len(forced.metrics) >= 6
    again = limbeck.run(table, quiet=True)
    assert again.manifest == forced.manifest, "it is the run of the new recipe now"


def test_force_does_not_reach_over_other_shapes(
    train: Callable[..., limbeck.Run], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(monkeypatch, train, "run", 3)
    table = with_dropout(recipe(world, tmp_path / "run"), 0.1)
    table["models"]["student"]["intermediate"] = 40
    with pytest.raises(UserError, match=r"intermediate \(32 then, 40 now\).*--force"):
        limbeck.run(table, quiet=True)
    with pytest.raises(UserError, match="holds no logit-seed0 of this shape"):
        limbeck.run(table, quiet=True, force=True)


def test_forced_data_are_recorded(
    train: Callable[..., limbeck.Run], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(monkeypatch, train, "run", 3)
    path = tmp_path / "run" / "manifest.json"
    began = files.read_json(path)
    files.write_json(path, began | {"data": began["data"] | {"sha256": "0"}})
    table = with_dropout(recipe(world, tmp_path / "run"), 0.1)
    with pytest.raises(UserError, match=r"the text changed since this run began; put it back.*--force"):
        limbeck.run(table, quiet=True)
    forced = limbeck.run(table, quiet=True, force=True)
    assert [it["what"] for it in forced.manifest["forced"]] == [["the text"]]
    assert forced.manifest["data"] == began["data"]


def test_a_finished_run_is_not_forced_into_another(finished: limbeck.Run, world: Path) -> None:
    before = hashes(finished.folder)
    with pytest.raises(UserError, match=r"train\.lr"):
        limbeck.run(recipe(world, finished.folder, seeds=[0, 1], train={"lr": 1.0}), quiet=True, force=True)
    assert hashes(finished.folder) == before


@pytest.fixture
def own(tmp_path: Path, fast: None) -> tuple[Path, dict[str, Any]]:
    """A world of its own, and the recipe of a finished run there."""
    said = recipe(lay_out(tmp_path), tmp_path / "run", only=["logit"], train={"steps": 1})
    limbeck.run(said, quiet=True)
    return tmp_path, said


def test_a_finished_run_whose_text_is_another(
    own: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named as for a run that is gone on with; what is the same is neither read twice nor tokenised."""
    world, said = own
    (world / "tiny.yaml").write_text(json.dumps(said))
    corpus, files = world / "corpus.txt", hashes(world / "run")

    def run(*words: str, command: str = "run") -> tuple[int, str]:
        status, _, err = answer(monkeypatch, capsys, command, str(world / "tiny.yaml"), *words)
        return status, err.strip().splitlines()[-1]

    with monkeypatch.context() as patch:
        for place in ("text.unchanged._hashes", "assemble.design.design", "system.processes.World.join"):
            patch.setattr(f"limbeck.{place}", lambda *_: pytest.fail("more than a look at the files"))
        os.utime(corpus)
        status, line = run()
        assert status == 0 and "this run is done" in line
    text = corpus.read_text()
    corpus.write_text(f"{text}\n\n\n")
    assert run()[0] == 0, "the documents are the same"
    corpus.write_text(f"{text}\n\n{WORDS[0]} {WORDS[1]} {WORDS[2]}")
    changed = (
        "the text changed since this run began; put it back, choose another folder with out=DIR, or go on all the same"
    )
    for command in ("run", "check"):
        status, line = run(command=command)
        assert status == 2 and f"run: {changed} with --force" in line
    assert run("--force") == (0, f"{world / 'run'}: this run is done; its report is {world / 'run' / 'report.html'}")
    corpus.unlink()
    status, line = run()
    assert status == 2 and f"the text ({corpus}: no such file or folder) changed since this run began" in line
    corpus.write_text(text)
    assert run()[0] == 0 and hashes(world / "run") == files


def test_a_finished_run_whose_teacher_is_another(own: tuple[Path, dict[str, Any]]) -> None:
    world, said = own
    weights, teacher = world / "teacher" / "model.safetensors", world / "teacher"
    content = weights.read_bytes()
    weights.write_bytes(content)
    limbeck.run(said, quiet=True)
    weights.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="run: the teacher changed since this run began; put it back"):
        limbeck.run(said, quiet=True)
    shutil.rmtree(teacher)
    with pytest.raises(UserError, match=rf"the teacher \({teacher}: no such folder\) changed since"):
        limbeck.run(said, quiet=True)
    limbeck.run(said, quiet=True, force=True)


def test_a_finished_run_of_an_earlier_version(own: tuple[Path, dict[str, Any]]) -> None:
    """Its manifest tells the text by its documents alone."""
    world, said = own
    path = world / "run" / "manifest.json"
    began = files.read_json(path)
    del began["weights"], began["data"]["corpora_sha256"]
    files.write_json(path, began)
    limbeck.run(said, quiet=True)
    (world / "corpus.txt").write_text((world / "corpus.txt").read_text()[:-60])
    with pytest.raises(UserError, match="the text, the held-out text changed since this run began"):
        limbeck.run(said, quiet=True)


def test_a_longer_run_goes_on_from_a_finished_one(train: Callable[..., limbeck.Run]) -> None:
    """Under a constant rate it is the run that was long from the beginning, but for the evaluation at the old end."""
    how: dict[str, Any] = {"schedule": "constant", "warmup": 2}
    train("run", 0.1, train=how)
    longer = train("run", 0.1, train=how | {"steps": 9})
    long = train("long", 0.1, train=how | {"steps": 9})
    assert longer.manifest["status"] == "done" and "forced" not in longer.manifest
    assert all(weights(longer, name) == weights(long, name) for name in long.students)
    assert untimed(longer.metrics) == untimed(long.metrics)
    same_state(longer, long)
    with pytest.raises(UserError, match=r"train\.steps \(9 then, 10 now\), train\.schedule"):
        train("run", 0.1, train={"warmup": 2, "steps": 10})


def test_fewer_updates_than_there_are(
    train: Callable[..., limbeck.Run], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(monkeypatch, train, "run", 5)
    table = with_dropout(recipe(world, tmp_path / "run", train={"steps": 4}), 0.1)
    with pytest.raises(UserError, match="has 5 updates already"):
        limbeck.run(table, quiet=True, force=True)


def test_a_lost_recipe_is_no_reason_to_go_on_with_another(
    train: Callable[..., limbeck.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(monkeypatch, train, "run", 3)
    (tmp_path / "run" / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"another recipe.*what changed: the recipe"):
        train("run", 0.1, train={"lr": 2e-2})
    assert train("run", 0.1).manifest["status"] == "done"


def test_the_flags(
    world: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(recipe(world, tmp_path / "run", only=["logit"])))
    status, out, err = answer(monkeypatch, capsys, "run", str(path), "--resume")
    assert (status, out) == (2, "") and "nothing has begun there" in err and "leave --resume out" in err
    assert not (tmp_path / "run").exists()
    assert answer(monkeypatch, capsys, "run", str(path))[0] == 0
    assert "this run is done" in answer(monkeypatch, capsys, "run", str(path), "--resume")[2]
    assert "--force" in answer(monkeypatch, capsys, "run", str(path), "train.lr=0.5")[2]


# no room


def test_no_room_is_said_before_the_start(
    train: Callable[..., limbeck.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
        with pytest.raises(UserError, match=r"writes about \d+\.\d MiB more, and 1\.0 MiB are free there; make room"):
            train("run")
    assert not (tmp_path / "run").exists()


def test_the_estimate_is_near_what_is_written(
    train: Callable[..., limbeck.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.running import disk_space

    said: list[int] = []
    plain = disk_space.needed
    monkeypatch.setattr(disk_space, "needed", lambda study, folder: said.append(plain(study, folder)) or said[-1])
    run = train("run")
    place = run.folder / "checkpoints" / "step-000006"
    written = 3 * files.size(place) + sum((p / "model.safetensors").stat().st_size for p in run.students.values())
    assert written * 0.8 < said[0] - disk_space.PAGE - disk_space.LINE * 6 * 2 < written * 1.05


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("where", ["save_file", "append_lines"])
def test_a_disk_that_fills_up(
    number: int,
    where: str,
    train: Callable[..., limbeck.Run],
    through: limbeck.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place: Any = checkpoint if where == "save_file" else files
    plain, calls = getattr(place, where), []

    def fails(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) > 5:
            raise OSError(number, os.strerror(number))
        plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, where, fails)
        with pytest.raises(UserError, match=rf"{os.strerror(number)}; the run writes about .* MiB more: make room"):
            train("full", 0.1)
    sound = checkpoint.list_all(tmp_path / "full" / "checkpoints")
    assert sound and not any(map(checkpoint.damage, sound))
    assert not list((tmp_path / "full").rglob("*.tmp"))
    gone_on = train("full", 0.1)
    same_run(gone_on, through)
    same_state(gone_on, through)


def test_another_error_of_the_system_flies(train: Callable[..., limbeck.Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(OSError, match="Input/output"):
        train("broken")


# a real signal

KILL = """
import os, signal, sys
from limbeck import cli
from limbeck.running import session
plain = session.Session._record
def at(self, record):
    plain(self, record)
    if record.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
session.Session._record = at
sys.argv = ["limbeck", *sys.argv[1:]]
cli.main()
"""


def test_sigterm_is_exit_status_75_and_the_command_goes_on(
    world: Path, tmp_path: Path, train: Callable[..., limbeck.Run], through: limbeck.Run
) -> None:
    """A real process, a real signal; what it left is gone on with here."""
    table = with_dropout(recipe(world, tmp_path / "signalled"), 0.1)
    (tmp_path / "tiny.yaml").write_text(json.dumps(table))
    told = subprocess.run(
        [sys.executable, "-c", KILL, "run", str(tmp_path / "tiny.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.returncode == 75, told.stderr
    assert "step 3" in told.stderr and "Traceback" not in told.stderr and told.stdout == ""
    gone_on = train("signalled", 0.1)
    assert all(weights(gone_on, name) == weights(through, name) for name in through.students)
    assert untimed(gone_on.metrics) == untimed(through.metrics) and untimed(gone_on.evals) == untimed(through.evals)
