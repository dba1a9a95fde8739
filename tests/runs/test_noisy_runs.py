"""A teacher with dropout: on while it teaches, off when it is asked for a measure, the same whatever happens to the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import answer, recipe
from runfiles import same_run, stop_after, tensors, untimed, weights
from schemas import fits

import limbeck
from limbeck import api
from limbeck.assemble import design
from limbeck.assemble.study import build_study
from limbeck.assemble.text import read_text
from limbeck.distil.teachers import Frozen, Noisy
from limbeck.errors import Interrupted, UserError
from limbeck.recipe import arms
from limbeck.recipe.load import load
from limbeck.system.processes import World

SETTINGS: dict[str, Any] = {
    "logit": {"terms": [{"loss": "forward_kl"}]},
    "low": {"terms": [{"loss": "mse", "tap": "hidden", "layers": {1: 1}}]},
    "inside": {
        "balance": "gradient",
        "terms": [{"loss": "mse", "tap": "embedding"}, {"loss": "attention_scores_mse", "tap": "scores"}],
    },
}


# runs


def noisy(world: Path, out: Path, share: float = 0.2, **more: Any) -> dict[str, Any]:
    """The tiny recipe whose teacher has dropout."""
    how = {"settings": SETTINGS, "seeds": [0, 1]} | more
    table = recipe(world, out, **how, train={"probe_every": 2, "accumulate": 2} | more.pop("train", {}))
    return table | {"models": table["models"] | {"teacher": {"source": str(world / "teacher"), "dropout": share}}}


@pytest.fixture(scope="module")
def company(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.lab.page.report.write", lambda folder: folder)
        return limbeck.run(noisy(world, tmp_path_factory.mktemp("noisy") / "all"), quiet=True)


def test_the_share_is_the_recipes(world: Path, tmp_path: Path) -> None:
    """Of the embedding, behind its norm, about so many numbers are 0 and the others are 1 / (1 - p) times as large."""
    plan = design.design(load(noisy(world, tmp_path / "run", 0.25)))
    study = build_study(plan, World(), read_text(plan, lambda line: None))
    one, calm = study.stills[0].actors["teacher"], study.teachers["logit-seed0"]["teacher"]
    assert isinstance(one, Noisy) and isinstance(calm, Frozen)
    given = study.feeds[0].batch(0)
    ratio = one.forward(given)["embedding"] / calm.forward(given)["embedding"]
    dropped = ratio == 0
    assert abs(dropped.double().mean() - 0.25) < 0.05
    torch.testing.assert_close(ratio[~dropped], torch.full_like(ratio[~dropped], 4 / 3))
    probabilities = [module.p for module in one.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert set(probabilities) == {0.25}


@pytest.mark.parametrize("name", SETTINGS)
def test_in_company_is_alone(world: Path, tmp_path: Path, company: limbeck.Run, name: str, fast: None) -> None:
    """One setting and one seed alone: students, metrics, evaluations."""
    alone = limbeck.run(noisy(world, tmp_path / name, settings={name: SETTINGS[name]}, seeds=[1]), quiet=True)
    student = f"{name}-seed1"
    assert weights(alone, student) == weights(company, student)
    for mine, theirs in ((alone.metrics, company.metrics), (alone.evals, company.evals)):
        assert untimed(mine) == untimed([row for row in theirs if row["learner"] == student])


def test_stopped_and_gone_on_is_undisturbed(
    world: Path, tmp_path: Path, company: limbeck.Run, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = noisy(world, tmp_path / "stopped")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            limbeck.run(table, quiet=True)
    same_run(limbeck.run(table, quiet=True), company, checkpoints=False)


@pytest.mark.slow
def test_evaluations_are_without_and_updates_with_it(
    world: Path, tmp_path: Path, company: limbeck.Run, fast: None
) -> None:
    """The untouched students are measured as in a run without; the trained ones are others; updates note no logit loss."""
    plain = limbeck.run(noisy(world, tmp_path / "plain", 0.0), quiet=True)
    began = [[row for row in run.evals if row["step"] == 0] for run in (plain, company)]
    assert untimed(began[0]) == untimed(began[1]) and began[0][0]["logit_loss"] > 0
    ended = [[row["logit_loss"] for row in run.evals if row["step"] == 6] for run in (plain, company)]
    assert all(mine != theirs for mine, theirs in zip(*ended, strict=True))
    for name in plain.students:
        assert weights(plain, name) != weights(company, name)
    assert {row["logit_loss"] for row in company.metrics} == {None}
    assert all(row["logit_loss"] is not None for row in plain.metrics if row["setting"] == "logit")


@pytest.mark.slow
def test_no_dropout_is_the_bare_teacher(world: Path, tmp_path: Path, fast: None) -> None:
    """In the same bits."""
    bare = noisy(world, tmp_path / "bare")
    bare["models"]["teacher"] = str(world / "teacher")
    same_run(limbeck.run(noisy(world, tmp_path / "zero", 0.0), quiet=True), limbeck.run(bare, quiet=True))


def test_a_named_one_beside_the_measure(world: Path, tmp_path: Path, fast: None) -> None:
    """The fixed teacher measures, and its settings are those of a run without the other."""
    other = {"terms": [{"loss": "forward_kl", "teacher": "noisy"}]}
    table = recipe(world, tmp_path / "both", settings={"plain": SETTINGS["logit"], "noisy": other})
    table["models"] = table["models"] | {"teachers": {"noisy": {"source": str(world / "teacher"), "dropout": 0.2}}}
    both = limbeck.run(table, quiet=True)
    alone = limbeck.run(recipe(world, tmp_path / "alone", settings={"plain": SETTINGS["logit"]}), quiet=True)
    assert weights(both, "plain-seed0") == weights(alone, "plain-seed0")
    assert untimed(alone.metrics) == untimed([row for row in both.metrics if row["setting"] == "plain"])
    assert weights(both, "plain-seed0") != weights(both, "noisy-seed0")


@pytest.mark.slow
def test_the_student_of_a_stage_teaches_with_it(world: Path, tmp_path: Path, fast: None) -> None:
    found = []
    for share in (0.0, 0.2):
        how = {"settings": {"a": SETTINGS["logit"]}, "train": {"steps": 2, "eval_every": 2, "warmup": 0}}
        small = {"layers": 1, "hidden": 16, "heads": 4, "intermediate": 16}
        last = {"teacher": {"source": "$previous", "dropout": share}, "student": small}
        staged = [{"stage": "assistant"}, {"stage": "student", "models": last}]
        run = limbeck.run(recipe(world, tmp_path / f"s{share}", **how) | {"stages": staged}, quiet=True)
        found.append(run)
    assert found[0].evals[0]["logit_loss"] == found[1].evals[0]["logit_loss"]
    first, second = (tensors(run, "a-seed0") for run in found)
    assert any(not torch.equal(first[key], second[key]) for key in first)


# words


def test_a_cache_of_it_is_refused(world: Path, tmp_path: Path) -> None:
    table = noisy(world, tmp_path / "run") | {"cache": {}}
    with pytest.raises(UserError, match=r"cache: models\.teacher has dropout and never says the same twice; leave"):
        load(table)
    table["models"] |= {"teacher": str(world / "teacher"), "teachers": {"b": table["models"]["teacher"]}}
    with pytest.raises(UserError, match=r"cache: models\.teachers\.b has dropout"):
        load(table)
    load(noisy(world, tmp_path / "run", 0.0) | {"cache": {}})


def test_a_cache_for_a_loss_that_looks_at_padding_is_refused(world: Path, tmp_path: Path) -> None:
    term = {"loss": "tinybert_hidden_mse", "tap": "hidden"}
    table = recipe(world, tmp_path / "run", settings={"a": {"terms": [term]}}, cache={})
    table["data"] |= {"masking": {"mode": "static"}}
    with pytest.raises(
        UserError, match=r"settings\.a\.hidden: tinybert_hidden_mse looks at padding, .* leave cache out"
    ):
        api.check(table)
    said = "\n".join(api.check({word: value for word, value in table.items() if word != "cache"}))
    assert "tinybert_hidden_mse, padding counts" in said


@pytest.mark.parametrize("share", ["1.0", "-0.1", "much"])
def test_a_share_that_is_none(
    share: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"models.teacher={{source: {world / 'teacher'}, dropout: {share}}}"
    status, _, error = answer(monkeypatch, capsys, "check", "quickstart", place)
    assert status == 2 and "models.teacher.dropout" in error and error.count("\n") == 1


def test_the_schema_knows_it() -> None:
    schema = arms.schema()
    for teacher, good in (({"source": "a", "dropout": 0.1}, True), ({"source": "a", "drop": 0.1}, False)):
        for models in ({"teacher": teacher}, {"teacher": "a", "teachers": {"b": teacher}}):
            table = {"name": "x", "models": models, "settings": SETTINGS}
            assert fits(table, schema, schema["$defs"]) is good


def test_check_says_it(world: Path, tmp_path: Path) -> None:
    lines = "\n".join(api.check(noisy(world, tmp_path / "run", 0.2)))
    assert "teacher teaches with dropout 0.2" in lines
    assert "dropout" not in "\n".join(api.check(noisy(world, tmp_path / "run", 0.0)))


def test_the_losses_of_a_step_differ(world: Path, tmp_path: Path, fast: None) -> None:
    """Students that stand still hear another teacher in every update, of one and the same text."""
    data = recipe(world, tmp_path)["data"] | {"masking": {"mode": "static"}, "heldout": 0.9, "max_length": 20}
    how = {"lr": 1e-30, "warmup": 0, "steps": 3, "batch_size": 12, "eval_every": 3, "accumulate": 1}
    losses = []
    for share in (0.0, 0.2):
        table = noisy(world, tmp_path / f"l{share}", share, data=data, settings={"a": SETTINGS["logit"]}, seeds=[0])
        table["train"] |= how
        losses.append([row["loss"] for row in limbeck.run(table, quiet=True).metrics])
    assert max(losses[0]) - min(losses[0]) < 1e-5 * losses[0][0]
    assert min(abs(a - b) for a, b in zip(losses[1], losses[1][1:] + losses[1][:1], strict=True)) > 1e-3 * losses[1][0]
