"""Every command in the blocks of README, the start page and the how-to pages runs, in order, as it stands there.

What differs: two updates, few blocks of evaluation, models of this disk in place of those of the Hub, one process in place of two.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kernel import answer, lay_out, recipe
from rows import sentence
from test_recipes import random_bert
from transformers import BertConfig

import limbeck
from limbeck.models import pretrained
from limbeck.text import docs

ROOT = Path(__file__).parents[2]
SHORT = [
    "train.steps=2",
    "train.eval_blocks=2",
    "train.reasons_blocks=2",
    "train.batch_size=4",
    "train.threads=1",
    "seeds=[0]",
]
LONG = 40  # words of a text
HUB = {"google-bert/bert-base-uncased": "bert"}  # name -> folder in its place
OUTSIDE = ("make ", "source ", "pip ")  # of the installation: the Makefile is looked at, test_wheel.py does the rest
LAUNCHER = "torchrun --nproc-per-node 2 -m "


def commands(page: Path) -> Iterator[str]:
    """The lines of a page's indented blocks, without what is said behind them."""
    for line in re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8")).splitlines():
        if re.match(r"    [a-z]", line) and not line.strip().startswith("- "):
            yield re.split(r"\s{2,}#", line.strip())[0]


def texts(folder: Path) -> None:
    """Some documents, in the reader's folder."""
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("\n\n".join(sentence(i, LONG) for i in range(120)), encoding="utf-8")


def readers_recipe(folder: Path) -> None:
    """README's recipe, as it stands there."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (folder / "mine.yaml").write_text(block, encoding="utf-8")


def rows(folder: Path) -> None:
    """A task: no row stands in two of its files."""
    said = recipe(folder, folder / "runs" / "mine")
    said["data"] = {
        "corpus": "train.tsv",
        "heldout": "dev.tsv",
        "task": {"kind": "classification", "text": "text"},
        "max_length": 12,
    }
    said["settings"] = {"multi": {"terms": [{"loss": "cross_entropy"}]}}
    said["models"] = {"student": {"init": str(folder / "bert")}}
    for start, name in enumerate(("train", "dev", "test")):
        lines = [f"{sentence(20 * start + i, LONG)}\t{'ab'[i % 2]}" for i in range(20)]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    (folder / "mine.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")


def trained(folder: Path) -> None:
    """The run of the task, and its student as a model from elsewhere."""
    run = limbeck.run("mine.yaml", SHORT, quiet=True)
    (folder / "some").mkdir()
    (folder / "some" / "folder").symlink_to(run.students["multi-seed0"].absolute())


def vocabulary(folder: Path) -> None:
    """The teacher that comes with limbeck in place of a larger one, and some text of each kind."""
    for name in ("TEACHER", "wiki-minilm-mlm"):
        (folder / name).symlink_to(pretrained.place(pretrained.EMBEDDED))
    for name in ("train.tsv", "SST-2/train_a.tsv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("sentence\n" + "\n".join(sentence(i, LONG) for i in range(20)), encoding="utf-8")
    (folder / "wiki").mkdir()
    for start, name in enumerate(("wiki/train.txt", "other.txt", "dev.txt")):
        written = [sentence(40 * start + i, LONG) for i in range(40)]
        (folder / name).write_text("\n\n".join(written), encoding="utf-8")


def profiled(folder: Path) -> None:
    """A teacher and a student."""
    for name in ("TEACHER", "STUDENT"):
        (folder / name).symlink_to(folder / "bert")
    (folder / "runs" / "mine" / "students").mkdir(parents=True)
    (folder / "runs" / "mine" / "students" / "multi-seed0").symlink_to(folder / "bert")


def minilm(folder: Path) -> None:
    """A random model in the place of BERT's, of a shape that can be cut to the student's."""
    random_bert(
        BertConfig(num_hidden_layers=6, hidden_size=384, intermediate_size=1536), folder / "minilm", large=False
    )


TINYBERT = [
    *("stages[0].models.teacher=minilm", "stages[1].models.student.init=minilm", "stages[0].data.corpus=corpus.txt"),
    *("data.corpus=train.tsv", "data.heldout=dev.tsv", "data.task.text=text", "train.eval_every=1"),
]


def run_page(
    page: str, prepare: list[Callable[[Path], None]], folder: Path, patch: pytest.MonkeyPatch, capsys: Any, *more: str
) -> list[str]:
    """Runs the commands of a page in a folder; what was run."""
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HOME", str(folder / "home"))  # of the token cache
    patch.chdir(folder)
    lay_out(folder)
    random_bert(BertConfig(num_hidden_layers=4, hidden_size=32, num_attention_heads=4), folder / "bert", large=False)
    patch.setattr(docs, "documents", lambda: [(f"python/{i}.py", sentence(i, LONG)) for i in range(120)])
    for each in prepare:
        each(folder)
    done = []
    for line in commands(ROOT / page):
        if line.startswith(OUTSIDE):
            if line.startswith("make "):
                assert f"\n{line.split()[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), line
            continue
        said, _, into = line.removeprefix(LAUNCHER).partition(" > ")
        for name, place in HUB.items():
            said = said.replace(name, place)
        program, verb, *words = shlex.split(said)
        assert program == "limbeck", line
        words += {"run": [*SHORT, *more], "check": [*SHORT, *more], "profile": ["--rounds", "1"]}.get(verb, [])
        status, out, log = answer(patch, capsys, verb, *words)
        assert status == 0, f"{line}\n{log}"
        if into:
            Path(into).write_text(out, encoding="utf-8")
        done.append(line)
    return done


@pytest.mark.parametrize(("page", "prepare"), [("README.md", [texts, readers_recipe]), ("docs/start.md", [texts])])
def test_the_first_pages(
    page: str,
    prepare: list[Callable[[Path], None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = run_page(page, prepare, tmp_path, monkeypatch, capsys)
    assert any(line.startswith("limbeck run ") for line in done) and len(done) >= 5
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


PAGES: dict[str, tuple[list[Callable[[Path], None]], list[str]]] = {
    "tasks": ([rows, trained], []),
    "profile": ([profiled], []),
    "export": ([rows, trained], []),
    "compression": ([], []),
    "sensitivity": ([rows, trained], []),
    "vocabulary": ([vocabulary], []),
    "tinybert": ([rows, minilm], TINYBERT),
}


def test_no_page_is_left_out() -> None:
    with_commands = {page.stem for page in (ROOT / "docs" / "how-to").glob("*.md") if list(commands(page))}
    assert with_commands == set(PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_how_to_page(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, more = PAGES[page]
    assert run_page(f"docs/how-to/{page}.md", prepare, tmp_path, monkeypatch, capsys, *more)
