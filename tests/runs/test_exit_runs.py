"""Runs with early exits: the same in every way that they can go, and what they leave."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from kernel import HEADS, SPECIALS, STUDENT_WIDTH, VOCABULARY, WORDS, recipe
from runfiles import same_run, stop_after, tensors, untimed
from safetensors.torch import load_file, save_file
from torch import Tensor

import limbeck
from limbeck.errors import Interrupted, UserError
from limbeck.models.exits import FILE, EarlyExit

DEPTH = 3
LABEL = {"loss": "cross_entropy", "name": "label"}
AT_EXIT = {"loss": "cross_entropy", "tap": "exit", "name": "exit-label"}
OWN = {"loss": "forward_kl", "tap": "exit", "teacher": "self", "temperature": 2.0}
STATES = {"loss": "mse", "tap": "hidden", "teacher": "self", "weight": 0.1}
RAMP = {"start": 0.0, "end": 1.0, "steps": 4}
SETTINGS: dict[str, Any] = {
    "own": {"exits": [2, 1], "terms": [LABEL, AT_EXIT, OWN | {"weight": RAMP}, STATES]},
    "taught": {"exits": [2], "terms": [{"loss": "forward_kl"}, {"loss": "forward_kl", "tap": "exit"}]},
    "balanced": {
        "exits": [1],
        "balance": "gradient",
        "terms": [LABEL, {"loss": "pearson", "tap": "exit", "teacher": "self"}, STATES | {"layers": {1: 2, 2: "last"}}],
    },
    "peers": {
        "exits": [1],
        "peers": 2,
        "terms": [LABEL, OWN, {"loss": "forward_kl", "tap": "exit", "teacher": "peers"}],
    },
    "ema": {"exits": [1], "ema": 0.5, "terms": [LABEL, {"loss": "forward_kl", "tap": "exit", "teacher": "ema"}]},
}
HOW = {"probe_every": 2}
Train = Callable[..., limbeck.Run]


def table(world: Path, out: Path, settings: dict[str, Any] = SETTINGS, **more: Any) -> dict[str, Any]:
    """The tiny recipe with a student of three layers."""
    plain = recipe(world, out, settings=settings, train=HOW | more)
    shape = {"layers": DEPTH, "hidden": STUDENT_WIDTH, "heads": HEADS, "intermediate": 32}
    return plain | {"models": plain["models"] | {"student": shape}}


@pytest.fixture
def go(world: Path, tmp_path: Path, fast: None) -> Train:
    """Runs settings into a folder of their own."""
    return lambda out, settings=SETTINGS, **more: limbeck.run(
        table(world, tmp_path / out, settings, **more), quiet=True
    )


@pytest.fixture(scope="module")
def company(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    return limbeck.run(table(world, tmp_path_factory.mktemp("exits") / "all"), quiet=True)


def same_exits(run: limbeck.Run, other: limbeck.Run) -> None:
    """The heads, and the weights of all models, bit for bit."""
    for name, folder in run.students.items():
        for path in sorted(folder.rglob("*.safetensors")):
            place = path.relative_to(folder)
            assert path.read_bytes() == (other.students[name] / place).read_bytes(), f"{name}/{place}"
        assert (folder / FILE).is_file()


def untyped(rows: list[dict[str, Any]], setting: str) -> list[dict[str, Any]]:
    return untimed([row for row in rows if row["setting"] == setting])


# one run is the same run


@pytest.mark.parametrize("name", SETTINGS)
def test_in_company_is_alone(go: Train, company: limbeck.Run, name: str) -> None:
    alone = go(name, {name: SETTINGS[name]})
    same_exits(alone, company)
    assert untimed(alone.metrics) == untyped(company.metrics, name)
    assert untimed(alone.evals) == untyped(company.evals, name)


@pytest.mark.parametrize("after", [1, 3])
def test_stopped_and_gone_on_is_undisturbed(
    go: Train, company: limbeck.Run, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, after)
        with pytest.raises(Interrupted):
            go("stopped")
    gone_on = go("stopped")
    same_run(gone_on, company, checkpoints=False)
    same_exits(gone_on, company)


@pytest.mark.slow
def test_accumulation_is_exact(go: Train) -> None:
    some = {name: SETTINGS[name] for name in ("own", "taught", "peers", "ema")}  # pearson is of each micro-batch
    one, two = (go(f"{n}", some, precision="fp64", accumulate=n) for n in (1, 2))
    for student, folder in one.students.items():
        for name in ("model.safetensors", FILE):
            mine, theirs = (load_file(run.students[student] / name) for run in (one, two))
            assert mine.keys() == theirs.keys()
            for key, tensor in mine.items():
                torch.testing.assert_close(tensor, theirs[key], rtol=1e-7, atol=1e-8, msg=f"{folder}: {key}")


def test_heads_are_trained(company: limbeck.Run) -> None:
    """Each by itself: not the same as another's, nor as the model's own."""
    folder = company.students["own-seed0"]
    held, whole = load_file(folder / FILE), tensors(company, "own-seed0")
    places = {key.split(".", 2)[2] for key in held}
    assert {key.split(".", 2)[:2][1] for key in held} == {"1", "2"}
    assert not any("decoder.weight" in key for key in held), "tied to the embedding, which the model keeps"
    for place in places:
        first, second = held[f"exit.1.{place}"], held[f"exit.2.{place}"]
        own = whole["cls." + place.removeprefix("held.0.")]
        assert not torch.equal(first, second) and not torch.equal(first, own) and not torch.equal(second, own)


# what it leaves


def inputs() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(len(SPECIALS), VOCABULARY, (6, 9), generator=draw)
    mask = (torch.arange(9) < torch.tensor([9, 9, 8, 6, 5, 3])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def test_a_student_leaves_its_exits_as_plain_models(company: limbeck.Run) -> None:
    folder, given = company.students["own-seed0"], inputs()
    loose = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == loose | {FILE, "exit-1", "exit-2"}
    kept, early = given["attention_mask"].bool(), EarlyExit.load(folder)
    assert list(early.exits) == [1, 2]
    for layer in (1, 2):
        place = folder / f"exit-{layer}"
        assert {path.name for path in place.iterdir()} == loose - {"README.md"}
        small, report = tf.AutoModelForMaskedLM.from_pretrained(place, output_loading_info=True)
        assert not any(report.values()) and small.config.num_hidden_layers == layer
        with torch.no_grad():
            mine = small.eval()(**given).logits
        theirs = EarlyExit(early.tapped.model, {layer: early.exits[layer]})(given, 0.0)[0]
        torch.testing.assert_close(mine[kept], theirs[kept], rtol=1e-5, atol=1e-5)
        assert (
            tf.AutoTokenizer.from_pretrained(place).get_vocab() == tf.AutoTokenizer.from_pretrained(folder).get_vocab()
        )
    assert not (company.students["taught-seed0"] / "exit-1").exists()
    assert all((company.students[f"peers-seed0-{peer}"] / "exit-1").is_dir() for peer in "ab")


def test_early_answers_of_what_was_trained(company: limbeck.Run) -> None:
    folder, given = company.students["own-seed0"], inputs()
    kept, early = given["attention_mask"].bool(), EarlyExit.load(str(folder))
    models = {n: tf.AutoModelForMaskedLM.from_pretrained(folder / f"exit-{n}").eval() for n in (1, 2)}
    models[DEPTH] = tf.AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        said = {n: model(**given).logits for n, model in models.items()}
    least = [torch.where(kept, said[n].softmax(-1).amax(-1), 1).amin(1) for n in (1, 2)]
    middle = torch.cat(least).median().item() * 1.0001
    for confidence in (0.0, middle, 1.1):
        logits, layers = early(given, confidence)
        behind = [next((n for n in (1, 2) if least[n - 1][row] >= confidence), DEPTH) for row in range(6)]
        assert layers.tolist() == behind
        expected = torch.stack([said[n][row] for row, n in enumerate(behind)])
        torch.testing.assert_close(logits[kept], expected[kept], rtol=1e-5, atol=1e-5)
        assert logits.isfinite().all()
        assert (confidence == middle) == (len(set(behind)) > 1)


def test_a_folder_without_fitting_exits_is_refused(company: limbeck.Run, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(company.students["own-seed0"], folder)
    with pytest.raises(UserError, match=rf"exit-1: no {FILE} there; name a student that was trained with exits"):
        EarlyExit.load(folder / "exit-1")
    held = load_file(folder / FILE)
    first = sorted(held)[0]
    deeper = {key.replace("exit.2.", "exit.3."): tensor for key, tensor in held.items()}
    fewer = {key: tensor for key, tensor in held.items() if key != first}
    longer = held | {first: torch.cat([held[first], held[first]])}
    for wrong in (deeper, fewer, longer):
        save_file(wrong, folder / FILE)
        with pytest.raises(UserError, match=rf"{FILE}: of another model than the one beside it; put the two of one"):
            EarlyExit.load(folder)


def test_an_evaluation_tells_of_every_exit(company: limbeck.Run) -> None:
    exits = {
        "own": ["exit.1", "exit.2"],
        "taught": ["exit.2"],
        **{name: ["exit.1"] for name in ("balanced", "peers", "ema")},
    }
    words = {"logit_loss", "agreement", "label_loss", "label_accuracy"}
    for row in company.evals:
        assert list(row["exits"]) == exits[row["setting"]]
        assert all(set(found) == words and found["logit_loss"] > 0 for found in row["exits"].values())
    begun, done = ([row for row in company.evals if row["step"] == n and row["setting"] == "taught"] for n in (0, 6))
    for before, after in zip(begun, done, strict=True):
        assert after["exits"]["exit.2"]["logit_loss"] < before["exits"]["exit.2"]["logit_loss"]


# classes and scores of rows


def of_task(world: Path, out: Path, kind: str, family: str, said: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [" ".join(WORDS[(7 * i + k * i * i) % len(WORDS)] for k in range(3 + i % 6)) for i in range(80)]
    labels = [len(row.split()) / 4 if kind == "regression" else "yes" if "ba" in row else "no" for row in rows]
    lines = "\n".join(f"{row}\t{label}" for row, label in zip(rows, labels, strict=True))
    (world / f"{kind}.tsv").write_text(f"sentence\tlabel\n{lines}", encoding="utf-8")
    plain = table(world, out, {"one": {"exits": [1, 2], "terms": said}}, steps=2)
    words = {"corpus": str(world / f"{kind}.tsv"), "max_length": 12, "heldout": 0.2, "task": {"kind": kind}}
    student = plain["models"]["student"] | {"family": family, "tokenizer": str(world / "teacher")}
    return plain | {"data": words | {"cache": str(world / "cache")}, "models": {"student": student}}


@pytest.mark.parametrize("family", ["bert", "gpt2", "modernbert"])
def test_rows_of_a_task_leave_early(world: Path, tmp_path: Path, fast: None, family: str) -> None:
    said = of_task(world, tmp_path / "run", "classification", family, [LABEL, AT_EXIT, OWN, STATES])
    run = limbeck.run(said, quiet=True)
    folder, given = run.students["one-seed0"], inputs()
    early = EarlyExit.load(folder)
    for layer, confidence in ((1, 0.0), (DEPTH, 1.1)):
        place = folder / f"exit-{layer}" if layer < DEPTH else folder
        plain = tf.AutoModelForSequenceClassification.from_pretrained(place).eval()
        assert plain.config.id2label == {0: "no", 1: "yes"}
        logits, layers = early(given, confidence)
        with torch.no_grad():
            torch.testing.assert_close(logits, plain(**given).logits, rtol=1e-5, atol=1e-5)
        assert layers.tolist() == [layer] * 6
    for row in run.evals:
        assert list(row["exits"]) == ["exit.1", "exit.2"]
        for found in row["exits"].values():
            assert found["metrics"].keys() == row["metrics"].keys() and found["logit_loss"] is None


def test_a_score_has_exits_and_no_early_answer(world: Path, tmp_path: Path, fast: None) -> None:
    square = {"loss": "squared_error", "name": "label"}
    terms = [
        square,
        square | {"tap": "exit", "name": "exit-label"},
        {"loss": "logit_mse", "tap": "exit", "teacher": "self"},
    ]
    folder = limbeck.run(of_task(world, tmp_path / "run", "regression", "bert", terms), quiet=True).students[
        "one-seed0"
    ]
    assert tf.AutoModelForSequenceClassification.from_pretrained(folder / "exit-1").config.num_labels == 1
    with pytest.raises(UserError, match=r"a score has no probability to be sure by; use the models in exit-N"):
        EarlyExit.load(folder)
