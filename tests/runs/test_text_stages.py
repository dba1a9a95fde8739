"""A stage that writes a text: the stages after it train on that, as on a file that lay there; several texts in every batch."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from kernel import answer, recipe
from runfiles import same_run, stop_after

import limbeck
from limbeck.assemble.teacher_caches import Library
from limbeck.assemble.text import read_text
from limbeck.errors import Interrupted, UserError
from limbeck.lab.data.run import read
from limbeck.recipe import identity
from limbeck.recipe.data import Data, Mixture
from limbeck.recipe.stages import expand
from limbeck.running import stages as chain
from limbeck.system.processes import World
from limbeck.text.heldout import beside, separate

MINE = '''
from limbeck.assemble.kinds import RunningText
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


class Told(Echo):
    def facts(self):
        raise RuntimeError("no facts")


class Torn(TextWriter):
    def rows(self, plan):
        yield {"text": "half a pair \\ud800"}


class Words(TextWriter):
    def rows(self, plan):
        yield "no table"


class Empty(TextWriter):
    pass


class Short(TextWriter):
    """The training documents as they are."""

    def rows(self, plan):
        return ({"text": text} for part, _, text in separate(plan.data) if part == "train")


class Wrapped(RunningText):
    def feed(self, plan, blocks, seed, part):
        return Around(super().feed(plan, blocks, seed, part))


class Around:
    def __init__(self, feed):
        self.feed, self.batch_size, self.masks = feed, feed.batch_size, feed.masks

    def __len__(self):
        return len(self.feed)


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
    assert "writes a text" in told and "data.corpus: $echo is not written yet" in told
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
        ([ECHO], {"data": {"mixture": {"echo": {"corpus": "$echo", "share": 0.3}}}}, r"data\.mixture\.echo\.share \(0\.3\)"),
        ([ECHO], {"data": {"corpus": "$echo", "heldout": "gone.txt"}}, r"gone\.txt: no such file or folder"),
        ([ECHO], {"data": {"mixture": {"gone": {"corpus": "gone.txt", "share": 0.5}}}}, r"gone\.txt: no such file or folder"),
        ([{"stage": "echo", "write": "writers_of_mine:Empty"}], {}, r"write: writers_of_mine:Empty: it has no rows; write `def rows"),
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
    assert left == {"manifest.json", "recipe.yaml"} and not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.usefixtures("fast")
def test_a_text_that_was_not_written_to_its_end_is_written_again(world: Path, tmp_path: Path) -> None:
    """Killed between the text and the word that it is done: nobody trains on what lies there."""
    said = table_of(world, tmp_path / "run", ECHO, data={"corpus": "$echo"})
    run = limbeck.run(said, quiet=True)
    manifest = run.folder / "stages/echo/manifest.json"
    told = json.loads(manifest.read_text())
    shutil.rmtree(run.folder / "students")
    for left in (
        "manifest.json",
        "checkpoints",
        "metrics.jsonl",
        "evals.jsonl",
        "reasons.jsonl",
        "evals",
        "recipe.yaml",
    ):
        path = run.folder / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for left in run.folder.iterdir():
        if left.name != "stages":
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    manifest.write_text(json.dumps(told | {"status": "running"} | {"written": None}))
    text_of(run).write_text('{"text": "what was there before"}\n')
    again = limbeck.run(said, quiet=True)
    assert (
        again.manifest["data"]["sha256"]
        and json.loads(manifest.read_text())["written"]["sha256"] == told["written"]["sha256"]
    )


@pytest.mark.usefixtures("fast")
def test_a_writer_that_was_changed_is_named(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = table_of(world, tmp_path / "run", ECHO, data={"corpus": "$echo"})
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            limbeck.run(said, quiet=True)
    code = Path(sys.modules["writers_of_mine"].__file__ or "")
    code.write_text(MINE + "\n")
    sys.modules.pop("writers_of_mine")
    with pytest.raises(
        UserError, match="stages/echo: the code of a change, an actor, a kind or a writer of text changed"
    ):
        limbeck.run(said, quiet=True)
    code.write_text(MINE)
    sys.modules.pop("writers_of_mine")
    text_of(limbeck.Run(tmp_path / "run")).unlink()
    with pytest.raises(UserError, match="stages/echo: the text that it wrote changed"):
        limbeck.run(said, quiet=True)
    assert limbeck.run(said, quiet=True, force=True).manifest["status"] == "done"


def test_what_the_corpus_holds_out_is_trained_on_in_no_text(tmp_path: Path) -> None:
    """By a share, in files of its own, and both; whatever files the other text has."""
    lines = [f"document {number} of many words" for number in range(400)]
    plain, other, dev = tmp_path / "plain.txt", tmp_path / "other", tmp_path / "withdev"
    plain.write_text("\n\n".join(lines))
    for folder, held in ((other, ["something else"]), (dev, lines[:40])):
        folder.mkdir()
        (folder / "train.txt").write_text("\n\n".join(lines))
        (folder / "dev.txt").write_text("\n\n".join(held))
    for corpus, mixed in ((plain, other), (f"{dev} + {plain}", plain), (f"{dev} + {plain}", other), (dev, plain)):
        for fold in ("test", "validation"):
            data = Data(corpus=str(corpus), heldout=0.1, fold=fold)  # pyright: ignore[reportArgumentType]
            said = Mixture(corpus=str(mixed), share=0.5)
            heldout = {text for part, _, text in separate(data) if part in ("heldout", "both")}
            kept = {text for part, _, text in separate(beside(data, said)) if part == "train"}
            test = {
                text for part, _, text in separate(Data(corpus=str(corpus), heldout=0.1)) if part in ("heldout", "both")
            }
            assert heldout and kept and not kept & (heldout | test), (corpus, mixed, fold)


def test_a_recipe_of_a_run_is_read_back(world: Path, tmp_path: Path) -> None:
    said = expand(table_of(world, tmp_path / "run", ECHO, data={"corpus": "$echo"}))
    (tmp_path / "recipe.yaml").write_text(identity.text(said))
    again = expand(str(tmp_path / "recipe.yaml"))
    assert [identity.identity(one) for one in again] == [identity.identity(one) for one in said]


def test_the_order_of_a_mixture_is_of_the_cache() -> None:
    facts: dict[str, Any] = {"mixture": {"a": {"sha256": "1"}, "b": {"sha256": "2"}}}
    other = {"mixture": dict(reversed(facts["mixture"].items()))}
    keys = [Library(cast(Any, None), cast(Any, None), it, bool, print).text for it in (facts, other, {})]
    assert len(set(keys)) == 3


@pytest.mark.usefixtures("fast")
def test_nothing_of_a_mixture_needs_to_be_held_out(world: Path, tmp_path: Path) -> None:
    short = {"stage": "echo", "write": "writers_of_mine:Short"}
    mixture = {"echo": {"corpus": "$echo", "share": 0.5}}
    run = limbeck.run(table_of(world, tmp_path / "run", short, data={"mixture": mixture}), quiet=True)
    assert run.manifest["data"]["mixture"]["echo"]["heldout_documents"] == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"equal": "seconds"}, r"equal: counted before anything runs, and data\.corpus is the text of the stage echo; leave equal out"),
        ({"equal": "flops"}, r"equal: counted before anything runs"),
        ({"out": "a + b"}, r"out: ' \+ ' joins corpora, and a stage writes one there; choose another folder"),
    ],
)  # fmt: skip
def test_what_the_whole_cannot_say(world: Path, tmp_path: Path, words: dict[str, Any], line: str) -> None:
    said = table_of(world, tmp_path / "run", ECHO, data={"corpus": "$echo"}) | words
    for ask in (limbeck.check, limbeck.run):
        with pytest.raises(UserError, match=line):
            ask(said)


def test_a_feed_of_ones_own_is_not_mixed(world: Path, tmp_path: Path) -> None:
    corpus = str(world / "corpus.txt")
    said = recipe(world, tmp_path / "run", only=["multi"]) | data(
        world, corpus, kind="writers_of_mine:Wrapped", mixture={"more": {"corpus": corpus, "share": 0.5}}
    )
    with pytest.raises(UserError, match=r"data\.kind: Around is a feed of your own, with which no text can be mixed"):
        limbeck.check(said)


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_a_student_is_evaluated_by_the_recipe_of_its_stages(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = limbeck.run(table_of(world, tmp_path / "run", ECHO, data={"corpus": "$echo"}), quiet=True)
    student = str(run.students["multi-seed0"])
    status, out, err = answer(monkeypatch, capsys, "eval", student, "--task", str(run.folder / "recipe.yaml"))
    assert status == 0 and "perplexity" in out, err
    with pytest.raises(
        UserError, match="stages/echo: this stage wrote a text and has no page; give the folder of a stage"
    ):
        read(run.folder / "stages" / "echo")


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
    assert any("is not written yet" in line for line in limbeck.check(staged))
