"""The memory bank of contrastive distillation: what it draws, what it keeps, and that no way of splitting changes it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from kernel import (
    BLOCKS,
    LOGIT,
    STUDENT_WIDTH,
    TEACHER_WIDTH,
    batch,
    frozen,
    gradients_of,
    learner,
    parameters_of,
    share,
    still_of,
    views,
)
from torch import Tensor

from limbeck.distil.contrastive import ContrastiveMemory, contrastive_memory
from limbeck.distil.lessons import Pair, Term
from limbeck.distil.projections import Making, build
from limbeck.distil.schedules import constant
from limbeck.losses import contrastive
from limbeck.system.processes import World

H_S, H_T, D, K, N = 6, 10, 5, 7, 20  # widths, negatives, blocks
MOMENTUM = 0.25


def memory(seed: int = 3, blocks: int = N, momentum: float = MOMENTUM, negatives: int = K) -> ContrastiveMemory:
    make = contrastive_memory(H_S, H_T, width=D, negatives=negatives, momentum=momentum)
    made = build({"memory": make}, Making(seed, blocks)).double()["memory"]
    assert isinstance(made, ContrastiveMemory)
    return made


def sides(blocks: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled states of some blocks, the same for a block in whatever company, and their numbers."""
    draws = [torch.Generator().manual_seed(1000 * seed + block) for block in blocks]
    states = torch.stack([torch.randn(H_S + H_T, generator=draw, dtype=torch.float64) for draw in draws])
    return states[:, :H_S], states[:, H_S:], torch.tensor(blocks)


def see(one: ContrastiveMemory, *micro_batches: Sequence[int], seed: int = 0) -> None:
    for blocks in micro_batches:
        one(*sides(blocks, seed))


def embed(one: ContrastiveMemory, blocks: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Both embeddings by hand."""
    student, teacher, _ = sides(blocks, seed)
    mine = student @ one.student.weight.T + one.student.bias
    theirs = teacher @ one.teacher.weight.T + one.teacher.bias
    return mine / mine.norm(dim=1, keepdim=True), theirs / theirs.norm(dim=1, keepdim=True)


def drawn(one: ContrastiveMemory, blocks: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Which places were drawn for each block, found by the vectors."""
    (_, of_teacher), (_, of_student) = one(*sides(blocks, seed))
    places = []
    for bank, candidates in ((one.teacher_bank, of_teacher), (one.student_bank, of_student)):
        same = (candidates[:, :, None] == bank).all(-1)
        assert (same.sum(-1) == 1).all(), "every candidate is a vector of the bank"
        places.append(same.long().argmax(-1).tolist())
    assert places[0] == places[1], "both sides draw the same places"
    return places[0]


# embeddings and draws


def test_embeddings_and_bank_are_unit_vectors() -> None:
    one, blocks = memory(), (4, 0, 19)
    (v_s, of_teacher), (v_t, of_student) = one(*sides(blocks))
    expected = embed(one, blocks)
    torch.testing.assert_close(v_s, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(v_t, expected[1], rtol=1e-12, atol=1e-12)
    assert of_teacher.shape == of_student.shape == (3, 1 + K, D)
    for vectors in (v_s, v_t, one.student_bank, one.teacher_bank):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)).double(), rtol=1e-6, atol=1e-6)
    assert not torch.equal(one.student_bank, one.teacher_bank)


def test_the_pair_comes_first_and_the_candidates_are_of_the_other_side() -> None:
    one, blocks = memory(), (4, 0, 19)
    (_, of_teacher), (_, of_student) = one(*sides(blocks))
    assert torch.equal(of_teacher[:, 0], one.teacher_bank[list(blocks)])
    assert torch.equal(of_student[:, 0], one.student_bank[list(blocks)])


@pytest.mark.parametrize("blocks", [2, 3, N])
def test_negatives_are_all_others_and_never_the_block_itself(blocks: int) -> None:
    one = memory(blocks=blocks, negatives=400)
    for block, places in enumerate(drawn(one, range(blocks))):
        assert places[0] == block
        assert set(places[1:]) == set(range(blocks)) - {block}


def test_negatives_are_drawn_alike() -> None:
    """5,700 draws among 19 others: 300 each, give or take five standard deviations."""
    (places,) = drawn(memory(negatives=5700), [11])
    counts = torch.bincount(torch.tensor(places[1:]), minlength=N)
    assert counts[11] == 0 and counts.sum() == 5700
    others = counts[torch.arange(N) != 11]
    assert (others - 300).abs().max() < 5 * 300**0.5


def test_draws_are_of_seed_update_and_block() -> None:
    first = drawn(memory(), [4, 7])
    assert first == drawn(memory(), [4, 7], seed=9), "the states do not matter"
    assert first[0][1:] != first[1][1:]
    assert first != drawn(memory(seed=4), [4, 7])
    later = memory()
    see(later, [4, 7])
    later.commit(World())
    assert drawn(later, [4, 7])[0][0] == 4 and drawn(later, [4, 7]) != first


def test_draws_do_not_depend_on_the_split_or_the_generator() -> None:
    whole = drawn(memory(), [4, 7, 1, 0])
    torch.manual_seed(123)
    one = memory()
    state = torch.random.get_rng_state()
    assert drawn(one, [1, 0]) + drawn(one, [7]) + drawn(one, [4]) == [whole[2], whole[3], whole[1], whole[0]]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_single_block_of_text_still_has_a_negative() -> None:
    one = memory(blocks=1)
    assert len(one.student_bank) == 2
    assert drawn(one, [0])[0] == [0, *[1] * K]


def test_gradients_reach_both_embeddings_and_no_bank() -> None:
    one = memory()
    mine, theirs = one(*sides((4, 0, 19)))
    assert not mine[1].requires_grad and not theirs[1].requires_grad
    contrastive(student=mine, teacher=theirs, temperature=0.5).sum().backward()
    for parameter in (one.student.weight, one.student.bias, one.teacher.weight, one.teacher.bias):
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6
    assert {name for name, _ in one.named_parameters()} == {
        f"{side}.{kind}" for side in ("student", "teacher") for kind in ("weight", "bias")
    }


# what is kept


def banks(one: ContrastiveMemory) -> tuple[Tensor, Tensor]:
    return one.student_bank.clone(), one.teacher_bank.clone()


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9])
def test_a_commit_moves_what_was_seen(momentum: float) -> None:
    """m <- unit(momentum m + (1 - momentum) v); nothing before the commit, and nothing else."""
    one = memory(momentum=momentum)
    before = banks(one)
    see(one, [4, 0], [19])
    assert all(torch.equal(old, new) for old, new in zip(before, banks(one), strict=True))
    blocks, others = [4, 0, 19], [i for i in range(N) if i not in (4, 0, 19)]
    embedded = embed(one, blocks)
    one.commit(World())
    for old, new, v in zip(before, banks(one), embedded, strict=True):
        moved = momentum * old[blocks] + (1 - momentum) * v.detach()
        torch.testing.assert_close(new[blocks], moved / moved.norm(dim=1, keepdim=True), rtol=1e-12, atol=1e-12)
        assert torch.equal(new[others], old[others])
    assert one.updates == 1


def test_a_commit_forgets_what_it_took() -> None:
    one = memory()
    see(one, [4])
    one.commit(World())
    after = banks(one)
    see(one, [0])
    one.commit(World())
    for old, new in zip(after, banks(one), strict=True):
        assert torch.equal(new[4], old[4]) and not torch.equal(new[0], old[0])


def test_reading_twice_is_reading_once() -> None:
    """A probe reads the micro-batches of an update before the update does."""
    once, twice = memory(), memory()
    see(once, [4, 0], [19])
    see(twice, [4, 0], [19], [4, 0], [19])
    for one in (once, twice):
        one.commit(World())
    assert all(torch.equal(a, b) for a, b in zip(banks(once), banks(twice), strict=True))


def test_micro_batches_commit_what_the_whole_does() -> None:
    whole, split = memory(), memory()
    for step in range(3):
        see(whole, [4, 0, 19, 3], seed=step)
        see(split, [4], [0, 19], [3], seed=step)
        for one in (whole, split):
            one.commit(World())
    for a, b in zip(banks(whole), banks(split), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert drawn(whole, [2, 4]) == drawn(split, [2, 4])


def test_a_resumed_memory_goes_on_alike() -> None:
    one, other = memory(), memory(seed=3)
    for step in range(2):
        see(one, [4, step], seed=step)
        one.commit(World())
    assert drawn(other, [5]) != drawn(one, [5])
    other = memory(seed=3)
    other.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    assert drawn(other, [5, 6]) == drawn(one, [5, 6])
    for each in (one, other):
        see(each, [5, 6], seed=8)
        each.commit(World())
    for name, tensor in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


# two processes


@dataclass(frozen=True)
class Together(World):
    """A process among threads: what they gather is of equal shape, as `all_gather` demands."""

    board: dict[int, Tensor] = field(default_factory=dict)
    meet: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=20))

    def gather(self, tensor: Tensor) -> Tensor:
        self.board[self.rank] = tensor
        self.meet.wait()
        parts = [self.board[rank] for rank in range(self.size)]
        self.meet.wait()
        assert len({(part.shape, part.dtype) for part in parts}) == 1, [tuple(part.shape) for part in parts]
        return torch.cat(parts)


def commit_together(*memories: ContrastiveMemory) -> None:
    board, meet, errors = {}, threading.Barrier(len(memories), timeout=20), []

    def work(rank: int, one: ContrastiveMemory) -> None:
        try:
            one.commit(Together(rank, len(memories), board=board, meet=meet))
        except BaseException as error:
            meet.abort()
            errors.append(error)

    threads = [threading.Thread(target=work, args=each) for each in enumerate(memories)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors


def test_two_processes_keep_what_one_would() -> None:
    alone, pair = memory(), (memory(), memory())
    see(alone, [4, 0], [19, 3])
    alone.commit(World())
    see(pair[0], [4], [19])
    see(pair[1], [0], [3])
    commit_together(*pair)
    for one in pair:
        for a, b in zip(banks(alone), banks(one), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert drawn(one, [4, 8]) == drawn(alone, [4, 8])


def test_a_block_that_stands_twice_in_an_update_is_shared_by_two_processes() -> None:
    """The batch at the end of an epoch holds a block of the next one too; the number of rows stays the same."""
    alone, pair = memory(), (memory(), memory())
    see(alone, [4, 4], [19, 3])
    alone.commit(World())
    see(pair[0], [4, 4])
    see(pair[1], [19, 3])
    commit_together(*pair)
    for one in pair:
        for a, b in zip(banks(alone), banks(one), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_of_a_block_that_stands_twice_the_later_row_is_kept() -> None:
    """Rows 0, 4, 4, 3 of two micro-batches of two processes, the block 4 with other masks the second time."""
    alone, pair = memory(), (memory(), memory())
    for one, block, seed in ((alone, 0, 0), (alone, 4, 1), (alone, 4, 2), (alone, 3, 0)):
        see(one, [block], seed=seed)
    later = embed(alone, [4], seed=2)[0][0].detach()
    moved = MOMENTUM * alone.student_bank[4] + (1 - MOMENTUM) * later
    alone.commit(World())
    torch.testing.assert_close(alone.student_bank[4], moved / moved.norm(), rtol=1e-12, atol=1e-12)
    for one, block, seed in ((pair[0], 0, 0), (pair[1], 4, 1), (pair[0], 4, 2), (pair[1], 3, 0)):
        see(one, [block], seed=seed)
    commit_together(*pair)
    for one in pair:
        for a, b in zip(banks(alone), banks(one), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# in a step

NEGATIVES = 9
CONTRAST = Term(
    "pooled",
    contrastive,
    (Pair("pooled", "pooled", memory="pooled"),),
    constant(0.8),
    per="row",
    modules={"pooled": contrastive_memory(STUDENT_WIDTH, TEACHER_WIDTH, width=8, negatives=NEGATIVES, momentum=0.5)},
)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_splits_into_micro_batches(rows: int) -> None:
    """Value, gradients of student and embeddings, and the memory afterwards: those of the whole batch."""
    whole = batch(1, rows=4)
    parts = [{name: tensor[at : at + rows] for name, tensor in whole.items()} for at in range(0, 4, rows)]
    found = []
    for batches in ([whole], parts):
        one, teacher = learner("a", (CONTRAST,)), frozen()
        still = still_of(teacher, [(one, (CONTRAST,))], chunk=5)
        value = still.gradients(*views(batches), 0)["a"].terms["pooled"]
        gradients = gradients_of(one)
        one.optimizer.zero_grad(set_to_none=True)
        still.step(share(batches), 0)
        found.append((value, gradients, one.modules["pooled"].state_dict()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=1e-12)
    assert {name for name, g in found[0][1].items() if g is not None} >= {
        f"bridges.pooled.{side}.{kind}" for side in ("student", "teacher") for kind in ("weight", "bias")
    }
    for name, gradient in found[0][1].items():
        if gradient is not None:
            torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-9, atol=1e-11)
    for name in ("student_bank", "teacher_bank"):
        torch.testing.assert_close(found[1][2][name], found[0][2][name], rtol=1e-12, atol=1e-12)
    assert found[0][2]["updates"] == found[1][2]["updates"] == 1


def test_the_step_is_the_loss_of_the_means_by_hand() -> None:
    """Rows' last states, averaged over attended tokens, embedded, against the bank of before the update."""
    one, teacher, inputs = learner("a", (CONTRAST,)), frozen(), batch(1)
    memory_of = one.modules["pooled"]
    means = []
    for model in (one.model, teacher.model):
        last = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True
        ).hidden_states[-1]
        lengths = inputs["attention_mask"].sum(1).tolist()
        means.append(torch.stack([last[row, :n].mean(0) for row, n in enumerate(lengths)]))
    total, log_c = torch.zeros(()).double(), None
    v = [layer(mean) for layer, mean in zip((memory_of.student, memory_of.teacher), means, strict=True)]
    for row, block in enumerate(inputs["blocks"].tolist()):
        places = memory_of._draw(block)
        for mine, bank in ((v[0][row], memory_of.teacher_bank), (v[1][row], memory_of.student_bank)):
            u = bank[places] @ (mine / mine.norm()) / 0.07
            if log_c is None:  # E exp(cos / T) over directions in 8 dimensions, by Simpson's rule
                angle = torch.linspace(0, torch.pi, 20001, dtype=torch.float64)
                weights = torch.ones(20001).double()
                weights[1:-1:2], weights[2:-1:2] = 4, 2
                density = angle.sin() ** 6
                log_c = (weights * density * (angle.cos() / 0.07).exp()).sum().log() - (weights * density).sum().log()
            h = torch.sigmoid(u - log_c - torch.tensor(float(NEGATIVES)).double().log())
            total = total - h[0].log() - (1 - h[1:]).log().sum()
    tally = still_of(teacher, [(one, (CONTRAST,))], chunk=5).gradients(*views([inputs]), 0)["a"]
    torch.testing.assert_close(tally.terms["pooled"], total.detach() / 3, rtol=1e-7, atol=1e-9)


def test_a_checkpoint_holds_the_memory() -> None:
    terms = (LOGIT, CONTRAST)
    one, other, teacher = learner("a", terms), learner("a", terms), frozen()
    still = still_of(teacher, [(one, terms)], chunk=5)
    for step in range(2):
        still.step(share([batch(step)]), step)
    other.load({name: tensor.clone() for name, tensor in one.state().items()})
    for each in (one, other):
        still_of(teacher, [(each, terms)], chunk=5).step(share([batch(2)]), 2)
    mine, theirs = one.state(), other.state()
    assert mine["bridges.pooled.updates"] == 3 and len(mine["bridges.pooled.student_bank"]) == BLOCKS
    assert all(torch.equal(theirs[name], tensor) for name, tensor in mine.items())
    assert any(name.startswith("bridges.pooled.teacher.") for name in parameters_of(one))
