"""The losses against packages that others publish: equal where the mathematics is, elsewhere off by an exact relation.

A test whose package is absent is skipped. Compared are the value and the gradient with respect to the student, in fp64
where the package can. The extra `parity` has TextBrewer, TRL and ckatorch. Two come without their dependencies: a CUDA
torchvision next to a CPU torch breaks transformers, and Triton is large and not used here:
`pip install --no-deps torchdistill==1.1.5 liger-kernel==0.8.5`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from limbeck.losses import LOSSES

Function = Callable[..., Tensor]

B, T, V, H = 3, 5, 9, 6
LENGTHS = torch.tensor([5, 3, 2])
KEPT = torch.arange(T) < LENGTHS[:, None]
LABELS = torch.where(KEPT, torch.arange(T), -100)


def peer(name: str) -> Any:
    """A published module, or a skip."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")  # it may change: pinned
        return pytest.importorskip(name)


def random(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(*shape: int, seed: int) -> tuple[Tensor, Tensor]:
    return random(*shape, seed=seed), random(*shape, seed=seed + 1)


def grouped(maps: Tensor, heads: int) -> Tensor:
    return maps.unflatten(1, (heads, -1)).mean(2)


def mine(name: str, teacher: Any, mask: Tensor | None = None, **given: Any) -> Function:
    """Our loss of the student alone; what it has for each token only where the mask keeps it."""
    given |= {} if mask is None else {"mask": mask}

    def loss(*student: Tensor) -> Tensor:
        value = LOSSES[name](student=student if len(student) > 1 else student[0], teacher=teacher, **given)
        return value if mask is None or value.shape != mask.shape else value[mask]

    return loss


def agree(ours: Function, theirs: Function, *students: Tensor, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    """The mean, and its gradient with respect to every student tensor."""
    found = []
    for function in (ours, theirs):
        leaves = [student.clone().requires_grad_() for student in students]
        value = function(*leaves).mean()
        found.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, check_dtype=False)


def brewer(name: str, *given: Any) -> Function:
    return lambda s, t: getattr(peer("textbrewer.losses"), name)(s, t, *given)


def still(name: str, *given: Any, **options: Any) -> Function:
    """A module of torchdistill, which reads its tensors out of dicts."""

    def theirs(s: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        loss = getattr(peer("torchdistill.losses.mid_level"), name)(*given, **options)
        return loss(*({place: {"output": x} for place in ("paraphraser", "translator", "x")} for x in (s, t)), *labels)

    return theirs


PLACES = ("x", "output", "x", "output")
PAIR = {"pair": {side: {"path": "x", "io": "output"} for side in ("student", "teacher")}}
HOT = {"temperature": 4.0}
DIST = {"inter": 2.0, "intra": 0.5, "temperature": 4.0}
SIMPLE = [  # ours, its arguments, the shape, theirs, and theirs / ours
    ("soft_cross_entropy", HOT, (B, T, V), brewer("kd_ce_loss", 4.0), 1 / 16),  # no T^2
    ("logit_mse", {}, (B, T, V), brewer("kd_mse_loss", 4.0), 1 / 16),  # of z / T, no T^2
    ("forward_kl", HOT, (B, V), still("KDLoss", *PLACES, 4.0, alpha=0.0), 1 / 16),  # no T^2 without a hard loss
    ("pearson", DIST, (7, V), still("DISTLoss", *PLACES, beta=2.0, gamma=0.5, tau=4.0), 1),  # norms of at least 1e-8
    ("mse", {"mask": KEPT}, (B, T, H), brewer("hid_mse_loss", KEPT), 1),
    ("cosine", {"mask": KEPT}, (B, T, H), brewer("cos_loss", KEPT), 1),
    ("patient", {}, (B, T, H), brewer("pkd_loss"), H),  # the paper's sum over H
    ("attention_transfer", {}, (B, T, H), lambda s, t: still("ATLoss", PAIR)(s.mT, t.mT), 1),  # channels come first
    ("factor_transfer", {}, (B, T, H), still("FTLoss"), 1),
    ("activation_boundary", {"margin": 1.5}, (B, T, H), still("AltActTransferLoss", PAIR, 1.5, "mean"), T * H),  # a sum
    ("rkd_distance", {}, (7, H), still("RKDLoss", "x", "x", 1, 0, "mean"), 1),
    ("rkd_angle", {}, (7, H), still("RKDLoss", "x", "x", 0, 1, "mean"), 1),
    # the similarity itself; its default method detaches the Gram matrices, so it has no gradient
    ("cka", {}, (12, H), lambda s, t: 1 - peer("ckatorch.core").cka_base(s, t, method="hsic"), 1),
]


@pytest.mark.parametrize(("name", "given", "shape", "theirs", "factor"), SIMPLE, ids=[row[0] for row in SIMPLE])
def test_factor(name: str, given: dict[str, Any], shape: tuple[int, ...], theirs: Function, factor: float) -> None:
    """Equal for the factor 1, else off by what stands behind the line."""
    student, teacher = both(*shape, seed=1)
    student[-1], teacher[-1] = student[0], teacher[0]  # duplicates stay in the means
    agree(lambda x: mine(name, teacher, **given)(x) * factor, lambda x: theirs(x, teacher), student)


def test_torchdistill_kd() -> None:
    """Equal: with a share of hard loss its KL has T^2."""
    (student, teacher), labels = both(B, V, seed=5), torch.arange(B)
    soft, theirs = mine("forward_kl", teacher, **HOT), still("KDLoss", *PLACES, 4.0, alpha=0.1)
    agree(
        lambda z: 0.9 * soft(z) + 0.1 * LOSSES["cross_entropy"](student=z, labels=labels),
        lambda z: theirs(z, teacher, labels),
        student,
    )


@pytest.mark.parametrize("mask", [None, KEPT], ids=["whole", "padded"])
def test_textbrewer_flow(mask: Tensor | None) -> None:
    """Equal: products divided by the kept tokens, a mean over batch and widths."""
    ab, teacher = both(B, T, H, seed=7), both(B, T, H, seed=9)
    agree(mine("flow", teacher, mask), lambda *ab: brewer("fsp_loss", mask)(ab, teacher), *ab)


def test_textbrewer_nst() -> None:
    """Its channels are not normalised, and it has a mean over T^2 for our sum; with a mask it divides by T in place of H."""
    student, teacher = random(B, T, H, seed=11), normalize(random(B, T, H + 2, seed=12), dim=1)
    theirs, ours = brewer("mmd_loss"), mine("neuron_selectivity", teacher)
    agree(ours, lambda x: theirs([normalize(x, dim=1)] * 2, [teacher] * 2) * T**2, student)
    pairs = [student] * 2, [student.exp()] * 2
    torch.testing.assert_close(brewer("mmd_loss", torch.ones(B, T))(*pairs), theirs(*pairs) * (H / T) ** 2)


@pytest.mark.parametrize(("name", "heads"), [("att_mse_loss", 4), ("att_mse_sum_loss", 1)])
def test_textbrewer_attention_mse(name: str, heads: int) -> None:
    """A mean over all pairs, so that long rows weigh more; '_sum' adds up the heads: h^2 times our mean of them."""
    student, teacher = both(B, 4, T, T, seed=13)

    def ours(x: Tensor) -> Tensor:
        sides = {"student": grouped(x, heads), "teacher": grouped(teacher, heads)}
        value = LOSSES["attention_scores_mse"](**sides, mask=KEPT) * (4 // heads) ** 2
        return (value.sum(1) * LENGTHS).sum() / LENGTHS.square().sum()

    agree(ours, lambda x: brewer(name, KEPT)(x, teacher), student)


def test_textbrewer_attention_without_a_mask() -> None:
    """Equal on probabilities; raw scores below -0.001 become 0 on both sides (MSE), or drop the teacher's share (CE)."""
    (student, teacher), scores, entropy = both(B, 2, T, T, seed=15), brewer("att_mse_loss"), brewer("att_ce_loss")
    positive, probabilities = teacher.relu(), teacher.softmax(-1)
    agree(mine("attention_mse", probabilities), lambda p: scores(p, probabilities), student.softmax(-1))
    agree(lambda x: mine("attention_scores_mse", positive)(x.relu()), lambda x: scores(x, teacher), student)
    agree(mine("attention_kl", positive), lambda x: entropy(x, positive) - entropy(positive, positive), student)
    assert entropy(student, teacher) < brewer("att_ce_loss", torch.ones(B, T))(student, teacher)


@pytest.mark.parametrize(("name", "heads"), [("att_ce_loss", 2), ("att_ce_mean_loss", 1)])
def test_textbrewer_attention_cross_entropy(name: str, heads: int) -> None:
    """Our KL plus the teacher's entropy ('_mean': of the heads' mean scores); padded keys must come in at -1e4."""
    student, teacher = (x + torch.where(KEPT[:, None, None], 0.0, -1e4) for x in both(B, 2, T, T, seed=17))
    ours, theirs = mine("attention_kl", grouped(teacher, heads), KEPT), brewer(name, KEPT)
    agree(lambda x: ours(grouped(x, heads)), lambda x: theirs(x, teacher) - theirs(teacher, teacher), student)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_trl_generalised_jsd(beta: float, temperature: float) -> None:
    """No T^2; a mean over kept tokens, but where it gets no labels the tokens of a row add up."""
    theirs = peer("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss
    (student, teacher), given = both(B, T, V, seed=19), {"beta": beta, "temperature": temperature}
    padded, whole = mine("jensen_shannon", teacher, KEPT, **given), mine("jensen_shannon", teacher, **given)
    agree(lambda z: padded(z) / temperature**2, lambda z: theirs(z, teacher, LABELS, **given), student)
    agree(lambda z: whole(z).sum(1) / temperature**2, lambda z: theirs(z, teacher, **given), student)


@pytest.mark.parametrize(("name", "betas"), [("forward_kl", [0]), ("reverse_kl", [1]), ("symmetric_kl", [0, 1])])
def test_trl_ends_are_the_kls(name: str, betas: list[int]) -> None:
    """Equal: beta 0 is forward KL, beta 1 reverse KL, their mean the symmetric one."""
    theirs = peer("trl.experimental.sdft.loss_utils").compute_full_logit_self_distillation_loss
    student, teacher = both(B, T, V, seed=21)
    ends = [lambda z, beta=beta: theirs(z, teacher, distillation_alpha=beta) for beta in betas]
    agree(mine(name, teacher), lambda z: sum(end(z) for end in ends) / len(ends), student)


TOPK = [("topk_kl", 0.0, {}), ("topk_reverse_kl", 1.0, {}), ("topk_jensen_shannon", 0.3, {"beta": 0.3})]


@pytest.mark.parametrize(("name", "beta", "given"), TOPK, ids=[row[0] for row in TOPK])
def test_trl_top_k(name: str, beta: float, given: dict[str, float]) -> None:
    """Equal with the tail (the ids here are the student's); without, it renormalises the student too, to mass 1 from m."""
    published = peer("trl.experimental.sdft.loss_utils").compute_topk_self_distillation_loss
    student, teacher = both(B, T, V, seed=23)
    ids = student.topk(3).indices
    sparse = (ids, log_softmax(teacher, -1).gather(-1, ids))

    def theirs(z: Tensor, tail: bool) -> Tensor:
        return published(z, teacher, distillation_topk=3, distillation_alpha=beta, distillation_add_tail=tail)

    def moved(z: Tensor) -> Tensor:
        log_m = log_softmax(z, -1).gather(-1, ids).logsumexp(-1)
        return theirs(z, False) - log_m if beta == 0 else log_m.exp() * (theirs(z, False) + log_m)

    agree(mine(name, sparse, **given), lambda z: theirs(z, True), student)
    if beta in (0, 1):  # mixtures have no such relation
        agree(mine(name, sparse, tail=False), moved, student)


@pytest.mark.parametrize(("name", "beta", "given"), TOPK, ids=[row[0] for row in TOPK])
def test_trl_padded_lists(name: str, beta: float, given: dict[str, float]) -> None:
    """Equal: an entry at -inf is padding, whose id takes nothing from the student's tail."""
    trl = peer("trl.experimental.server_distillation.server_distillation_trainer")
    student, teacher = both(B, T, V, seed=25)
    ids, held = teacher.topk(3).indices, KEPT[..., None] | torch.tensor([True, True, False])
    listed = log_softmax(teacher, -1).gather(-1, ids).masked_fill(~held, -math.inf)

    def theirs(z: Tensor) -> Tensor:
        seen = log_softmax(z, -1).gather(-1, ids).masked_fill(~held, -math.inf)
        (log_s, support), (log_t, _) = (trl._add_tail_bucket(side, held) for side in (seen, listed))
        return trl._jsd_divergence(log_s, log_t, beta, support).sum(-1)

    agree(mine(name, (ids, listed), **given), theirs, student)


@pytest.mark.parametrize(("strategy", "shift"), [("bayesian", 1), ("observed", 0)])
def test_trl_universal_logit(strategy: str, shift: int) -> None:
    """A mean per row, then over rows; 'observed', its default, reads the logits one place after those that predict."""
    published = peer("trl.experimental.gold.gold_trainer").ULDLoss
    ones = ("distillation_weight", "student_temperature", "teacher_temperature")
    zeros = ("crossentropy_weight", "skip_student_eos", "skip_teacher_eos")
    config = {f"uld_{name}": float(name in ones) for name in ones + zeros}
    loss = published(SimpleNamespace(**config, use_extended_uld=False, uld_token_merge_strategy=strategy))
    student, teacher, ids = random(B, T, V, seed=27), random(B, T, V + 4, seed=28), torch.zeros(B, T, dtype=torch.long)
    labels = torch.tensor([[-100, -100, 0, 0, 0], [-100, 0, 0, -100, -100], [-100, -100, -100, 0, 0]])
    answer = (labels != -100).roll(-shift, 1)
    ours = mine("universal_logit", teacher)
    agree(
        lambda z: (ours(z) * answer).sum(1) / answer.sum(1),
        lambda z: loss(z, teacher, labels, labels, ids, ids),
        student,
    )


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_trl_chunked_divergence(beta: float) -> None:
    """Tiles of the output layer, in fp32: no T^2, a mean over kept tokens."""
    theirs = peer("trl.trainer.distillation_trainer")._chunked_divergence_loss
    (student, teacher), head, given = both(B, T, H, seed=29), random(V, H, seed=31), {"beta": beta, "temperature": 2.0}
    student, teacher, head = student.float(), teacher.float(), head.float()
    ours = mine("jensen_shannon", teacher @ head.T, KEPT, **given)
    agree(
        lambda x: ours(x @ head.T) / 4,
        lambda x: theirs(x, teacher, head, head, KEPT, **given)[0],
        student,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(("name", "beta"), [("jsd", 0.0), ("jsd", 0.3), ("jsd", 1.0), ("cosine", 1.0)])
def test_liger_fused_linear(name: str, beta: float) -> None:
    """With a share of cross-entropy, summed in fp32; its JSD without T^2; its cosine is one of logits."""
    published = getattr(peer("liger_kernel.chunked_loss.functional"), f"liger_fused_linear_{name}")
    (student, teacher), head, labels = both(B * T, H, seed=33), random(V, H, seed=35), LABELS.flatten()
    jsd = mine("jensen_shannon", teacher @ head.T, beta=beta, temperature=2.0)
    soft = (lambda z: jsd(z) / 4) if name == "jsd" else mine("cosine", teacher @ head.T)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        z = x @ weight.T
        return (0.25 * LOSSES["cross_entropy"](student=z, labels=labels) + 0.75 * soft(z))[labels != -100]

    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        return published(x, weight, teacher, head, labels, None, None, 0.25, 0.75, beta, -100, 2.0, False, 4)

    agree(ours, theirs, student, head + 0.1, rtol=1e-5, atol=1e-6)


def test_torchdistill_attention_transfer_of_the_paper() -> None:
    """The paper's norm of each row: the root of our sum over its tokens."""
    student, teacher = both(B, T, H, seed=37)
    ours, theirs = mine("attention_transfer", teacher), still("ATLoss", PAIR, "paper")
    agree(lambda x: ours(x).sum(1).sqrt(), lambda x: theirs(x.mT, teacher.mT), student)


def test_torchdistill_flow() -> None:
    """It adds up the norms of columns, not squares: with one column, the root of m times our mean."""
    places = [f"{side}_{place}" for side in ("student", "teacher") for place in ("first", "second")]
    pair = {place: {"path": place.split("_")[1], "io": "output"} for place in places}
    loss = peer("torchdistill.losses.mid_level").FSPLoss({"pair": pair})
    ab, teacher = ((random(B, T, H, seed=seed), random(B, T, 1, seed=seed + 1)) for seed in (39, 41))

    def maps(*sides: Tensor) -> dict[str, Any]:
        return {place: {"output": x.mT[..., None]} for place, x in zip(("first", "second"), sides, strict=True)}

    ours = mine("flow", teacher)
    agree(lambda *ab: (ours(*ab) * H).sqrt(), lambda *ab: loss(maps(*ab), maps(*teacher)), *ab)


def test_torchdistill_similarity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `normalize(gram, 1)` makes L1 norms of rows, where paper and authors have L2: with those in place, equal."""
    (student, teacher), theirs = both(7, H, seed=43), still("SPKDLoss", "x", "x", "batchmean")
    signs, turned = torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([[1.0], [-1.0], [-1.0]])
    torch.testing.assert_close(theirs(signs, turned) * 3, LOSSES["similarity"](student=signs, teacher=turned))
    monkeypatch.setattr(peer("torchdistill.losses.mid_level"), "normalize", lambda gram, order: normalize(gram, 2))
    agree(mine("similarity", teacher), lambda x: theirs(x, teacher), student)


def test_torchdistill_contrastive() -> None:
    """Equal once its constants, the first batch's in each side, are one given c, and its eps of 1e-7 is 0."""
    loss = peer("torchdistill.losses.mid_level").CRDLoss("x", "empty", "x", H, 16, 4, 16, 0.25, eps=0.0).double()
    loss.params[2:4] = 16 * 4.0  # its Z is the number of examples times c
    picks = torch.tensor([[0, 3, 4, 5, 9], [1, 8, 2, 7, 3], [2, 11, 15, 0, 6]])
    memories, views = (normalize(random(2, size, H, seed=size), dim=-1) for size in (16, B))

    def ours(s: Tensor, t: Tensor) -> Tensor:
        sides = {"student": (s, memories[1][picks]), "teacher": (t, memories[0][picks])}
        return LOSSES["contrastive"](**sides, temperature=0.25, log_partition=math.log(4.0))

    def theirs(s: Tensor, t: Tensor) -> Tensor:
        loss.memory_v1, loss.memory_v2 = memories.clone()
        given = {"empty": {"input": {"pos_idx": picks[:, 0], "contrast_idx": picks}}}
        return loss({"x": {"output": s}, **given}, {"x": {"output": t}})

    agree(ours, theirs, *views)
