"""A teacher with dropout: on while it teaches, off when it is asked for a measure, the same whatever happens to the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import LOGIT, MULTI, TEACHER_DEPTH, TEACHER_WIDTH, answer, batch, bert, learner, recipe, views
from runfiles import same_run, stop_after, tensors, untimed, weights
from test_stages import fits
from torch import Tensor

import limbeck
from limbeck import api
from limbeck.assemble import design
from limbeck.assemble.study import build_study
from limbeck.assemble.text import read_text
from limbeck.batch import TEXT
from limbeck.distil import schemes
from limbeck.distil.actors import START, Moment
from limbeck.distil.reduce import Counts
from limbeck.distil.still import Micro
from limbeck.distil.teachers import Ensemble, Frozen, Noisy
from limbeck.errors import Interrupted, UserError
from limbeck.models.changes import Dropout
from limbeck.recipe import arms
from limbeck.recipe.load import load
from limbeck.system.processes import World
from limbeck.system.seeds import derive_seed

TAPS = ["embedding", "hidden.2", "hidden.4", "scores.2", "scores.4", "logits"]
SETTINGS: dict[str, Any] = {
    "logit": {"terms": [{"loss": "forward_kl"}]},
    "low": {"terms": [{"loss": "mse", "tap": "hidden", "layers": {1: 1}}]},
    "inside": {
        "balance": "gradient",
        "terms": [{"loss": "mse", "tap": "embedding"}, {"loss": "attention_scores_mse", "tap": "scores"}],
    },
}


def dropping(share: float = 0.3, taps: list[str] = TAPS) -> Frozen:
    model = bert(TEACHER_WIDTH, TEACHER_DEPTH, seed=99, dropout=share)
    return Frozen("teacher", model, taps, changes=[Dropout(share)] if share else [])


def said(one: Noisy, *moment: int, whole: bool = True) -> dict[str, Tensor]:
    readout = one.read(batch(), Moment(*moment), whole)
    return {tap: readout[tap] for tap in TAPS if whole or tap != "logits"}


def differ(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[bool]:
    return [not torch.equal(mine[tap], theirs[tap]) for tap in mine.keys() & theirs.keys()]


# the actor


def test_what_it_says_is_a_function_of_seed_and_moment() -> None:
    teacher = dropping()
    one = Noisy(teacher, 0)
    first = said(one, 3, 1, 0)
    assert not any(differ(first, said(one, 3, 1, 0))) and not any(differ(first, said(Noisy(dropping(), 0), 3, 1, 0)))
    for other in (said(one, 4, 1, 0), said(one, 3, 0, 0), said(one, 3, 1, 1), said(Noisy(teacher, 1), 3, 1, 0)):
        assert all(differ(first, other))
    another = dropping()
    another.name = "another"
    assert all(differ(first, said(Noisy(another, 0), 3, 1, 0))), "two teachers, two streams"


def test_how_deep_it_is_read_changes_nothing() -> None:
    """So that company, which asks for more, does not disturb."""
    first, low = said(Noisy(dropping(), 0), 1, 0, 0), dropping(taps=["hidden.2"])
    assert not any(differ(first, said(Noisy(dropping(), 0), 1, 0, 0, whole=False)))
    assert torch.equal(Noisy(low, 0).read(batch(), Moment(1), whole=False)["hidden.2"], first["hidden.2"])


def test_it_is_as_it_was_when_others_ask() -> None:
    teacher, calm = dropping(), dropping(0.0)
    one, before = Noisy(teacher, 0), torch.get_rng_state()
    said(one, 0, 0, 0)
    assert torch.equal(torch.get_rng_state(), before) and not teacher.model.training
    assert torch.equal(teacher.read(batch())["logits"], calm.read(batch())["logits"])
    with pytest.raises(IndexError):
        one.read(batch() | {"input_ids": torch.full((3, 9), 10**6)})
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not any(tensor.requires_grad for tensor in said(one, 0, 0, 0).values())


def test_without_dropout_nothing_is_drawn() -> None:
    teachers = {"teacher": dropping(0.0)}
    assert schemes.teaching(teachers, 0)["teacher"] is teachers["teacher"]


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_step_is_that_of_a_teacher_in_training_mode(share: float) -> None:
    """The gradient of a student of what the teacher says then, held on to."""
    found = []
    for teaching in (Noisy(dropping(share), 7), Held(dropping(share), 7)):
        one = learner("s", MULTI, seed=7)
        still = schemes.together([schemes.offline(one, {"teacher": teaching}, MULTI)], chunk=5)
        parts = [batch(0), batch(1)]
        still.gradients(*views(parts), 2)
        found.append([p.grad for p in one.parameters if p.grad is not None])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


class Held(Noisy):
    """The same teacher, always in training mode, as published; only the generator is set."""

    def read(self, batch: Any, moment: Moment = START, whole: bool = True) -> Any:
        self.model.train()
        torch.manual_seed(derive_seed(self.seed, "teacher dropout", self.name, *moment))
        return self._teacher.read(batch, whole=whole)


def test_an_ensemble_has_members_with_dropout_and_without() -> None:
    noisy, calm = dropping(), Frozen("calm", bert(16, 2, seed=2), ["logits"])
    taught = schemes.teaching({"teacher": Ensemble("teacher", [noisy, calm], "logits")}, 0)["teacher"]
    assert isinstance(taught, Ensemble)
    (first, same), (second, again) = (
        taught.read(batch(), Moment(step)).features.split([24, 16], -1) for step in (0, 1)
    )
    assert not torch.equal(first, second) and torch.equal(same, again)


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
    ratio = one.read(given)["embedding"] / calm.read(given)["embedding"]
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


def test_learners_draw_as_before() -> None:
    """The stream of a learner is its own."""
    found = []
    for teacher in (dropping(), dropping(0.0)):
        one = learner("s", (LOGIT,), dropout=0.2)
        made = schemes.teaching({"teacher": teacher}, one.seed)
        still = schemes.together([schemes.offline(one, made, (LOGIT,))], chunk=5)
        micro = Micro({TEXT: batch()}, 0, 1, {TEXT: Counts.of([batch()])}, {})
        found.append(still.forward(micro)["s", TEXT]["logits"])
    assert torch.equal(*found)
