"""A model stops behind the deepest layer that is looked at: the same taps, and no layer runs for nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from families import CONFIGS, tiny
from kernel import (
    HIDDEN,
    LABEL,
    LOGIT,
    SCORES,
    TEACHER_DEPTH,
    batch,
    bert,
    frozen,
    learner,
    parameters_of,
    share,
    still_of,
)
from rows import classifier
from torch import nn

from limbeck.distil.lessons import Pair, Term
from limbeck.distil.schedules import constant
from limbeck.distil.teachers import Frozen
from limbeck.families import FAMILIES
from limbeck.losses import mse
from limbeck.models.taps import Tapped

DEPTH = 3
KINDS = ("hidden", "ffn", "query", "key", "value", "scores", "probs")


def given() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 100, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(9) < torch.tensor([9, 5, 2])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def layers_of(model: nn.Module) -> nn.ModuleList:
    row = FAMILIES[model.config.model_type]  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    found = model.get_submodule(f"{row.base}.{row.layers}")
    assert isinstance(found, nn.ModuleList)
    return found


def counted(model: nn.Module) -> Counter[int]:
    """How often each layer has run, from 1; counts as long as the model lives."""
    ran: Counter[int] = Counter()
    for number, layer in enumerate(layers_of(model), start=1):
        layer.register_forward_hook(lambda *_, n=number: ran.update([n]))
    return ran


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_taps_to_the_bit(name: str, layer: int) -> None:
    """And which keys are seen; only the layers up to the deepest tap run."""
    taps = [f"{kind}.{layer}" for kind in KINDS] + ["embedding", "hidden.1", "logits"]
    model = tiny(name)
    tapped, ran = Tapped(model, taps), counted(model)
    with torch.no_grad():
        whole = tapped(given())
        assert ran == Counter(range(1, DEPTH + 1))
        ran.clear()
        short = tapped(given(), whole=False)
    assert ran == Counter(range(1, layer + 1))
    for tap in taps[:-1]:
        assert torch.equal(short[tap], whole[tap]), tap
    mine, theirs = (it.visible(f"scores.{layer}") for it in (short, whole))
    if mine is None or theirs is None:
        assert mine is theirs
    else:
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_embedding_alone(name: str) -> None:
    """One layer is run at most: it is given the embedding."""
    model = tiny(name)
    tapped, ran = Tapped(model, ["embedding", "logits"]), counted(model)
    short = tapped(given(), whole=False)["embedding"]
    assert set(ran) <= {1}
    assert torch.equal(short, tapped(given())["embedding"])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_gradient_through_it_is_the_same(name: str) -> None:
    found = []
    for whole in (True, False):
        model = tiny(name)
        readout = Tapped(model, ["hidden.2", "scores.1"])(given(), whole=whole)
        (readout["hidden.2"].square().sum() + readout["scores.1"].sum()).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and found[0]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_is_whole_again(name: str) -> None:
    """Afterwards, after an error inside, and for who calls the model itself."""
    model = tiny(name)
    tapped, names = Tapped(model, ["hidden.1"]), list(model.state_dict())
    with torch.no_grad():
        before = model(**given()).logits
    tapped(given(), whole=False)
    assert len(layers_of(model)) == DEPTH

    def fail(*_: Any) -> None:
        raise ArithmeticError("inside")

    hook = layers_of(model)[0].register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError, match="inside"):
        tapped(given(), whole=False)
    hook.remove()
    assert [id(layer) for layer in layers_of(model)] == [id(layer) for layer in tapped.layers]
    assert list(model.state_dict()) == names
    with torch.no_grad():
        assert torch.equal(model(**given()).logits, before)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_mean_of_the_last_states_needs_all(name: str) -> None:
    model = tiny(name)
    tapped, ran = Tapped(model, ["pooled", "hidden.1"]), counted(model)
    with torch.no_grad():
        short = tapped(given(), whole=False)
    assert ran == Counter(range(1, DEPTH + 1))
    with torch.no_grad():
        whole = tapped(given())
    assert torch.equal(short["pooled"], whole["pooled"]) and torch.equal(short["hidden.1"], whole["hidden.1"])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_classifier_stops_too(name: str) -> None:
    model = classifier(name)
    tapped, ran = Tapped(model, ["hidden.1", "logits"]), counted(model)
    short = tapped(given(), whole=False)["hidden.1"]
    assert set(ran) == {1}
    assert torch.equal(short, tapped(given())["hidden.1"])


# in a step

LOW = Term(
    "low",
    mse,
    (Pair("hidden.1", "hidden.2", "hidden-1"),),
    constant(1.0),
    modules={"hidden-1": HIDDEN.modules["hidden-1"]},
)
MEAN = Term(
    "mean",
    mse,
    (Pair("pooled", "pooled", "hidden-1"),),
    constant(1.0),
    modules={"hidden-1": HIDDEN.modules["hidden-1"]},
)


def watched(taps: list[str]) -> tuple[Frozen, Counter[int], list[str]]:
    """A teacher, how often its layers ran, and who asked its head."""
    teacher, asked = Frozen("teacher", bert(24, TEACHER_DEPTH, seed=99), taps), []
    ran = counted(teacher.model)
    teacher.model.get_submodule("cls").register_forward_hook(lambda *_: asked.append("head"))
    for part in teacher.tapped.heads:
        if isinstance(part, nn.Module):
            part.register_forward_hook(lambda *_: asked.append("part"))
    return teacher, ran, asked


def test_without_logits_the_teacher_stops() -> None:
    """Neither its upper layers nor its head run; the student ends with the bits that it has from the whole teacher."""
    teacher, ran, asked = watched(["hidden.2", "logits"])
    one, other = learner("s", (LOW,)), learner("s", (LOW,))
    batches = [batch(0), batch(1)]
    still_of(teacher, [(one, (LOW,))], chunk=5).step(share(batches), 0)
    assert ran == Counter({1: 2, 2: 2}) and not asked
    still = still_of(frozen(), [(other, (LOW,))], chunk=5)
    still._heard = set(still.actors)  # everyone runs whole
    still.step(share(batches), 0)
    mine, theirs = parameters_of(one), parameters_of(other)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("inner", [HIDDEN, SCORES])
def test_as_deep_as_it_is_tapped(inner: Term) -> None:
    """And beside a term on labels alone its head is asked, for the logit loss that all settings share."""
    batches, deepest = [batch(0)], max(int(tap.split(".")[1]) for tap in inner.taps("teacher"))
    for terms, heard in (((inner,), False), ((inner, LABEL), True)):
        teacher, ran, asked = watched([*sorted(inner.taps("teacher")), "logits"])
        still_of(teacher, [(learner("s", terms), terms)], chunk=5).step(share(batches), 0)
        assert max(ran) == (TEACHER_DEPTH if heard else deepest) and bool(asked) == heard


def test_with_logits_it_runs_whole_and_once() -> None:
    """Company does not matter: one student that hears it is enough."""
    teacher, ran, asked = watched(["hidden.2", "logits"])
    batches = [batch(0)]
    pairs = [(learner("a", (LOW,)), (LOW,)), (learner("b", (LOGIT,)), (LOGIT,))]
    still_of(teacher, pairs, chunk=100).step(share(batches), 0)
    assert ran == Counter(range(1, TEACHER_DEPTH + 1)) and asked


def test_a_mean_of_the_last_states_runs_it_whole() -> None:
    teacher, ran, asked = watched(["pooled", "logits"])
    batches = [batch(0)]
    still_of(teacher, [(learner("s", (MEAN,)), (MEAN,))], chunk=5).step(share(batches), 0)
    assert ran == Counter(range(1, TEACHER_DEPTH + 1)) and not asked


def test_labels_alone_ask_no_teacher() -> None:
    batches = [batch(0)]
    still = still_of(None, [(learner("s", (LABEL,)), (LABEL,))], chunk=5)
    assert still.step(share(batches), 0)["s"].terms["label"] > 0
