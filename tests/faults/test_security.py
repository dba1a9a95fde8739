"""What SECURITY.md promises: no code but one's own, no pickle, no network unless a recipe names the Hub, nothing out of its folder,
nothing on a page, in a table or on a terminal but text."""

from __future__ import annotations

import ast
import html.parser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kernel import answer, lay_out, recipe
from rows import table

import limbeck
from limbeck.errors import UserError
from limbeck.lab.data import joined
from limbeck.lab.page import results as tables
from limbeck.lab.page import tables as evidence
from limbeck.models import pretrained
from limbeck.recipe import plain_yaml
from limbeck.recipe.arms import asked
from limbeck.recipe.load import load
from limbeck.recipe.models import Source
from limbeck.system import hub
from limbeck.text import readers
from limbeck.text.corpora import fingerprint

SOURCES = sorted(Path(limbeck.__file__).parent.rglob("*.py"))
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "torch.load",
    "torch.save",
    "eval",
    "exec",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pd.read_pickle",
    "os.system",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def words(call: ast.Call) -> dict[str | None, str]:
    return {word.arg: ast.unparse(word.value) for word in call.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_source_has_no_pickle_and_runs_no_text(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not {name.split(".")[0] for name in names} & UNSAFE
    for name, call in calls(path):
        said = words(call)
        assert name not in CALLS
        if name in ("np.load", "np.save"):
            assert said.get("allow_pickle") == "False", f"line {call.lineno}"
        if name == "yaml.load":
            assert said.get("Loader") in ("_Loader", "_Fast")
        assert said.get("trust_remote_code", "False") == "False"
        assert said.get("shell", "False") == "False"
        assert said.get("autoescape", "True") == "True"


def test_yaml_is_read_as_plain_values() -> None:
    for loader in (plain_yaml._Loader, plain_yaml._Fast):
        assert issubclass(loader, yaml.constructor.SafeConstructor)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """A run whose question is hostile, of a classifier whose classes are."""
    folder = tmp_path_factory.mktemp("done")
    return limbeck.run(recipe(world, folder / "run", train={"steps": 2, "eval_every": 1}, question=HOSTILE), quiet=True)


HOSTILE = "<script>alert(1)</script> ]]> --> & \"'\x1b[31m"


def test_what_a_run_writes_is_no_pickle(done: limbeck.Run, world: Path) -> None:
    """Every file, by what it is: JSON, YAML, safetensors, numbers without objects, pages and pictures."""
    endings = {
        ".json",
        ".jsonl",
        ".yaml",
        ".safetensors",
        ".parquet",
        ".npy",
        ".bin",
        ".html",
        ".svg",
        ".png",
        ".md",
        ".lock",
        "",
    }
    files = [path for folder in (done.folder, world / "cache") for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20 and {path.suffix for path in files} <= endings
    for path in files:
        head = path.read_bytes()[:512]
        assert not head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")), path
        assert path.suffix != ".npy" or b"'|O'" not in head


# code and network

ALONE = """
import socket, sys
def forbidden(*words, **more):
    raise AssertionError("the network was asked")
for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, forbidden)
socket.create_connection = socket.getaddrinfo = forbidden
from limbeck import cli
for recipe in sys.argv[1:]:
    sys.argv = ["limbeck", "run", recipe]
    try:
        cli.main()
        print("ends 0")
    except SystemExit as end:
        print("ends", end.code or 0)
"""


def alone(folder: Path, *recipes: str, **environment: str) -> tuple[list[str], list[str]]:
    """The lines that `limbeck run` writes of some recipes, in a process that may open no socket."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *recipes],
        cwd=folder,
        env=known | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.slow
def test_a_run_asks_no_network(world: Path, tmp_path: Path) -> None:
    """Without HF_HUB_OFFLINE: nothing in the recipe names the Hub."""
    said = recipe(world, tmp_path / "run", train={"steps": 1, "eval_every": 1})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    out, log = alone(tmp_path, "mine.yaml")
    assert out[-1] == "ends 0", log
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_offline_is_offline(world: Path, tmp_path: Path) -> None:
    """Recipes that name the Hub, with HF_HUB_OFFLINE: no socket is opened, one line is said of each."""
    for place in ("models.teacher", "data.corpus", "data.heldout"):
        said = recipe(world, tmp_path / "run")
        table, _, word = place.partition(".")
        said[table][word] = "nobody/nothing" if table == "models" else "hub:nobody/nothing"
        (tmp_path / f"{word}.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    out, log = alone(tmp_path, "teacher.yaml", "corpus.yaml", "heldout.yaml", HF_HUB_OFFLINE="1")
    assert out == ["ends 2"] * 3, log
    log = [line for line in log if line.startswith("limbeck: error")]
    assert len(log) == 3 and all("nobody/nothing" in line and "network was asked" not in line for line in log), log
    assert not (tmp_path / "run").exists()


def test_a_data_set_of_the_hub_is_read_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the cache and the rows are of the same commit, however often the branch moves in between."""
    import datasets
    import huggingface_hub

    asked_for: list[str] = []
    commits = iter("abc")

    class Info:
        @property
        def sha(self) -> str:
            return next(commits) * 40

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision, timeout: Info())
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, revision, **__: asked_for.append(revision) or [{"text": "x"}]
    )
    hub.data_set.cache_clear()
    spec = "hub:org/moving"
    commit = fingerprint(spec)[-1]
    assert [text for _, text in readers.read_hub(spec, readers.Wanted({"field": "text"}, "data"))] == ["x"]
    assert asked_for == [commit] == ["a" * 40]


@pytest.mark.parametrize(
    "name", ["pandas", "json", "text", "../x", "./x", "/tmp", "~/x", "a/b/c", "a/..", "hf://datasets/a/b"]
)
def test_a_data_set_is_no_folder_and_no_reader(name: str) -> None:
    """What the library would read from this disk, some of it as a pickle, is no name of the Hub."""
    with pytest.raises(UserError, match="not the name of a data set"):
        readers.hub_name(f"hub:{name}@{'a' * 40}")


def test_a_folder_does_not_stand_in_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    with pytest.raises(UserError, match="org/name is also a folder here; name it without hub:"):
        readers.hub_name("hub:org/name")


def test_a_model_of_the_hub_is_read_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision is asked once, and the commit is what everything is fetched at."""
    import huggingface_hub

    class Info:
        sha = "c" * 40

    class Kind:
        fetched: list[Any] = []  # noqa: RUF012

        @classmethod
        def from_pretrained(cls, where: str, **how: Any) -> str:
            cls.fetched.append((where, how["revision"], how["trust_remote_code"]))
            return where

    hub.model.cache_clear()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, revision, timeout: Info())
    for _ in range(2):
        pretrained._fetch(Kind, Source(source="org/name", revision="main"))
    hub.model.cache_clear()
    assert Kind.fetched == [("org/name", "c" * 40, False)] * 2


def test_the_manifest_says_what_was_read(done: limbeck.Run) -> None:
    said = done.manifest
    assert re.fullmatch("[0-9a-f]{64}", said["teacher"]["sha256"]) and "revision" in said["teacher"]
    for name in ("sha256", "heldout_sha256", "tokenizer_sha256"):
        assert re.fullmatch("[0-9a-f]{64}", said["data"][name])


# names and folders

NAMES = [
    "../x",
    "..",
    ".",
    "/x",
    "a/b",
    "a\\b",
    ".x",
    "",
    "x" * 65,
    "a b",
    "a\nb",
    "a\0b",
    "<script>",
    "a\x1b[31m",
    "${x}",
    "a:b",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["settings", "stage", "name", "teachers", "term"])
def test_names_are_no_paths(place: str, name: str) -> None:
    """Of settings, stages, studies, teachers and terms: folders and lines are named by them."""
    term: dict[str, Any] = {"loss": "forward_kl"}
    said: dict[str, Any] = {"name": "x", "models": {"teacher": "embedded"}, "settings": {"a": {"terms": [term]}}}
    load(said)
    if place == "settings":
        said["settings"] = {name: said["settings"]["a"]}
    elif place == "teachers":
        said["models"]["teachers"] = {name: "embedded"}
    elif place == "term":
        term["name"] = name
    else:
        said[place] = name
    with pytest.raises(UserError, match=r"is no name|has no|is empty"):
        asked(said).arms()


def test_a_student_of_a_stage_is_no_path() -> None:
    settings = {"a": {"terms": [{"loss": "forward_kl"}]}}
    for source in ("$first/../x", "$../x", "$first/a/../b", "$first//etc"):
        stages = [{"stage": "first"}, {"models": {"student": {"init": source}}}]
        said = {"name": "x", "models": {"teacher": "embedded"}, "settings": settings, "stages": stages}
        with pytest.raises(UserError, match=r"no stage before is named so|trained a and no"):
            asked(said).arms()


def test_arms_lie_in_numbered_folders() -> None:
    """Whatever the values are that they are named by."""
    from limbeck.recipe.arms import placed_all

    said: dict[str, Any] = {
        "name": "x",
        "models": {"teacher": "embedded"},
        "settings": {"a": {"terms": [{"loss": "forward_kl"}]}},
    }
    found = placed_all(asked(said | {"vary": {"question": ["../../x", "/etc"]}}).arms(), Path("runs/x"))
    assert [arm.last.run_dir for arm in found] == ["runs/x/arms/01", "runs/x/arms/02"]


# pages, tables, terminals


class Page(html.parser.HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_of_a_hostile_question(done: limbeck.Run) -> None:
    text = done.report.read_text(encoding="utf-8")
    found = Page(text)
    assert found.tags.count("script") == 1 and "<script>alert" not in text
    assert not [key for key, _ in found.attributes if key.startswith("on")]


CLASSES = ["<img src=x onerror=alert(1)>", "a|b\\input{/etc/passwd}$^~\x1b[31m`[x](javascript:y)"]


@pytest.fixture(scope="module")
def hostile(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over rows whose classes, file and question are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [{"sentence": f"ba be {'bi' if i % 2 else 'bo'} bu", "label": CLASSES[i % 2]} for i in range(60)]
    rows = [row | {"sentence": f"{row['sentence']} {'du ' * (i // 2 % 30)}"} for i, row in enumerate(rows)]
    path = table(folder / "rows" / "<b onload=x>&.jsonl", rows)
    said = recipe(world, folder / "run", train={"steps": 2, "eval_every": 1}, question=HOSTILE)
    said["data"] = {"corpus": str(path), "heldout": 0.3, "max_length": 10, "task": {"kind": "classification"}}
    said["data"]["cache"] = str(folder / "cache")
    said["models"] = {"student": said["models"]["student"] | {"family": "bert", "tokenizer": str(world / "teacher")}}
    said["settings"] = {
        "labels": {"terms": [{"loss": "cross_entropy"}]},
        "more": {"terms": [{"loss": "cross_entropy", "weight": 2.0}]},
    }
    return limbeck.run(said, quiet=True).folder


def test_the_page_of_hostile_rows(hostile: Path) -> None:
    text = (hostile / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert found.tags.count("script") == 1 and not {"img", "b", "input"} & set(found.tags)
    assert not [key for key, _ in found.attributes if key.startswith("on")]
    assert "&lt;img src=x onerror" in text, "it is there, as text"
    assert not [c for c in text if not c.isprintable() and c not in "\n\xa0"]
    for path in (hostile / "figures").glob("*.svg"):
        assert not {"script", "img", "b"} & set(Page(path.read_text(encoding="utf-8")).tags)


def test_the_tables_of_hostile_rows(hostile: Path) -> None:
    run = joined.gather(hostile)
    evidence.write(run)
    latex = (hostile / "tables" / "results.tex").read_text(encoding="utf-8")
    assert "\\input" not in latex and "\\textbackslash{}input\\{/etc/passwd\\}" in latex
    markdown = (hostile / "tables" / "results.md").read_text(encoding="utf-8")
    assert "<img" not in markdown and "[x](" not in markdown
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "a class adds no column"
    text = tables.as_text(tables.rows(run))
    assert text.replace("\n", "").isprintable()


def test_nothing_reaches_the_terminal_but_text(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what check, run, watch and report print."""
    monkeypatch.chdir(hostile.parent)
    shutil.copy(hostile / "recipe.yaml", "mine.yaml")
    for command in (["check", "mine.yaml", "out=other"], ["run", "mine.yaml"], ["watch", "run"], ["report", "run"]):
        status, said, log = answer(monkeypatch, capsys, *command)
        assert status == 0, log
        assert (said + log).replace("\n", "").isprintable(), command


def test_the_run_of_a_stranger_is_text_too(
    done: limbeck.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names in a run directory that somebody sent: no recipe could have them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(done.folder, tmp_path / "run")
    for path in (*(tmp_path / "run").glob("*.jsonl"), tmp_path / "run" / "manifest.json"):
        text = path.read_text(encoding="utf-8").replace("logit-seed0", "\\u001b[31m[bold]<script>\\u0007")
        path.write_text(text.replace('"logit"', '"\\u001b[31m<script>\\u000b"'), encoding="utf-8")
    for command in (["watch", "run"], ["report", "run", "--csv"]):
        status, said, log = answer(monkeypatch, capsys, *command)
        assert status == 0, log
        assert (said + log).replace("\n", "").isprintable(), command
    assert Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).tags.count("script") == 1


def test_what_it_promises_is_written_down() -> None:
    text = (Path(limbeck.__file__).parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    for promise in ("pickle", "remote code", "network", "HF_HUB_OFFLINE", "revision", "escape", "folder", "Report"):
        assert promise in text
