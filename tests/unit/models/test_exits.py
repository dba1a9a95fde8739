"""Early exits by themselves: their heads, the plain models that end with them, and answers that come early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from families import CAUSAL, CONFIGS
from kernel import BLOCKS
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.distil import projections
from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.projections import head
from limbeck.distil.schedules import constant
from limbeck.errors import UserError
from limbeck.measure.evaluation import Evaluation
from limbeck.models.exits import EarlyExit, Exit, cut
from limbeck.models.taps import Tapped
from limbeck.system.processes import World

DEPTH = 3
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
TYPED = ("bert", "roberta", "electra", "gpt2")  # who read segments; the others are given them in vain
SORTS = [(name, sort) for name in CONFIGS for sort in ("tied", "untied", "classifier")]


def made(name: str, sort: str, **words: Any) -> PreTrainedModel:
    """A random model in fp64 and in evaluation mode, every parameter moved away from its initial value."""
    config = CONFIGS[name]()
    config.tie_word_embeddings = sort == "tied"
    config.pad_token_id = 0
    if sort == "classifier":
        config.num_labels, config.problem_type = 3, "single_label_classification"
    for word, value in words.items():
        setattr(config, word, value)
    torch.manual_seed(0)
    model = kind(name, sort).from_config(config, attn_implementation="sdpa").eval().to(torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def kind(name: str, sort: str) -> Any:
    if sort == "classifier":
        return tf.AutoModelForSequenceClassification
    return tf.AutoModelForCausalLM if name in CAUSAL else tf.AutoModelForMaskedLM


def batch() -> dict[str, Tensor]:
    """Rows of 11, 7 and 4 tokens, padded on the right."""
    ids = torch.randint(5, 100, (3, 11), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(11) < torch.tensor([11, 7, 4])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def moved(exit: Exit, seed: int = 1) -> Exit:
    """The same exit as if it had been trained."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in exit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return exit


def attended(logits: Tensor, sort: str) -> Tensor:
    """The logits that count."""
    return logits if sort == "classifier" else logits[batch()["attention_mask"].bool()]


def storages(parameters: Iterator[nn.Parameter]) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in parameters}


@contextmanager
def counted(tapped: Tapped) -> Iterator[list[int]]:
    """The layers that run inside."""
    ran: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, n=number: ran.append(n))
        for number, layer in enumerate(tapped.layers, start=1)
    ]
    yield ran
    for hook in hooks:
        hook.remove()


# heads


@pytest.mark.parametrize(("name", "sort"), SORTS)
def test_a_head_begins_as_the_models_own_and_shares_what_it_ties(name: str, sort: str) -> None:
    model = made(name, sort)
    tapped = Tapped(model)
    exit, states = Exit(tapped), torch.randn(4, 32, dtype=torch.float64)
    normed = tapped.final_norm(states) if tapped.final_norm is not None else states
    assert torch.equal(exit(states), tapped.head(normed))
    assert torch.equal(Exit(Tapped(model, columns=2))(states), exit(states)[:, :2])
    assert not storages(exit.parameters()) & storages(model.parameters())
    embedding = model.get_input_embeddings().weight
    found = [module for module in exit.modules() if getattr(module, "weight", None) is embedding]
    assert len(found) == (sort == "tied")
    assert all(parameter is not embedding for parameter in exit.parameters())
    first, second = Exit(tapped), Exit(tapped)
    assert not storages(first.parameters()) & storages(second.parameters())


@pytest.mark.parametrize(("name", "sort"), SORTS)
def test_cut_is_the_exit_for_plain_transformers_too(name: str, sort: str, tmp_path: Path) -> None:
    model, inputs = made(name, sort), batch()
    readout = Tapped(model, ["exit.1", "exit.2"])(inputs)
    for layer in (1, 2):
        exit = moved(Exit(Tapped(model)), layer)
        expected = attended(exit(readout.inputs(f"exit.{layer}")), sort)
        small = cut(model, exit, layer).eval()
        torch.testing.assert_close(attended(small(**inputs).logits, sort), expected, **CLOSE)
        assert not storages(small.parameters()) & (storages(model.parameters()) | storages(exit.parameters()))
        place = tmp_path / str(layer)
        small.save_pretrained(place)
        how = {"dtype": torch.float64, "attn_implementation": "sdpa", "output_loading_info": True}
        loaded, report = kind(name, sort).from_pretrained(place, **how)
        assert not any(report.values())
        assert loaded.config.num_hidden_layers == layer
        torch.testing.assert_close(attended(loaded.eval()(**inputs).logits, sort), expected, **CLOSE)


def test_cut_keeps_what_the_config_says_of_each_layer() -> None:
    """A list with a word for every layer need not be the one that the family derives."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    model, inputs = made("modernbert", "tied", layer_types=kinds), batch()
    exit = moved(Exit(Tapped(model)))
    small = cut(model, exit, 2).eval()
    assert small.config.layer_types == kinds[:2] != CONFIGS["modernbert"]().layer_types[:2]
    expected = exit(Tapped(model, ["exit.2"])(inputs).inputs("exit.2"))
    torch.testing.assert_close(attended(small(**inputs).logits, "tied"), attended(expected, "tied"), **CLOSE)


def pupil(name: str, sort: str, layers: tuple[int, ...] = (1, 2)) -> Learner:
    model = made(name, sort)
    modules = {f":exit:{layer}": head for layer in layers}
    return Learner(
        "one",
        model,
        [f"exit.{layer}" for layer in layers],
        seed=0,
        modules=projections.build(modules, projections.Making(0, BLOCKS, Tapped(model))).to(torch.float64),
        optimisation=Optimisation(constant(0.01), weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8, clip=0.01),
    )


@pytest.mark.parametrize(("name", "sort"), SORTS)
def test_what_is_tied_is_trained_clipped_and_kept_once(name: str, sort: str) -> None:
    one, inputs = pupil(name, sort), batch()
    embedding = one.model.get_input_embeddings().weight
    assert list(one.exits) == ["exit.1", "exit.2"]
    held = [id(p) for group in one.optimizer.param_groups for p in group["params"]]
    assert len(set(held)) == len(held) == len(one.parameters)
    assert sum(parameter is embedding for parameter in one.parameters) == 1
    readout = one.forward(inputs)
    sum(one.logits(readout.inputs(tap), tap).square().mean() for tap in one.exits).backward()
    by_decoding = embedding.grad.clone()
    apart = torch.cat([p.grad.flatten() for p in one.modules.parameters() if p.grad is not None]).norm().item()
    whole = torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None]).norm().item()
    before = embedding.detach().clone()
    norms = one.update(0, World())
    assert (norms.modules, norms.whole) == pytest.approx((apart, whole), rel=1e-12)
    assert min(apart, whole) > 0.01, "clipped, the heads apart from the model"
    for module in (one.model, one.modules):
        means = [one.optimizer.state[p]["exp_avg"].flatten() for p in module.parameters() if p in one.optimizer.state]
        assert torch.cat(means).norm().item() == pytest.approx(0.1 * 0.01, rel=1e-4)
    step = (embedding.detach() - before)[by_decoding.abs() > 1e-6].abs()
    assert step.max() < 0.0101, "one step of AdamW is as long as its rate"
    kept = {name: tensor.clone() for name, tensor in one.state().items()}
    parameters = {key: tensor for key, tensor in kept.items() if key.startswith(("model.", "bridges."))}
    assert sum(tensor.numel() for tensor in parameters.values()) == sum(p.numel() for p in one.parameters)
    again = pupil(name, sort)
    again.load(kept)
    for mine, theirs in zip(one.parameters, again.parameters, strict=True):
        assert torch.equal(mine, theirs)
    with torch.no_grad():
        for tap in one.exits:
            assert torch.equal(one.logits(readout.inputs(tap), tap), again.logits(readout.inputs(tap), tap))


def test_a_mean_behind_a_norm_is_refused() -> None:
    tapped = Tapped(made("modernbert", "classifier", classifier_pooling="mean"))
    with pytest.raises(UserError, match=r"mean of normed tokens; set classifier_pooling of the model to cls"):
        Exit(tapped)


# classifiers, read by taps


@pytest.mark.parametrize(
    ("name", "words"),
    [*((name, {}) for name in CONFIGS), *(("modernbert", {"classifier_pooling": how}) for how in ("cls", "mean"))],
)
@pytest.mark.parametrize("typed", [False, True])
def test_a_tapped_classifier_is_transformers_own(name: str, words: dict[str, str], typed: bool) -> None:
    """Logits, and the gradient of every parameter."""
    inputs, found = batch(), []
    if typed:
        inputs["token_type_ids"] = (torch.arange(11) > 3).long() * inputs["attention_mask"]
    typed = typed and name in TYPED
    for tapped in (True, False):
        model = made(name, "classifier", **words)
        given = {key: value for key, value in inputs.items() if key != "token_type_ids" or tapped or typed}
        logits = Tapped(model)(given)["logits"] if tapped else model(**given).logits
        logits.log_softmax(-1)[:, 1].sum().backward()
        found.append((logits.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (mine, slopes), (theirs, expected) = found
    assert mine.shape == (3, 3)
    torch.testing.assert_close(mine, theirs, **CLOSE)
    for parameter, slope in expected.items():
        assert (slope is None) == (slopes[parameter] is None), parameter
        if slope is not None:
            torch.testing.assert_close(slopes[parameter], slope, rtol=1e-11, atol=1e-12)
    if typed:
        plain = made(name, "classifier")(**batch()).logits
        assert not torch.allclose(theirs, plain), "the segments matter"


# answers that come early


def choose(choices: list[tuple[int, Tensor]], confidence: float) -> tuple[Tensor, list[int]]:
    """Row by row, the first answer that is sure of every attended token; the last one else."""
    rows, layers, kept = [], [], batch()["attention_mask"].bool()
    for row in range(3):
        for layer, logits in choices:
            sure = logits[row].softmax(-1).amax(-1) >= confidence
            if layer == DEPTH or bool(sure.all() if sure.dim() == 0 else sure[kept[row]].all()):
                rows.append(logits[row])
                layers.append(layer)
                break
    return torch.stack(rows), layers


@pytest.mark.parametrize(("name", "sort"), SORTS)
def test_each_row_leaves_at_the_first_exit_that_is_sure(name: str, sort: str) -> None:
    model, inputs = made(name, sort), batch()
    exits = {layer: moved(Exit(Tapped(model)), layer) for layer in (2, 1)}
    choices = [(layer, cut(model, exits[layer], layer).eval()(**inputs).logits.detach()) for layer in (1, 2)]
    choices.append((DEPTH, model(**inputs).logits.detach()))
    early, seen = EarlyExit(model, exits), set()
    kept = inputs["attention_mask"].bool()
    surest = [logits.softmax(-1).amax(-1) for _, logits in choices[:2]]
    least = [s if sort == "classifier" else torch.where(kept, s, 1).amin(1) for s in surest]
    between = [value * (1 - 1e-9) for value in torch.cat(least).tolist()]
    for confidence in (0.0, *between, 1.1):
        with counted(early.tapped) as ran:
            logits, layers = early(inputs, confidence)
        expected, behind = choose(choices, confidence)
        assert layers.tolist() == behind
        assert ran == list(range(1, max(behind) + 1))
        torch.testing.assert_close(attended(logits, sort), attended(expected, sort), **CLOSE)
        assert logits.isfinite().all()
        seen |= {tuple(behind)}
    assert {(1, 1, 1), (3, 3, 3)} < seen, "some rows leave, some stay"
    assert not any(module._forward_hooks for module in model.modules())


def test_a_row_of_nothing_but_padding_waits_for_nobody() -> None:
    model, inputs = made("bert", "tied"), batch()
    inputs["attention_mask"][2] = 0
    logits, layers = EarlyExit(model, {1: Exit(Tapped(model))})(inputs, 1.1)
    assert layers.tolist() == [3, 3, 1] and logits.isfinite().all()
    without = {"input_ids": inputs["input_ids"][:2, :4]}
    full = without | {"attention_mask": torch.ones(2, 4, dtype=torch.long)}
    mine, theirs = (EarlyExit(model, {1: Exit(Tapped(model))})(given, 0.0)[0] for given in (without, full))
    assert torch.equal(mine, theirs)


def test_a_score_is_never_sure() -> None:
    model = made("bert", "classifier", num_labels=1, problem_type="regression")
    exit = Exit(Tapped(model))
    with pytest.raises(UserError, match=r"no probability to be sure by; use the models in exit-N, or the whole one"):
        EarlyExit(model, {1: exit})
    assert cut(model, exit, 1)(**batch()).logits.shape == (3, 1)


# evaluation


@pytest.mark.parametrize(("name", "sort"), [("bert", "tied"), ("gpt2", "untied"), ("modernbert", "classifier")])
def test_an_evaluation_of_an_exit_is_that_of_the_cut_model(name: str, sort: str) -> None:
    rows, length = 3, 11
    shape = (rows,) if sort == "classifier" else (rows, length)
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3 if sort == "classifier" else 100, shape, generator=draw)
    select = torch.ones(rows, dtype=torch.bool) if sort == "classifier" else batch()["attention_mask"].bool()
    given = batch() | {"labels": torch.where(select, labels, -100), "select": select, "blocks": torch.arange(rows)}
    given["documents"] = torch.arange(rows).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).int()
    one, teacher = pupil(name, sort), pupil(name, sort)
    for layer, tap in enumerate(one.exits, start=1):
        moved(one.exits[tap], layer)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter.mul_(1.1)
    cuts = []
    for layer in (1, 2):
        small = cut(one.model, one.exits[f"exit.{layer}"], layer)
        how = {"seed": 0, "modules": nn.ModuleDict(), "optimisation": one.optimisation}
        cuts.append(Learner(f"cut-{layer}", small, ["logits"], **how))
    task = "classification" if sort == "classifier" else None
    who = dict.fromkeys(("one", "cut-1", "cut-2"), teacher)
    found = Evaluation(who, {"test": [given]}, chunk=4, task=task)([one, *cuts])
    row = found["one", "test"]
    assert list(row["exits"]) == ["exit.1", "exit.2"]
    words = {"logit_loss", "agreement", "label_loss", "label_accuracy"} | ({"metrics"} if task else set())
    for layer in (1, 2):
        mine, alone = row["exits"][f"exit.{layer}"], found[f"cut-{layer}", "test"]
        assert set(mine) == words and alone["exits"] == {}
        assert all(mine[word] == pytest.approx(alone[word], rel=1e-12) for word in words)
        assert mine["logit_loss"] != row["logit_loss"]
