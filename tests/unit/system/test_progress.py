"""What a run says while it works: never silent, no more than it must, and nothing that it computes depends on it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import kernel
import pytest
import rows
import yaml
from kernel import LOGIT, batch, frozen, lay_out, learner

from limbeck.measure import profile
from limbeck.measure.evaluation import Evaluation
from limbeck.measure.reasons import Reasons
from limbeck.running import hooks
from limbeck.system import progress
from limbeck.system.progress import Doing, doing, shown, tell
from limbeck.training.loop import Record

START = "at work (0:00)"  # before anything is said to be done
LONG = "evaluation at step 200 of a run that has a very long name"


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """40 columns wide, with colours."""
    for name, value in {"COLUMNS": "40", "LINES": "20", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


# what is said of one thing


def test_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "EVERY", 4.0)
    some = Doing("evaluation", "blocks")
    now[0] += 12
    assert str(some) == "evaluation (0:12)" and some.share is None
    some(1000, 4000)  # so many were there before
    now[0] += 10
    some(2000, 4000, "logit 1.2")
    assert str(some) == "evaluation: 2,000 of 4,000 blocks in 0:22, 0:20 left  logit 1.2" and some.share == 0.5
    now[0] += 65
    assert str(some) == "evaluation: 2,000 of 4,000 blocks in 1:27, 1:05 into the next, 0:20 left  logit 1.2"
    some(4001, 4000)
    assert str(some) == "evaluation: 4,000 of 4,000 blocks in 1:27" and some.share == 1.0
    some = Doing("tokenising", "documents")
    some(3)
    assert str(some) == "tokenising: 3 documents in 0:00" and some.share is None


def test_a_step_in_short() -> None:
    rows = [
        {"setting": "a", "seed": 0, "skipped": None, "loss": 1.0, "tokens_per_second": 100.0},
        {"setting": "a", "seed": 1, "skipped": None, "loss": 2.0, "tokens_per_second": 300.0},
        {"setting": "b", "seed": 0, "skipped": "term", "loss": None, "tokens_per_second": 100.0},
    ]
    told: list[str] = []
    now = Doing("training", "steps")
    show = hooks.shows(now, 2, told.append)
    show(Record(1, rows, {}))
    assert not told and str(now).startswith("training: 1 of 2 steps in 0:00")
    show(Record(2, rows, {}))
    assert told == ["training: 2 of 2 steps in 0:00  a 1.500  b skipped  150 tokens/s"]


# where it is said


def test_plain_lines(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    with shown():
        with doing("reading"), doing("tokenising \x1b[31m", "documents") as done:
            done(7)
            time.sleep(0.3)
        tell("told")
    lines = [line for line in capsys.readouterr().err.splitlines() if line != START]
    assert lines.pop() == "told" and 1 <= len(lines) <= 6
    assert set(lines) == {r"tokenising \x1b[31m: 7 documents in 0:00"}


def test_what_is_told_counts_as_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.4)
    with shown(), doing("reading"):
        for _ in range(12):
            tell("told")
            time.sleep(0.05)
    assert capsys.readouterr().err.splitlines() == ["told"] * 12


@pytest.mark.parametrize("how", ["quiet", "another process", "not asked for"])
def test_nobody_speaks(how: str, often: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    if how == "another process":
        monkeypatch.setenv("RANK", "1")
    if how == "not asked for":
        with doing("reading"):
            time.sleep(0.2)
    else:
        with shown(quiet=how == "quiet"), doing("reading"):
            time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_one_within_another_is_that_one(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    with shown():
        before = threading.active_count()
        with shown(), doing("reading"):
            assert threading.active_count() == before
            time.sleep(0.2)
        with shown(quiet=True), doing("in secret"):
            pass
    assert "reading (0:00)" in (said := capsys.readouterr().err) and "secret" not in said


@pytest.mark.parametrize("gone", [None, "reader", "file"])
def test_a_standard_error_that_is_gone(gone: str | None, often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said, nothing fails, and nothing waits at the end."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError if gone == "reader" else ValueError("I/O operation on closed file")

    monkeypatch.setattr(sys, "stderr", gone and Gone())
    with shown(), doing("reading"):
        time.sleep(0.2)
        begin = time.monotonic()
    assert time.monotonic() - begin < 5 and "progress" not in {thread.name for thread in threading.enumerate()}


def test_it_does_not_hold_up_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), shown(), doing("reading"):
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 5 and "progress" not in {thread.name for thread in threading.enumerate()}


# on a terminal


def screen(said: str) -> list[str]:
    """The lines, or states of a line, that a terminal was told to show."""
    assert said.count("\x1b[1A") == len(re.findall(r"\x1b\[\d+A", said)) == 1, "one line, which goes at the end"
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said)) if line]


def on_bar(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown(), doing(LONG, "blocks") as done:
        done(0, 64)
        done(32, 64)
        tell("a line that is told, and is longer than the terminal is wide")
        time.sleep(0.7)


def test_a_bar_of_40_columns(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    on_bar(terminal, monkeypatch)
    lines = screen(terminal.getvalue())
    assert "a line that is told, and is longer than the terminal is wide" in lines
    bars = [line for line in lines if "━" in line]
    assert bars and all(len(line) <= 40 for line in bars) and any("evaluation at" in line for line in bars)
    assert all(line.rstrip().endswith("…") for line in bars)


def test_colours(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = re.compile(r"\x1b\[[\d;]*(3[0-8]|9[0-7])[\d;]*m")
    on_bar(terminal, monkeypatch)
    assert coloured.search(terminal.getvalue())
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    on_bar(terminal, monkeypatch)
    assert "━" in terminal.getvalue() and not coloured.search(terminal.getvalue())


def test_a_terminal_that_cannot_draw_gets_lines(
    terminal: Terminal, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown(), doing("reading"):
        time.sleep(0.2)
    assert set(terminal.getvalue().splitlines()) - {START} == {"reading (0:00)"}


def test_what_is_piped_stays_where_it_goes(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown():
        print("a table")
    assert "a table" in sys.stdout.getvalue() and "a table" not in terminal.getvalue()  # pyright: ignore


# who counts


def counts(call: Callable[[Callable[[int, int], None]], Any]) -> list[int]:
    """What was said to be done, of one number."""
    told: list[tuple[int, int]] = []
    call(lambda count, of: told.append((count, of)))
    ((of,), said) = {of for _, of in told}, [count for count, _ in told]
    assert said == sorted(said) and said[0] == 0 and said[-1] == of
    return said


def test_an_evaluation_counts_what_is_read() -> None:
    """Two learners, each with 4 + 3 and 2 rows, and the first batch of both splits once more."""
    teacher, splits = frozen(), {"train": [batch(1, rows=4), batch(2)], "test": [batch(3, rows=2)]}
    learners = [learner(name, (LOGIT,)) for name in "ab"]
    ask = Evaluation({"a": teacher, "b": None}, splits, chunk=5)
    assert counts(lambda done: ask(learners, done)) == [0, 4, 7, 11, 14, 18, 22, 24, 26, 28, 30]


def test_reasons_count_what_is_read() -> None:
    ask = Reasons({"a": None}, [batch(1, rows=4), batch(2)], chunk=5)
    assert counts(lambda done: ask([learner("a", (LOGIT,))], done=done)) == [0, 4, 7]


def test_a_profile_says_whose_turn_it_is() -> None:
    turns: list[tuple[int, int]] = []
    models = [kernel.bert(16, 1, seed=0).eval() for _ in range(2)]
    profile.measure(models, length=4, batches=[1, 2], rounds=3, turn=lambda *turn: turns.append(turn))
    assert set(turns) == {(0, 1), (1, 1), (0, 2), (1, 2)}


# a real process

PAUSE, OFTEN = 0.7, 0.15
WORK = f"""
import sys, threading, time
from contextlib import contextmanager
from limbeck import cli
from limbeck.system import progress, signals
progress.EVERY, late, loaded = {OFTEN}, [0.0], []
def canary():
    while True:
        begin = time.monotonic()
        time.sleep(0.05)
        late[0] = max(late[0], time.monotonic() - begin - 0.05)
def slow(owner, name, times=1):
    real, left = getattr(owner, name), [times]
    def go(*given, **how):
        if left[0]:
            left[0] -= 1
            time.sleep({PAUSE})
        return real(*given, **how)
    setattr(owner, name, go)
def slowly():
    from limbeck.assemble import study
    from limbeck.distil import still
    from limbeck.lab.figures import reasons as figures
    from limbeck.lab.page import report
    from limbeck.measure import evaluation, profile, reasons
    from limbeck.running import session
    from limbeck.text import tokenise
    from limbeck.text.augment import proposals
    report.draw = figures.draw = lambda what: []  # the pause is enough
    slow(tokenise, "encode")
    slow(tokenise, "encode_rows", 2)
    slow(proposals.Proposer, "_predicted")
    slow(study, "_company")
    slow(evaluation.Evaluation, "_sums", 5)
    slow(still.Still, "step")
    slow(reasons.Reasons, "_read")
    slow(reasons.Reasons, "_label_loss")
    slow(session.export, "export")
    slow(profile, "latencies")
    slow(report, "render")
    late[0] = 0.0
@contextmanager
def at_once(plain=signals.at_once):
    with plain():
        yield
    if not loaded:
        loaded.append(True)
        slowly()
signals.at_once = at_once
threading.Thread(target=canary, daemon=True).start()
for recipe in sys.argv[1:]:
    sys.argv[1:] = ["run", recipe]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
print("late", late[0])
"""
SAID = (
    "loading torch and transformers", "tokenising ", "making the models", "first evaluation: ", "training: 0 of 2 steps",
    "evaluation at step 2: ", "reasons at step ", "the way from logit-seed0 to multi-seed0: ", "export", "profile",
    "drawing the figures", "words to put in place of others: ", "tokenising copies of the rows ",
)  # fmt: skip


def stamped(script: Path, *words: str) -> tuple[list[tuple[float, str]], float]:
    """When a process said what on standard error, and by how much its threads were late for want of a processor."""
    with subprocess.Popen(
        [sys.executable, str(script), *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr and process.stdout
        said = [(time.monotonic(), line.rstrip()) for line in process.stderr]
        out = process.stdout.read()
    assert process.returncode == 0, said
    return said, float(out.splitlines()[-1].split()[1])


@pytest.mark.slow
def test_a_run_is_never_silent(tmp_path: Path) -> None:
    """Whatever takes its time is said by name, and no gap is longer than the interval, but for what the machine is late."""
    text = kernel.recipe(lay_out(tmp_path), tmp_path / "text", train={"steps": 2, "eval_every": 2, "reasons_blocks": 2})
    for name, table in {"text": text, "task": opinions(tmp_path)}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    (tmp_path / "work.py").write_text(WORK)
    said, late = stamped(tmp_path / "work.py", str(tmp_path / "text.yaml"), str(tmp_path / "task.yaml"))
    lines = [line for _, line in said]
    assert lines[0] == SAID[0], "before anything heavy is imported"
    for name in SAID[1:]:
        assert [line for line in lines if line.startswith(name) and re.search(r"\d:\d\d", line)], name
    begun = [at for at, line in said if not line.startswith(SAID[0])]
    gap, after = max(
        (after - before, line)
        for (before, after), (_, line) in zip(pairwise(begun), said[-len(begun) + 1 :], strict=True)
    )
    assert gap < OFTEN + 3 * late + 0.3, (gap, after, late)


def opinions(folder: Path) -> dict[str, Any]:
    """A task whose rows are copied."""
    rows.small(layers=1).save_pretrained(folder / "bert")
    rows.framed().save_pretrained(folder / "bert")
    some = [{"sentence": rows.sentence(i), "label": ("no", "yes")[i % 2]} for i in range(40)]
    corpus = rows.table(folder / "opinions.jsonl", some)
    task = {"kind": "classification", "text": "sentence", "label": "label", "augment": {"copies": 3}}
    data = {"corpus": str(corpus), "heldout": 0.3, "task": task}
    return rows.recipe(data, {"student": {"init": str(folder / "bert")}}, folder / "task", "cross_entropy", steps=2)
