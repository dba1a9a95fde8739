"""What makes each scheme that scheme, and what holds for all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import LABEL, LOGIT, batch, frozen, gradients_of, learner, parameters_of, recipe, share, views
from runfiles import same_run, stop_after, tensors, untimed
from torch import Tensor

import limbeck
from limbeck.distil import schemes
from limbeck.distil.learner import Learner
from limbeck.distil.reduce import Counts
from limbeck.distil.teachers import Ema
from limbeck.errors import Interrupted, UserError
from limbeck.losses import cross_entropy, forward_kl
from limbeck.recipe.load import load

PEERS = replace(LOGIT, name="logit-peers", teacher="peers")
AVERAGE = replace(LOGIT, name="logit-ema", teacher="ema")


def peers(count: int, terms: tuple[Any, ...] = (LABEL, PEERS)) -> list[Learner]:
    return [learner(f"peer-{'abc'[i]}", terms, seed=i) for i in range(count)]


def gradients(cast: schemes.Cast, seed: int = 0) -> dict[str, dict[str, Tensor | None]]:
    still = schemes.together([cast], chunk=7)
    batches = [batch(seed)]
    still.gradients(*views(batches), 0)
    return {one.name: gradients_of(one) for one in still.learners}


def plain_loss(one: Learner, others: list[Learner], given: dict[str, Tensor]) -> Tensor:
    """LABEL's cross-entropy and the mean over the others of forward KL, on whole logits."""
    inputs = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
    select, labels = given["select"], given["labels"]
    logits = one.model(**inputs).logits
    loss = 0.5 * cross_entropy(student=logits, labels=labels).sum() / (labels != -100).sum()
    for other in others:
        teacher = other.model(**inputs).logits.detach()
        loss = loss + forward_kl(student=logits[select], teacher=teacher[select]).mean() / len(others)
    return loss


@pytest.mark.parametrize("count", [2, 3])
def test_mutual_is_deep_mutual_learning(count: int) -> None:
    """Each peer's gradient is that of its own loss, the others held constant; labels count once, not once for each pair."""
    cast, given = peers(count), batch()
    found = gradients(schemes.mutual(cast, {}, (LABEL, PEERS)))
    for one in cast:
        one.optimizer.zero_grad()
        plain_loss(one, [other for other in cast if other is not one], given).backward()
        for name, expected in gradients_of(one).items():
            got = found[one.name][name]
            assert (expected is None) == (got is None)
            if expected is not None:
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_swapping_the_names_of_peers_swaps_the_results() -> None:
    first = peers(2)
    second = [learner(name, (LABEL, PEERS), seed=seed) for name, seed in (("peer-b", 0), ("peer-a", 1))]
    for cast in (first, second):
        still = schemes.together([schemes.mutual(cast, {}, (LABEL, PEERS))], chunk=7)
        for step in range(3):
            batches = [batch(step)]
            still.step(share(batches), step)
    for mine, theirs in zip(first, second, strict=True):
        assert mine.name != theirs.name
        a, b = parameters_of(mine), parameters_of(theirs)
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_frozen_teacher_teaches_beside_the_peers() -> None:
    teacher, terms = frozen(), (LOGIT, PEERS)
    still = schemes.together([schemes.mutual(peers(2, terms), {"teacher": teacher}, terms)], chunk=7)
    batches = [batch()]
    tallies = still.gradients(*views(batches), 0)
    for tally in tallies.values():
        assert set(tally.terms) == {"logit", "logit-peers"}
        torch.testing.assert_close(tally.logit_loss, tally.terms["logit"])  # the teacher's, not the peers'


def test_alternating_peers_read_what_was_updated() -> None:
    """The second peer learns from the first one's new weights: the update that it makes alone against them."""
    alternating, by_hand = peers(2), peers(2)
    batches = [batch()]
    counts = Counts.of(batches)
    schemes.together([schemes.mutual(alternating, {}, (LABEL, PEERS), alternate=True)], chunk=7).step(
        share(batches, counts), 0
    )
    together = schemes.together([schemes.mutual(by_hand, {}, (LABEL, PEERS))], chunk=7)
    for one in by_hand:
        together.only(*[lesson for lesson in together.lessons if lesson.student == one.name]).step(
            share(batches, counts), 0
        )
    for mine, theirs in zip(alternating, by_hand, strict=True):
        a, b = parameters_of(mine), parameters_of(theirs)
        assert all(torch.equal(a[name], b[name]) for name in a)
    simultaneous = peers(2)
    schemes.together([schemes.mutual(simultaneous, {}, (LABEL, PEERS))], chunk=7).step(share(batches, counts), 0)
    a, b = parameters_of(alternating[1]), parameters_of(simultaneous[1])
    assert any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_average_is_the_closed_form(decay: float) -> None:
    """After n updates it is d^n w_0 + (1 - d) sum_k d^(n - k) w_k."""
    one = learner("one", (LABEL, AVERAGE))
    average = Ema("one-ema", one, ["logits"], decay)
    still = schemes.together([schemes.averaged(one, average, {}, (LABEL, AVERAGE))], chunk=7)
    trail = [copy.deepcopy(dict(one.model.named_parameters()))]
    for step in range(4):
        batches = [batch(step)]
        still.step(share(batches), step)
        trail.append(copy.deepcopy(dict(one.model.named_parameters())))
    for name, found in average.model.named_parameters():
        expected = decay**4 * trail[0][name]
        for k in range(1, 5):
            expected = expected + (1 - decay) * decay ** (4 - k) * trail[k][name]
        torch.testing.assert_close(found.data, expected.data, rtol=1e-12, atol=1e-13)
    assert all(p.grad is None for p in average.model.parameters())


def test_the_average_begins_as_its_learner_and_teaches_nothing_then() -> None:
    one = learner("one", (LABEL, AVERAGE))
    still = schemes.together(
        [schemes.averaged(one, Ema("one-ema", one, ["logits"], 0.9), {}, (LABEL, AVERAGE))], chunk=7
    )
    batches = [batch()]
    tallies = still.gradients(*views(batches), 0)
    assert abs(tallies["one"].terms["logit-ema"].item()) < 1e-12


# from recipes: all schemes, one family

LABELS = {"loss": "cross_entropy", "name": "label"}
SETTINGS = {
    "labels": {"terms": [LABELS]},
    "offline": {"terms": [LABELS, {"loss": "forward_kl"}]},
    "mutual": {"peers": 2, "terms": [LABELS, {"loss": "forward_kl", "teacher": "peers"}, {"loss": "forward_kl"}]},
    "three": {
        "peers": 3,
        "balance": "gradient",
        "terms": [LABELS, {"loss": "mse", "tap": "hidden", "layers": "last", "teacher": "peers"}],
    },
    "alternate": {
        "peers": 2,
        "alternate": True,
        "terms": [LABELS, {"loss": "attention_kl", "tap": "scores", "teacher": "peers"}],
    },
    "ema": {"ema": 0.5, "terms": [LABELS, {"loss": "forward_kl", "teacher": "ema"}, {"loss": "forward_kl"}]},
}
Train = Callable[..., limbeck.Run]


@pytest.fixture(scope="module")
def company(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    out = tmp_path_factory.mktemp("schemes") / "all"
    return limbeck.run(recipe(world, out, settings=SETTINGS, train={"probe_every": 2}), quiet=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_in_company_is_alone(train: Train, company: limbeck.Run, name: str) -> None:
    alone = train(name, settings={name: SETTINGS[name]}, train={"probe_every": 2})
    for student in alone.students:
        mine, theirs = tensors(alone, student), tensors(company, student)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    chosen = [row for row in company.metrics if row["setting"] == name]
    assert untimed(alone.metrics) == untimed(chosen)


def test_stopped_and_gone_on_is_undisturbed(
    train: Train, company: limbeck.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train("stopped", settings=SETTINGS, train={"probe_every": 2})
    same_run(train("stopped", settings=SETTINGS, train={"probe_every": 2}), company, checkpoints=False)


@pytest.mark.slow
def test_accumulation_is_exact(train: Train) -> None:
    exact = {"precision": "fp64", "probe_every": 2}
    one = train("one", settings=SETTINGS, train=exact)
    two = train("two", settings=SETTINGS, train={**exact, "accumulate": 2})
    for student in one.students:
        mine, theirs = tensors(one, student), tensors(two, student)
        for key in theirs:
            torch.testing.assert_close(mine[key], theirs[key], rtol=1e-7, atol=1e-8)


def test_the_students_of_peers_have_names_of_their_own(company: limbeck.Run) -> None:
    assert {name for name in company.students if name.startswith("three")} == {f"three-seed0-{x}" for x in "abc"}
    mine, theirs = (tensors(company, f"mutual-seed0-{peer}") for peer in "ab")
    assert any(not torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"terms": [{"loss": "forward_kl", "teacher": "peers"}]}, "there is one student; set peers to 2 or more"),
        ({"peers": 2, "terms": [{"loss": "forward_kl"}]}, "none learns from the others; give a term teacher: peers"),
        ({"terms": [{"loss": "forward_kl", "teacher": "ema"}]}, "set its decay, such as 0.999"),
        ({"ema": 0.9, "terms": [{"loss": "forward_kl"}]}, "teaches nobody; give a term teacher: ema"),
        ({"ema": 1.0, "terms": [{"loss": "forward_kl", "teacher": "ema"}]}, "must be below 1"),
        ({"alternate": True, "terms": [{"loss": "forward_kl"}]}, "one student has nobody to alternate with"),
        ({"terms": [{"loss": "cross_entropy", "teacher": "peers"}]}, "learns from no teacher; leave the key out"),
        ({"terms": [{"loss": "forward_kl", "teacher": "peer"}]}, "there is no teacher 'peer'; did you mean 'peers'"),
    ],
)
def test_a_role_that_nobody_plays(world: Path, tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(recipe(world, tmp_path / "run", settings={"one": setting}))
