"""The command line as a stranger meets it: exit statuses, one line for a mistake, nothing left behind, no waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from kernel import answer, lay_out, recipe

from limbeck.errors import Interrupted
from limbeck.recipe.load import built_in
from limbeck.system import hub

Command = Callable[..., tuple[int, str, str]]
HEAVY = ("torch", "transformers", "datasets", "accelerate", "matplotlib", "numpy")
LIGHT = f"""
import sys
from limbeck.cli import main
try:
    main()
except SystemExit as end:
    print(end.code or 0, [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a corpus, a recipe over them, and things to stumble over."""
    folder = lay_out(tmp_path_factory.mktemp("world"))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe(folder, folder / "run")), encoding="utf-8")
    (folder / "a-file").write_text("x", encoding="utf-8")
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("mine", encoding="utf-8")
    for name, text in {"empty": "", "blank": " \n\n \n", "short": "ba be\n\nbi bo", "one": "ba " * 500}.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def limbeck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world: Path) -> Command:
    """Runs a command in this process: (status, standard output, standard error)."""
    monkeypatch.chdir(world)

    def command(*words: str) -> tuple[int, str, str]:
        return answer(monkeypatch, capsys, *words)

    return command


MISTAKES = [
    (["models.teacher=nope"], "nope: no such model folder"),
    (["models.teacher=a-file"], "a-file: no such model folder"),
    (["models.teacher=taken"], "taken: not a usable model folder"),
    (["models.student.tokenizer=taken"], "taken: not a usable model folder"),
    (["models.student.family=gpt2"], "a gpt2 student cannot learn from a bert teacher"),
    (["models.student.init=nowhere"], "nowhere: no such model folder"),
    (
        ["models.student.init=teacher", "models.student.intermediate=9999"],
        "models.student.intermediate: 9999 is more than the",
    ),
    (
        ["models.student.hidden=18", "models.student.heads=3"],
        "settings.multi.attention: 3 student heads and 4 teacher heads cannot be grouped; set models.student.heads to",
    ),
    (["models.student.heads=3"], "tiny.yaml: models.student.heads: 3 heads do not divide the width 16"),
    (["models.student.kv_heads=2"], "models.student.kv_heads: a bert model has none of its own"),
    (["data.corpus=nope.txt"], "nope.txt: no such file or folder"),
    (["data.corpus=empty.txt"], "empty.txt: no text in this corpus"),
    (["data.corpus=blank.txt"], "blank.txt: no text in this corpus"),
    (
        ["data.corpus=short.txt", "data.heldout=one.txt"],
        "short.txt: the training part has 4 tokens, fewer than the 8 of one block",
    ),
    (["data.corpus=one.txt"], "one.txt: no document to hold out"),
    (["data.heldout=nope.txt"], "nope.txt: no such file or folder"),
    (["data.max_length=33"], "data.max_length: 33 tokens are more than the 32 positions of the bert model"),
    (["train.batch_size=4", "train.accumulate=3"], "train.batch_size: 4 blocks cannot be split into 3 micro-batches"),
    (["settings.multi.terms.2.layers={1: 9}"], "settings.multi.hidden: layers: the teacher has no layer 9"),
    (["settings.multi.terms.3.layers={0: 0}"], "settings.multi.attention: layer 0 is the embedding and has no scores"),
    (["settings.multi.terms.2.layers=skip", "models.student.layers=3"], "4 layers over 3; use layers: uniform"),
    (
        ["settings.multi.terms.1.projection=none"],
        "settings.multi.embedding: widths 16 and 24 differ; set projection to",
    ),
    (["settings.multi.terms.1.loss=mes"], "unknown loss 'mes'; did you mean 'mse'?"),
    # terms: what a loss compares, and where
    (["settings.multi.terms.2.tap=scores"], "terms[2].tap: the loss mse compares embedding or hidden or ffn or pooled"),
    (
        ["settings.x={terms: [{loss: contrastive}]}"],
        "tap: the loss contrastive compares pooled, not logits; change tap",
    ),
    (["settings.x={terms: [{loss: patient, tap: ffn}]}"], "compares hidden or embedding or pooled, not ffn; change"),
    (["settings.x={terms: [{loss: relation_kl, tap: hidden}]}"], "compares query or key or value, not hidden; change"),
    (["settings.x={terms: [{loss: mse, tap: hiden}]}"], "settings.x.terms[0].tap: unknown tap 'hiden'; did you mean"),
    (
        ["settings.x={terms: [{loss: mse, tap: [hidden, ffn]}]}"],
        "compares one tap; name one, and write a term for each",
    ),
    (["settings.x={terms: [{loss: relation_kl, tap: [query, pooled]}]}"], "several taps at once must all have layers"),
    (["settings.multi.terms.1.layers=last"], "layers: the tap embedding has no layers; leave the key out"),
    (["settings.x={terms: [{loss: cka, tap: pooled, layers: last}]}"], "the tap pooled has no layers; leave the key"),
    (
        ["settings.x={terms: [{loss: cka, tap: ffn, layers: all-to-on}]}"],
        "layers: unknown layer map 'all-to-on'; did you",
    ),
    (["settings.x={terms: [{loss: cka, tap: ffn, layers: {0: 1}}]}"], "layer 0 is the embedding and has no ffn; map"),
    (["settings.x={terms: [{loss: flow, tap: hidden, layers: last}]}"], "map at least two, such as layers: uniform"),
    (
        ["settings.x={terms: [{loss: mse, tap: hidden}, {loss: cka, tap: hidden}]}"],
        "two terms are named 'hidden'; give",
    ),
    # terms: widths and heads
    (
        ["settings.x={terms: [{loss: mse, tap: ffn, projection: none}]}"],
        "settings.x.ffn: widths 32 and 48 differ; set projection",
    ),
    (
        ["settings.x={terms: [{loss: flow, tap: hidden, projection: none}]}"],
        "widths 16 and 24 differ; set projection to each or",
    ),
    (
        ["settings.x={terms: [{loss: cka, tap: hidden, projection: each}]}"],
        "projection: the loss cka needs no projection; leave the",
    ),
    (
        [
            "models.student.hidden=18",
            "models.student.heads=3",
            "settings={x: {terms: [{loss: attention_mse, tap: probs}]}}",
        ],
        "settings.x.probs: 3 student heads and 4 teacher heads cannot be grouped; set models.student.heads to a divisor",
    ),
    (
        [
            "models.student.hidden=18",
            "models.student.heads=3",
            "settings={x: {terms: [{loss: relation_kl, tap: query}]}}",
        ],
        "4 relation heads do not divide the widths of query, 18 (student) and 24 (teacher); set relation_heads to one of "
        "1, 2, 3, 6",
    ),
    (
        ["settings.x={terms: [{loss: relation_kl, tap: [query, key], relation_heads: 3}]}"],
        "settings.x.relation: 3 relation heads do not divide the widths of query, 16 (student) and 24 (teacher); set "
        "relation_heads to one of 1, 2, 4, 8",
    ),
    # terms: hyper-parameters (values of the wrong kind: test_terms)
    (
        ["settings.logit.terms.0.temprature=2"],
        "temprature: unknown key for the loss forward_kl; did you mean 'temperature'?",
    ),
    (
        ["settings.multi.terms.2.temperature=2"],
        "temperature: unknown key for the loss mse; known: layers, loss",
    ),
    (["settings.multi.terms.2.relation_heads=4"], "relation_heads: unknown key for the loss mse; known: layers"),
    # terms: labels
    (
        ["data.masking.mode=none", "data.positions=all", "settings={x: {terms: [{loss: decoupled_kl}]}}"],
        "settings.x: without masking there are no labels to learn; set data.masking.mode to dynamic or static",
    ),
    (
        ["data.masking.mode=none", "data.positions=all", "settings.x={terms: [{loss: cross_entropy}]}"],
        "settings.x: without masking there are no labels to learn; set data.masking.mode to dynamic or static",
    ),
    # terms: losses of one's own
    (["settings.logit.terms.0={loss: 'nowhere:f'}"], "nowhere:f: there is no module nowhere; run from its folder"),
    (["settings.logit.terms.0={loss: 'json:f'}"], " function f; write package.module:function"),
    (["settings.logit.terms.0={loss: 'json:dumps'}"], "json:dumps: it takes no `student`; see limbeck.losses"),
    (["settings.logit.terms.0={loss: 'my/losses.py:f'}"], "'my/losses.py:f' is no import path; write package.module:f"),
    (["settings.logit.terms.0={loss: 'json:'}"], "loss: 'json:' is no import path; write package.module:function"),
    (
        ["settings.logit.terms.0={loss: my.losses.f}"],
        "'my.losses.f' is no loss; one's own is named package.module:function",
    ),
    (["settings.logit.terms.0={loss: 'limbeck.losses:mse', strength: 2}"], "limbeck.losses:mse: takes no 'strength'; "),
    (["settings.x={terms: [{loss: 'limbeck.losses:attention_mse', tap: pooled}]}"], "a trial on random tensors fails"),
    (["settings.x={terms: [{loss: 'limbeck.losses:mse', tap: pooled, layers: last}]}"], "the tap pooled has no layers"),
    (["out=a-file"], "a-file: is there and is no run, or a damaged one; choose another folder"),
    (["out=a-file/run"], "a-file/run: no folder can be made in"),
    (["out=taken"], "taken: is there and is no run, or a damaged one; choose another folder"),
    # the machine
    (["train.device=cuda:99"], "train.device: cuda:99 cannot be used here ("),
    *([] if torch.cuda.is_available() else [(["train.device=cuda"], "train.device: cuda cannot be used here (")]),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_check_and_run_say_the_same_and_leave_nothing(
    overrides: list[str], message: str, limbeck: Command, world: Path
) -> None:
    before = sorted(path for path in world.rglob("*") if "cache" not in path.parts)
    said = {}
    for command in ("check", "run"):
        status, out, err = limbeck(command, "tiny.yaml", *overrides)
        assert (status, out) == (2, "")
        said[command] = err.splitlines()[-1]
        assert "Traceback" not in err
    assert said["check"] == said["run"]
    assert said["run"].startswith("limbeck: error: ")
    assert message in said["run"]
    assert ";" in said["run"] or "did you mean" in said["run"], "a remedy"
    assert sorted(path for path in world.rglob("*") if "cache" not in path.parts) == before
    assert not [path for path in world.rglob("*") if ".tmp" in path.name]


def test_weights_that_do_not_fit(limbeck: Command, world: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    (teacher).mkdir()
    for path in (world / "teacher").iterdir():
        (teacher / path.name).write_bytes(path.read_bytes())
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"intermediate_size": 7}))
    for command in ("check", "run"):
        status, _, err = limbeck(command, "tiny.yaml", f"models.teacher={teacher}")
        assert status == 2
        assert "by the config; mend the config" in err.splitlines()[-1]
    assert not (world / "run").exists()


def test_tokenizers_that_disagree(limbeck: Command, world: Path, tmp_path: Path) -> None:
    for path in (world / "teacher").glob("tok*"):
        (tmp_path / path.name).write_text(path.read_text().replace('"ba"', '"xx"'))
    status, _, err = limbeck("check", "tiny.yaml", f"models.student.tokenizer={tmp_path}")
    assert status == 2
    assert "corpus.txt:" in err, "the document"
    assert "disagree at token" in err, "the position"
    assert "teacher 'ba'" in err
    assert "student '[UNK]'" in err
    assert not (world / "run").exists()


def test_the_folder_of_another_recipe(limbeck: Command, world: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"recipe_sha256": "of another", "status": "done"}))
    for command in ("check", "run"):
        status, _, err = limbeck(command, "tiny.yaml", f"out={tmp_path}")
        assert status == 2
        assert "holds a run of another recipe; choose another folder with out=DIR" in err


def test_check_says_it_all(limbeck: Command) -> None:
    status, out, err = limbeck("check", "tiny.yaml", "seeds=[0,1]")
    assert (status, err) == (0, "")
    for words in (
        ["teacher", "bert", "4", "24", "4", "60"],
        ["student", "bert", "2", "16", "4", "60"],
        ["hidden", "mse", "1", "2", "of", "16->24", "1<-2", "2<-4"],
        ["logit", "logit", "forward_kl,", "temperature", "2.0", "1"],
        ["training", "settings", "2", "x", "seeds", "2,", "6", "updates", "of", "4", "x", "10", "tokens"],
        ["note", "teacher", "and", "student", "share", "one", "tokenizer:", "tokenised", "once"],
    ):
        assert any(line.split()[: len(words)] == words for line in out.splitlines()), words
    assert {"time", "memory", "disk", "text", "held"} <= {line.split()[0] for line in out.splitlines() if line}
    assert out.splitlines()[-1] == "ok"
    assert not any(line != line.rstrip() or len(line) > 120 for line in out.splitlines())


class Commit:
    sha = "c" * 40


def hub_says(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Any]) -> list[str]:
    """The Hub with one answer to whatever it is asked; the names that it is asked for."""
    asked: list[str] = []

    def info(self: object, name: str, revision: str | None, timeout: float) -> Any:
        asked.append(name)
        return answer(name)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", info)
    monkeypatch.setattr(HfApi, "dataset_info", info)
    hub.model.cache_clear(), hub.data_set.cache_clear()
    return asked


def fails(error: Exception) -> Callable[[str], Any]:
    def answer(name: str) -> Any:
        raise error

    return answer


@pytest.mark.parametrize("name", ["tinybert-general", "wikipedia-study", "embedded-teacher"])
def test_check_goes_up_to_the_download(name: str, limbeck: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub_says(monkeypatch, lambda name: Commit())
    status, out, _ = limbeck("check", name)
    assert status == 0
    assert "a run downloads" in out and "could not be asked" not in out
    assert out.splitlines()[-1].split(maxsplit=1) == ["ok", "checked up to the download"]
    assert asked and len(asked) == len(set(asked)), "each name once"


def test_check_says_what_it_could_not_ask(limbeck: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, fails(OSError("no route to host. And more")))
    for words in (
        ["models.teacher=nobody/nothing"],
        ["data.corpus=hub:nobody/nothing"],
        ["data.heldout=hub:nobody/nothing"],
    ):
        status, out, err = limbeck("check", "tiny.yaml", *words)
        assert (status, err) == (0, "")
        name = words[0].partition("=")[2]
        said = " ".join(out.split())
        assert f"a run downloads {name} the Hub could not be asked for {name} (no route to host) ok" in said


MISSING = RepositoryNotFoundError("404", response=Mock())
TAKEN_BACK = RevisionNotFoundError("404", response=Mock())


@pytest.mark.parametrize(
    ("error", "why"),
    [(MISSING, "it knows no such name"), (TAKEN_BACK, "it has no revision"), (None, "HF_HUB_OFFLINE is set")],
)
@pytest.mark.parametrize(
    "word",
    ["models.teacher=", "models.student.init=", "models.student.tokenizer=", "data.corpus=hub:", "data.heldout=hub:"],
)
def test_what_the_hub_has_not_ends_a_check_as_a_run(
    error: Exception | None, why: str, word: str, limbeck: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_says(monkeypatch, fails(error or OSError("never asked")))
    if error is None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = {}
    for command in ("check", "run"):
        status, out, err = limbeck(command, "tiny.yaml", f"{word}nobody/nothing")
        assert (status, out) == (2, "")
        said[command] = err.splitlines()[-1]
    assert said["check"] == said["run"]
    assert (
        "nobody/nothing: " in said["run"]
        and f"({why}" in said["run"]
        and "check the name and the network" in said["run"]
    )


def test_a_later_stage_that_the_hub_has_not(limbeck: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, lambda name: fails(MISSING)(name) if name == "no/second" else Commit())
    for more, expected in ([], 0), (["stages[1].models.teacher=no/second"], 2):
        assert limbeck("check", "fitnets", "models.teacher=the/first", *more)[0] == expected


def test_what_is_local_is_checked_before_a_download(limbeck: Command) -> None:
    status, _, err = limbeck("check", "tinybert-general", "data.corpus=nope.txt")
    assert status == 2
    assert "nope.txt: no such file or folder" in err


def test_run(limbeck: Command, world: Path, tmp_path: Path) -> None:
    words = ("run", "tiny.yaml", "train.steps=2", "only=logit", f"out={tmp_path / 'run'}")
    status, out, err = limbeck(*words)
    assert status == 0
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out
    assert "training: 2 of 2 steps" in err
    assert not (world / "run").exists()
    status, _, err = limbeck(*words)
    assert status == 0
    assert "this run is done" in err
    status, told, _ = limbeck("report", str(tmp_path / "run"))
    assert (status, told) == (0, out), "the same table with the measures by name, then the path"
    assert told.startswith("After 2 steps, the held-out logit loss is ") and "label accuracy, test text" in told


def test_the_home_is_the_same_everywhere(limbeck: Command, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(world))
    places = ["data.corpus=~/corpus.txt", "data.heldout=~/one.txt", "data.cache=~/cache", "models.teacher=~/teacher"]
    tokenizer = "models.student.tokenizer=~/teacher"
    status, out, err = limbeck("check", "~/tiny.yaml", *places, tokenizer, "out=~/there")
    assert (status, err) == (0, "")
    assert "held out" in out
    said = {
        ("check", "tiny.yaml", "out=~/taken"): f"{world}/taken: is there and is no run",
        ("report", "~/taken"): f"{world}/taken: manifest.json is missing",
        ("watch", "~/nowhere"): f"{world}/nowhere",
        ("profile", "~/teacher", "--json", "~/no/file"): f"{world}/no/file: its folder is not there",
        ("eval", "~/teacher", "--task", "tiny.yaml", "--predictions", "~/no/file"): f"{world}/no/file",
        ("trim", "~/teacher", "~/taken", "--vocabulary", "9", "--corpus", "~/corpus.txt"): f"{world}/taken: is there",
        ("trim", "~/teacher", "~nobody-here/x", "--vocabulary", "9", "--corpus", "~"): "there is no such home; write",
        ("report", "~nobody-here/x"): "there is no such home; write the whole path",
        ("eval", "~nobody-here/x", "--task", "tiny.yaml"): "there is no such home; write the whole path",
        ("eval", "", "--task", "tiny.yaml"): "names no model",
    }
    for words, message in said.items():
        status, _, err = limbeck(*words)
        assert status == 2, words
        assert message in err, words
    monkeypatch.setenv("LIMBECK_CACHE", "~nobody-here/x")
    assert "there is no such home" in limbeck("check", "tiny.yaml", "data.cache=null")[2]
    assert not list(world.glob("~*"))


def test_usage(limbeck: Command) -> None:
    for words in (["run"], ["frob"], ["run", "--frob"], ["check"], ["report", "nope"], ["recipes", "nope"]):
        status, out, err = limbeck(*words)
        assert (status, out) == (2, ""), words
        assert err
    assert limbeck("recipes", "quikstart")[2].endswith("did you mean 'quickstart'?\n")


def test_the_help_is_whole(limbeck: Command) -> None:
    out = limbeck("--help")[1]
    assert not any(line.startswith("  ") and line.endswith("...") for line in out.splitlines()), "cut short"
    assert "[KEY=VALUE]..." in " ".join(limbeck("run", "--help")[1].split())


def test_version(limbeck: Command) -> None:
    assert limbeck("--version") == (0, f"limbeck {version('limbeck')}\n", "")


def test_recipes(limbeck: Command) -> None:
    status, out, _ = limbeck("recipes")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(built_in())
    assert yaml.safe_load(limbeck("recipes", "quickstart")[1])["name"] == "quickstart"


def test_schema_and_env(limbeck: Command) -> None:
    schema = json.loads(limbeck("schema")[1])
    assert schema["required"] == ["name"]
    assert schema["anyOf"] == [{"required": ["settings"]}, {"required": ["stages"]}]
    assert "torch" in limbeck("env")[1]


@pytest.mark.parametrize(
    ("raised", "expected"), [(Interrupted("stopped after step 3"), 75), (KeyboardInterrupt(), 130)]
)
def test_other_statuses(
    raised: BaseException, expected: int, limbeck: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck import api

    def interrupted(*given: object, **more: object) -> None:
        raise raised

    monkeypatch.setattr(api, "run", interrupted)
    status, out, err = limbeck("run", "tiny.yaml")
    assert (status, out) == (expected, "")
    assert err.startswith("limbeck: stopped")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["run", "--help"], 0),
        (["recipes"], 0),
        (["schema"], 0),
        (["check", "quikstart"], 2),
        (["run", "quickstart", "train.lerning_rate=1"], 2),
    ],
)
def test_words_load_nothing_heavy(words: list[str], status: int) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == f"{status} []"


def test_help_answers_at_once() -> None:
    command = [sys.executable, "-m", "limbeck", "--help"]
    spent = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert "quickstart" in done.stdout
    assert min(spent) < 0.3, "seconds of a processor"
