"""Every loss trains a student from a recipe: by every tap that it may compare, in company, stopped, and split into parts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import batch, bert, fragment, recipe, share, still_of, views, with_dropout
from runfiles import same_run, stop_after, tensors, untimed, weights
from safetensors.torch import load_file
from torch import Tensor

import limbeck
from limbeck.assemble import design, terms
from limbeck.assemble.study import Study, build_study, first_stages
from limbeck.assemble.text import read_text
from limbeck.batch import to_device
from limbeck.distil import projections
from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.reduce import Counts
from limbeck.distil.schedules import constant
from limbeck.distil.still import Still
from limbeck.distil.teachers import Frozen
from limbeck.errors import Interrupted
from limbeck.lab.page import report
from limbeck.losses import LOSSES
from limbeck.recipe.keys import LOSS_KEYS
from limbeck.recipe.load import load
from limbeck.recipe.settings import Setting, TermKeys
from limbeck.system.processes import World

BLOCKS, STEPS, PARAPHRASER = 12, 4, 5
PLAINLY = Optimisation(constant(1e-3), weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8, clip=None)
OF_SCORES = ("squared_error",)  # losses of a task whose labels are numbers
TAPS = [(loss, tap) for loss, keys in LOSS_KEYS.items() if len(keys.taps) > 1 for tap in keys.taps]


def quick(term: dict[str, Any]) -> dict[str, Any]:
    """The term with a short stage of its paraphraser."""
    return term | ({"paraphraser_steps": PARAPHRASER} if term["loss"] == "factor_transfer" else {})


def alone() -> dict[str, Any]:
    """Settings of one term: every docstring's, and every other tap that a loss may compare."""
    said = {loss: quick(fragment(loss)) for loss in LOSSES}
    said |= {f"{loss}-{tap}": quick({"loss": loss, "tap": tap}) for loss, tap in TAPS}
    return {name: {"terms": [term]} for name, term in said.items()}


def of_text() -> dict[str, Any]:
    """Those of them that a language model learns by."""
    return {name: setting for name, setting in alone().items() if name not in OF_SCORES}


def few(world: Path) -> dict[str, Any]:
    """The table of a text of twelve blocks that are masked once and for all: a batch of twelve is always the same batch."""
    return recipe(world, world)["data"] | {"masking": {"mode": "static"}, "heldout": 0.9, "max_length": 20}


def everything(world: Path, out: Path) -> dict[str, Any]:
    how = {"steps": STEPS, "batch_size": BLOCKS, "lr": 1e-3, "warmup": 0, "schedule": "constant", "probe_every": 2}
    how |= {"eval_every": STEPS, "eval_blocks": 2, "checkpoint_every": STEPS, "chunk": 50}
    return recipe(world, out, settings=of_text(), data=few(world), train=how)


def of_scores(world: Path, out: Path) -> dict[str, Any]:
    """The same for the losses of scores: twelve rows of a text and a number, learned without a teacher."""
    texts, table = (world / "corpus.txt").read_text().split("\n\n"), everything(world, out)
    for name, part in (("train", texts[:BLOCKS]), ("dev", texts[BLOCKS:20])):
        rows = [f"{text}\t{len(text) % 7 / 2}\n" for text in part]
        (out / f"{name}.tsv").write_text("".join(rows), encoding="utf-8")
    task = {"kind": "regression", "text": 0, "label": 1}
    data = {"corpus": str(out), "task": task, "max_length": 20, "cache": str(world / "cache")}
    student = table["models"]["student"] | {"family": "bert", "tokenizer": str(world / "teacher")}
    settings = {name: alone()[name] for name in OF_SCORES}
    return table | {"models": {"student": student}, "data": data, "settings": settings, "out": str(out / "run")}


@dataclass(frozen=True)
class Moved:
    """What became of one student, on the training batch and in fp64."""

    began: float  # the term with the student and the modules of the start
    ended: float  # with those of the end; what is no parameter, such as a memory, as at the start
    slope: float  # the derivative along the student's own way, by central differences
    gradient: float  # the same by the gradient


@dataclass(frozen=True)
class Everything:
    metrics: dict[str, list[dict[str, Any]]]  # setting -> its rows
    moved: dict[str, Moved]


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Everything:
    """All settings in one run (those of scores in another), and the same study built anew to be measured with what the run found."""
    folder, rows, found = tmp_path_factory.mktemp("runs"), dict[str, list[dict[str, Any]]](), dict[str, Moved]()
    for table in (everything(world, folder / "everything"), of_scores(world, folder)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "write", lambda folder: folder)
            run = limbeck.run(table, quiet=True)
        for row in run.metrics:
            rows.setdefault(row["setting"], []).append(row)
        found |= moved(study_of(table | {"train": table["train"] | {"precision": "fp64"}}), run)
    return Everything(rows, found)


def study_of(table: dict[str, Any]) -> Study:
    plan = design.design(load(table))
    study = build_study(plan, World(), read_text(plan, lambda line: None))
    first_stages(study, lambda: False, lambda line: None)
    return study


def moved(study: Study, run: limbeck.Run) -> dict[str, Moved]:
    still, whole = study.stills[0], [to_device(study.feeds[0].batch(0), World().device)]
    counts = Counts.of(whole)

    def values() -> dict[str, float]:
        for learner in still.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        tallies = still.gradients(*views(whole, counts), 0)
        return {name: next(iter(tally.terms.values())).item() for name, tally in tallies.items()}

    def put(found: dict[str, dict[str, Tensor]]) -> None:
        for learner in still.learners:
            for name, parameter in named(learner).items():
                parameter.data.copy_(found[learner.name].get(name, parameter))

    start = {one.name: {n: p.detach().clone() for n, p in named(one).items()} for one in still.learners}
    place = run.folder / "checkpoints" / f"step-{STEPS:06d}"
    end = {one.name: load_file(place / f"{one.name}.safetensors") for one in still.learners}
    way = {
        one: {name: end[one][name] - at for name, at in held.items() if name.startswith("model.")}
        for one, held in start.items()
    }
    began, along = values(), {}
    for learner in still.learners:
        weight = next(
            term.weight(0) for lesson in still.lessons for term in lesson.terms if lesson.student == learner.name
        )
        parts = [
            (parameter.grad * way[learner.name][name]).sum().item()
            for name, parameter in named(learner).items()
            if name in way[learner.name] and parameter.grad is not None
        ]
        along[learner.name] = sum(parts) / weight
    put(end)
    ended, step, sides = values(), 1e-3, []
    for side in (step, -step):
        put({one: held | {name: held[name] + side * d for name, d in way[one].items()} for one, held in start.items()})
        sides.append(values())
    return {
        study.settings[one]: Moved(began[one], ended[one], (sides[0][one] - sides[1][one]) / (2 * step), along[one])
        for one in start
    }


def named(learner: Learner) -> dict[str, torch.nn.Parameter]:
    """What is trained, by the names of a checkpoint."""
    found = {f"model.{name}": parameter for name, parameter in learner.model.named_parameters()}
    return found | {f"bridges.{name}": p for name, p in learner.modules.named_parameters() if p.requires_grad}


# every loss


@pytest.mark.parametrize("loss", LOSSES)
def test_the_recipe_of_a_docstring_is_a_term(loss: str) -> None:
    said = fragment(loss)
    term = TermKeys.model_validate(said)
    assert term.loss == loss
    assert set(term.parameters) <= set(LOSS_KEYS[loss].parameters) | set(LOSS_KEYS[loss].made)
    assert set(said) <= {*TermKeys.model_fields, *term.parameters}


@pytest.mark.slow
@pytest.mark.parametrize("setting", alone())
def test_metrics_of_every_loss(trained: Everything, setting: str) -> None:
    rows = trained.metrics[setting]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        (label,) = row["terms"]
        numbers = [row["loss"], row["terms"][label], row["grad_norm_bridges"], *row["grad_norm_layers"]]
        assert all(math.isfinite(number) for number in numbers)
        assert row["grad_norm"] > 0, "the student itself learns, and not its projections alone"
        assert row["gradient_share"] == ({label: 1.0} if row["step"] in (1, 3) else None)


@pytest.mark.slow
@pytest.mark.parametrize("setting", alone())
def test_every_loss_goes_down(trained: Everything, setting: str) -> None:
    """Training lowers the term on the batch that it trains on; the student's own way goes down, by its own gradient."""
    found = trained.moved[setting]
    (first,) = trained.metrics[setting][0]["terms"].values()
    assert first == pytest.approx(found.began, rel=2e-4), "fp32 and fp64"
    assert found.ended < found.began
    assert found.slope < 0
    assert found.slope == pytest.approx(found.gradient, rel=1e-3)


def named_terms() -> list[dict[str, Any]]:
    """All of text as terms of one setting, each with a name of its own."""
    said = [setting["terms"][0] | {"name": name} for name, setting in of_text().items() if name != "forward_kl"]
    return [{"loss": "forward_kl"}, *said]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_losses_in_one_setting(train: Callable[..., limbeck.Run], world: Path, precision: str) -> None:
    """Balanced to equal gradients, each has the share of the whole gradient that its weight says."""
    said = named_terms()
    how = {"steps": 3, "batch_size": BLOCKS, "accumulate": 2, "probe_every": 2, "eval_every": 3, "precision": precision}
    run = train("all", 0.1, settings={"all": {"terms": said, "balance": "gradient"}}, data=few(world), train=how)
    weight = {term.get("name", "logit"): term.get("weight", 1.0) for term in said}
    for row in run.metrics:
        assert row["terms"].keys() == weight.keys()
        assert all(math.isfinite(value) for value in row["terms"].values())
        if row["step"] == 2:
            assert row["gradient_share"] is None
            continue
        assert sum(row["gradient_share"].values()) == pytest.approx(1)
        expected = {name: each / sum(weight.values()) for name, each in weight.items()}
        assert row["gradient_share"] == pytest.approx(expected, rel=1e-3)


def in_longer_padding(said: list[dict[str, Any]]) -> tuple[list[dict[str, Tensor]], list[list[Tensor]]]:
    """Values and gradients of a batch, and of it with longer padding that holds other tokens."""
    teacher, student = bert(24, 4, seed=99), bert(16, 2, seed=0)
    made = terms.of_setting(Setting.model_validate({"terms": said}), student.config, {"teacher": teacher.config}, "a")
    taps = {side: sorted({tap for term in made for tap in term.taps(side)}) for side in ("student", "teacher")}
    modules = projections.build(
        {n: m for term in made for n, m in term.modules.items()}, projections.Making(0, BLOCKS)
    ).double()
    one = Learner("a", student, taps["student"], seed=0, modules=modules, optimisation=PLAINLY)
    still: Still = still_of(Frozen("teacher", teacher, taps["teacher"]), [(one, made)], chunk=7)
    short = batch()
    fill = {"labels": -100, "documents": -1}
    longer = {
        name: torch.nn.functional.pad(tensor, (0, 4), value=fill.get(name, 0)) if tensor.dim() == 2 else tensor
        for name, tensor in short.items()
    }
    longer["input_ids"] = torch.where(longer["attention_mask"] == 1, longer["input_ids"], 33)
    values, gradients = [], []
    for each in (short, longer):
        one.optimizer.zero_grad(set_to_none=True)
        values.append(still.gradients(*views([each]), 0)["a"].terms)
        gradients.append([p.grad.clone() for p in one.parameters if p.grad is not None and p.shape != (32, 16)])
    assert values[0].keys() == {term.name for term in made}
    return values, gradients


def test_padding_counts_in_no_loss() -> None:
    """Longer padding, and other tokens in it, change no value and no gradient; but of losses that say so, below."""
    values, gradients = in_longer_padding([term for term in named_terms() if not LOSS_KEYS[term["loss"]].padding])
    for name, value in values[0].items():
        torch.testing.assert_close(value, values[1][name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("loss", [loss for loss, keys in LOSS_KEYS.items() if keys.padding])
def test_padding_counts_where_a_loss_says_so(loss: str) -> None:
    """As in the code that it repeats: its denominator holds padding, and so do its padded queries or states."""
    (short, longer), gradients = in_longer_padding([{"loss": loss, "tap": LOSS_KEYS[loss].taps[0], "name": "it"}])
    assert abs(longer["it"] / short["it"] - 1) > 1e-3
    assert any((mine - theirs).abs().max() > 1e-6 for mine, theirs in zip(*gradients, strict=True))


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_nan_of_any_model_skips_the_step_of_every_loss(whose: str) -> None:
    """One number of one word's vector is NaN: no student of that model changes, and each says which term it was."""
    teacher, one_batch, cast = bert(24, 4, seed=99), batch(), []
    word = int(one_batch["input_ids"][0, 0])

    def spoil(model: Any) -> None:
        model.get_input_embeddings().weight.data[word, 3] = math.nan

    if whose == "teacher":
        spoil(teacher)
    said = {loss: {"terms": [quick(fragment(loss))]} for loss in LOSSES if "teacher" in LOSS_KEYS[loss].needs}
    for name, setting in said.items():
        student = bert(16, 2, seed=0)
        made = terms.of_setting(Setting.model_validate(setting), student.config, {"teacher": teacher.config}, name)
        taps = sorted({tap for term in made for tap in term.taps("student")})
        modules = projections.build(
            {n: m for term in made for n, m in term.modules.items()}, projections.Making(0, BLOCKS)
        ).double()
        if whose == "student":
            spoil(student)
        cast.append((Learner(name, student, taps, seed=0, modules=modules, optimisation=PLAINLY), made))
    taps = sorted({tap for _, made in cast for term in made for tap in term.taps("teacher")})
    still = still_of(Frozen("teacher", teacher, taps), cast, chunk=7)
    before = {one.name: {name: p.detach().clone() for name, p in named(one).items()} for one, _ in cast}
    tallies = still.step(share([one_batch]), 0)
    assert list(tallies) == list(said)
    for one, made in cast:
        assert str(tallies[one.name].skipped).startswith(f"term {made[0].name}"), one.name
        for name, parameter in named(one).items():
            assert torch.equal(parameter.nan_to_num(), before[one.name][name].nan_to_num()), (one.name, name)


def test_a_micro_batch_of_words_that_nobody_knows(world: Path, tmp_path: Path, fast: None) -> None:
    """Unknown words are not masked, so that a micro-batch may select no token: losses on logits have nothing to say of it."""
    known, unknown = (world / "corpus.txt").read_text().split("\n\n"), " ".join(["zzz"] * 60)
    (tmp_path / "corpus.txt").write_text("\n\n".join(unknown if i % 5 == 3 else text for i, text in enumerate(known)))
    said = {loss: {"terms": [{"loss": loss}]} for loss in ("forward_kl", "cross_entropy", "pearson")}
    table = recipe(world, tmp_path / "run", settings=said, train={"accumulate": 4, "eval_every": 6})
    table["data"] |= {"corpus": str(tmp_path / "corpus.txt")}
    run = limbeck.run(table, quiet=True)
    assert all(math.isfinite(row["loss"]) and row["loss"] > 0 for row in run.metrics)


# the balance leaves the evaluation alone


@pytest.mark.parametrize("name", ["logit", "other"])
def test_a_balance_changes_no_evaluation(train: Callable[..., limbeck.Run], name: str) -> None:
    """Students that stand still answer alike, whatever weighs their terms and however these are named."""
    said = [{"loss": "forward_kl", "name": name}, {"loss": "mse", "tap": "hidden"}]
    settings = {how: {"terms": said, "balance": how} for how in ("none", "initial", "gradient", "uncertainty")}
    how = {"lr": 1e-30, "warmup": 0, "steps": 2, "eval_every": 2, "probe_every": 1}
    run = train("still", settings=settings, train=how)
    assert run.metrics[-1]["weights"] != run.metrics[-4]["weights"], "the balances do weigh"
    first, *others = ([row for row in run.evals if row["setting"] == name] for name in settings)
    for rows in others:
        for mine, theirs in zip(rows, first, strict=True):
            assert mine["logit_grad_norm_layers"] == pytest.approx(theirs["logit_grad_norm_layers"], rel=1e-4)
            assert mine["logit_loss"] == pytest.approx(theirs["logit_loss"], rel=1e-6)


# settings that remember


CONTRAST = {"loss": "contrastive", "tap": "pooled", "negatives": 6, "width": 8}
FACTORS = {"loss": "factor_transfer", "tap": "hidden", "layers": "last", "weight": 500.0}
STATEFUL = {
    "contrast": {"balance": "initial", "terms": [{"loss": "forward_kl"}, CONTRAST]},
    "factors": {"balance": "gradient", "terms": [{"loss": "forward_kl"}, quick(FACTORS)]},
    "correlate": {
        "balance": "uncertainty",
        "terms": [{"loss": "pearson"}, {"loss": "mse", "tap": "hidden"}, CONTRAST | {"name": "far"}],
    },
}


def stateful(world: Path, out: Path, **train: Any) -> dict[str, Any]:
    """Three rounds over twelve blocks, so that what is remembered comes back."""
    data = few(world) | {"masking": {"mode": "dynamic"}}
    how = {"steps": 6, "batch_size": 6, "probe_every": 2, "eval_blocks": 4} | train
    return recipe(world, out, settings=STATEFUL, data=data, train=how)


@pytest.fixture(scope="module")
def company(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """Settings that remember, in company, with dropout, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder: folder)
        out = tmp_path_factory.mktemp("runs") / "company"
        return limbeck.run(with_dropout(stateful(world, out), 0.1), quiet=True)


def state(run: limbeck.Run, setting: str, step: int = 6) -> Path:
    return run.folder / "checkpoints" / f"step-{step:06d}" / f"{setting}-seed0.safetensors"


def test_what_is_remembered_changes(company: limbeck.Run) -> None:
    """Else the tests below would show little: banks move, factors are set, log-variances learned, paraphrasers stay."""
    early, late = ({name: load_file(state(company, name, step)) for name in STATEFUL} for step in (4, 6))

    def changed(setting: str, part: str) -> list[bool]:
        return [not torch.equal(early[setting][key], late[setting][key]) for key in late[setting] if part in key]

    for setting in ("contrast", "correlate"):
        assert changed(setting, "_bank") == [True, True]
        assert [int(tensor) for key, tensor in late[setting].items() if key.endswith(".updates")] == [6]
    assert changed("contrast", "balance.factors") == [False] and (late["contrast"]["balance.factors"] != 1).all()
    assert changed("factors", "balance.factors") == changed("correlate", "balance.log_variances") == [True]
    assert changed("factors", "paraphraser") == [False] * 12


@pytest.mark.parametrize("setting", STATEFUL)
def test_company_is_solo(company: limbeck.Run, world: Path, tmp_path: Path, fast: None, setting: str) -> None:
    table = with_dropout(stateful(world, tmp_path / setting) | {"only": [setting]}, 0.1)
    solo = limbeck.run(table, quiet=True)
    assert weights(solo, f"{setting}-seed0") == weights(company, f"{setting}-seed0")
    assert state(solo, setting).read_bytes() == state(company, setting).read_bytes()
    assert untimed(solo.metrics) == untimed([row for row in company.metrics if row["setting"] == setting])
    assert untimed(solo.evals) == untimed([row for row in company.evals if row["setting"] == setting])


@pytest.mark.parametrize("after", [1, 3])
def test_stopped_and_gone_on_is_undisturbed(
    company: limbeck.Run, world: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    table = with_dropout(stateful(world, tmp_path / "stopped"), 0.1)
    with monkeypatch.context() as patch:
        stop_after(patch, PARAPHRASER + after)
        with pytest.raises(Interrupted, match=f"step {after}"):
            limbeck.run(table, quiet=True)
    gone_on = limbeck.run(table, quiet=True)
    same_run(gone_on, company, checkpoints=False)
    for setting in STATEFUL:
        assert state(gone_on, setting).read_bytes() == state(company, setting).read_bytes()


def test_stopped_while_a_paraphraser_is_trained(
    company: limbeck.Run, world: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = with_dropout(stateful(world, tmp_path / "early"), 0.1)
    with monkeypatch.context() as patch:
        stop_after(patch, PARAPHRASER - 1)
        with pytest.raises(Interrupted, match="paraphraser"):
            limbeck.run(table, quiet=True)
    assert json.loads((tmp_path / "early" / "manifest.json").read_text())["status"] != "done"
    same_run(limbeck.run(table, quiet=True), company)


# an update in parts


PARTS = {
    "rows": {
        "balance": "gradient",
        "terms": [
            {"loss": "forward_kl"},
            CONTRAST,
            {"loss": "patient", "tap": "hidden", "name": "patient", "weight": 100.0},
            {"loss": "neuron_selectivity", "tap": "ffn", "name": "neurons"},
            {"loss": "flow", "tap": "hidden", "name": "flow"},
            quick(FACTORS) | {"name": "factors"},
        ],
    },
    "tokens": {
        "balance": "uncertainty",
        "terms": [
            {"loss": "decoupled_kl"},
            {"loss": "topk_jensen_shannon", "k": 5, "name": "top"},
            {"loss": "activation_boundary", "tap": "ffn"},
            {"loss": "attention_transfer", "tap": "embedding", "name": "energy", "weight": 100.0},
            {"loss": "attention_kl", "tap": "scores"},
            {"loss": "relation_kl", "tap": ["query", "key", "value"]},
            {"loss": "cosine", "tap": "pooled"},
        ],
    },
}


@pytest.mark.slow
def test_accumulating_gives_the_same_update(world: Path, tmp_path: Path, fast: None) -> None:
    """Losses of tokens and of rows, their memories and their balances; losses of batches see micro-batches, as they say."""
    runs = []
    for parts in (1, 2):
        how = {"steps": 4, "precision": "fp64", "accumulate": parts, "probe_every": 2, "eval_every": 4}
        table = recipe(world, tmp_path / f"a{parts}", settings=PARTS, data=few(world), train=how)
        runs.append(limbeck.run(table, quiet=True))
    for name in PARTS:
        found = [load_file(state(run, name, 4)) for run in runs]
        assert found[0].keys() == found[1].keys() and len(found[0]) > len(tensors(runs[0], f"{name}-seed0"))
        for key, tensor in found[0].items():
            torch.testing.assert_close(found[1][key], tensor, rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
    for mine, theirs in zip(*(run.metrics for run in runs), strict=True):
        assert mine["terms"] == pytest.approx(theirs["terms"], rel=1e-9)
        assert mine["weights"] == pytest.approx(theirs["weights"], rel=1e-9)
        assert mine["grad_norm_layers"] == pytest.approx(theirs["grad_norm_layers"], rel=1e-9)
        assert mine["gradient_share"] == (
            theirs["gradient_share"] and pytest.approx(theirs["gradient_share"], rel=1e-9)
        )
