"""A stage that writes a text: the stages after it train on that, as on a file that lay there; several texts in every batch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel import recipe
from runfiles import same_run, stop_after

import limbeck
from limbeck.assemble.text import read_text
from limbeck.errors import Interrupted, UserError
from limbeck.recipe.stages import expand
from limbeck.running import stages as chain
from limbeck.system.processes import World

MINE = '''
from limbeck.assemble.text_writers import TextWriter
from limbeck.text.heldout import separate


class Echo(TextWriter):
    """Every document of the stage's own training text, twice."""

    def rows(self, plan):
        for part, _, text in separate(plan.data):
            if part == "train":
                yield {"text": text + " " + text}

    def facts(self):
        return {"times": 2}


class Nothing(TextWriter):
    def rows(self, plan):
        return iter(())


class Fails(TextWriter):
    def rows(self, plan):
        yield {"text": "one"}
        raise RuntimeError("no more")


class NoWriter:
    ...
'''
ECHO = {"stage": "echo", "write": "writers_of_mine:Echo"}


@pytest.fixture(autouse=True)
def mine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("code")
    (folder / "writers_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("writers_of_mine", None)


def table_of(world: Path, out: Path, *listed: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A staged recipe whose last stage trains one setting; `more` are words of that stage."""
    whole = recipe(world, out, only=["multi"])
    return whole | {"stages": [*listed, {"stage": "train", **more}]}


def text_of(run: limbeck.Run) -> Path:
    return run.folder / "stages" / "echo" / "text.jsonl"


@pytest.mark.usefixtures("fast")
def test_a_text_is_written_and_trained_on(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = table_of(world, tmp_path / "run", ECHO, data={"corpus": "$echo"})
    told = "\n".join(limbeck.check(said))
    assert "writes a text" in told and "$echo, which is not written yet: echo writes it" in told
    with pytest.raises(UserError, match=r"\$echo: the stage echo has not written its text yet; run the recipe"):
        read_text(chain.plans_of(expand(said), World())["train"], lambda line: None)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            limbeck.run(said, quiet=True)
    written = (tmp_path / "run/stages/echo/text.jsonl").read_bytes()
    run = limbeck.run(said, quiet=True)
    assert text_of(run).read_bytes() == written, "the stage was done"
    rows = [json.loads(line) for line in written.decode().splitlines()]
    assert rows and all(
        row["text"][: len(row["text"]) // 2] == row["text"][len(row["text"]) // 2 + 1 :] for row in rows
    )
    stage = limbeck.Run(run.folder / "stages" / "echo").manifest
    assert stage["status"] == "done" and stage["written"]["rows"] == len(rows) and stage["written"]["times"] == 2
    assert stage["own"].keys() == {"writers_of_mine:Echo"}
    assert run.manifest["data"]["corpus"] == "$echo"
    by_hand = tmp_path / "by-hand.jsonl"
    by_hand.write_bytes(written)
    same_run(
        run, limbeck.run(recipe(world, tmp_path / "alone", only=["multi"]) | data(world, by_hand), quiet=True), False
    )
    again = limbeck.check(said)
    assert any(line.startswith("text ") and "$echo:" in line for line in again)


def data(world: Path, corpus: Any, **more: Any) -> dict[str, Any]:
    return {"data": recipe(world, world)["data"] | {"corpus": str(corpus)} | more}


@pytest.mark.usefixtures("fast")
def test_a_text_that_was_changed_is_named(world: Path, tmp_path: Path) -> None:
    said = table_of(world, tmp_path / "run", ECHO, data={"corpus": f"{world / 'corpus.txt'} + $previous"})
    run = limbeck.run(said, quiet=True)
    text_of(run).write_text('{"text": "another one"}\n')
    with pytest.raises(UserError, match=r"stages/echo: the text that it wrote changed since this run began"):
        limbeck.run(said, quiet=True)


def test_a_mixture_of_three_texts(world: Path, tmp_path: Path) -> None:
    mixture = {
        "echo": {"corpus": "$echo", "share": 0.25},
        "more": {"corpus": str(world / "corpus.txt"), "share": 0.5, "labels": False},
    }
    run = limbeck.run(table_of(world, tmp_path / "run", ECHO, data={"mixture": mixture}), quiet=True)
    assert set(run.manifest["data"]["mixture"]) == {"echo", "more"}
    page = run.report.read_text()
    assert "mixed with echo" in page and "25 % of every batch" in page and "wrote" in page
    card = (run.students["multi-seed0"] / "README.md").read_text()
    assert "- mixed with more:" in card


@pytest.mark.parametrize(
    ("listed", "words", "line"),
    [
        ([], {"data": {"corpus": "$echo"}}, r"data\.corpus: '\$echo' is the text of a stage, and none is before; name a corpus"),
        ([ECHO], {"data": {"corpus": "$eco"}}, r"data\.corpus: '\$eco': no stage before is named so; did you mean 'echo'\?"),
        ([ECHO, {"stage": "one"}], {"data": {"heldout": "$one"}},
         r"data\.heldout: '\$one': this stage trains students and writes no text; name \$echo"),
        ([ECHO], {"models": {"student": {"init": "$echo"}}}, r"models\.student\.init: '\$echo': this stage writes a text and trains nobody"),
        ([ECHO], {"write": "writers_of_mine:Echo"}, r"stages\[1\]\.write: nothing trains on this text; add a stage that does"),
        ([ECHO | {"settings": {"a": {"terms": [{"loss": "forward_kl"}]}}}], {}, r"stages\[0\]: write: a stage trains settings or writes a text"),
        ([{"stage": "echo", "write": "writers_of_mine:NoWriter"}], {},
         r"stage echo: write: writers_of_mine:NoWriter: there is no class NoWriter of limbeck's TextWriter there"),
    ],
)  # fmt: skip
def test_what_cannot_be(world: Path, tmp_path: Path, listed: list[Any], words: dict[str, Any], line: str) -> None:
    said = table_of(world, tmp_path / "run", *listed, **words)
    for ask in (limbeck.check, limbeck.run):
        with pytest.raises(UserError, match=line):
            ask(said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Nothing", "writers_of_mine:Nothing: it wrote no row"),
        ("Fails", r"its rows fail \(RuntimeError: no more\); mend it"),
    ],
)
@pytest.mark.usefixtures("fast")
def test_a_writer_that_fails_leaves_nothing(world: Path, tmp_path: Path, name: str, line: str) -> None:
    stage = {"stage": "echo", "write": f"writers_of_mine:{name}"}
    with pytest.raises(UserError, match=line):
        limbeck.run(table_of(world, tmp_path / "run", stage, data={"corpus": "$echo"}), quiet=True)
    left = {path.name for path in (tmp_path / "run/stages/echo").iterdir()}
    assert left <= {"manifest.json", "recipe.yaml", ".lock"}
    run = limbeck.run(table_of(world, tmp_path / "other", ECHO, data={"corpus": "$echo"}), quiet=True)
    assert run.manifest["status"] == "done"


def test_a_task_of_written_rows_names_its_classes(world: Path, tmp_path: Path) -> None:
    """Its rows are not there when the student is designed."""
    table = recipe(world, tmp_path / "run", settings={"labels": {"terms": [{"loss": "cross_entropy"}]}})
    shape = table["models"]["student"] | {"family": "bert", "tokenizer": str(world / "teacher")}
    said = {"corpus": "$echo", "heldout": 0.2, "task": {"kind": "classification", "text": "text"}}
    echo = ECHO | {"data": {"corpus": str(world / "corpus.txt")}}
    staged = table | {"models": {"student": shape}, "stages": [echo, {"stage": "train", "data": said}]}
    del staged["data"]
    with pytest.raises(UserError, match=r"stage train: data\.task\.classes: missing; name them"):
        limbeck.check(staged)
    said["task"]["classes"] = ["no", "yes"]
    assert any("which is not written yet" in line for line in limbeck.check(staged))
