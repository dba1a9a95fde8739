"""A term looks only at what both sides look at, and its parts add up to the mean of the whole."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from families import tiny
from kernel import (
    BLOCKS,
    LABEL,
    LOGIT,
    LOGITS,
    STUDENT_DEPTH,
    STUDENT_WIDTH,
    TEACHER_DEPTH,
    TEACHER_WIDTH,
    VOCABULARY,
    WIDEN,
    bert,
    gradients_of,
    learner,
    parameters_of,
    share,
    still_of,
    views,
)
from kernel import batch as kernel_batch
from torch import Tensor, nn

from limbeck.distil import projections
from limbeck.distil.learner import Learner
from limbeck.distil.lessons import Pair, Term
from limbeck.distil.reduce import Counts
from limbeck.distil.schedules import constant
from limbeck.distil.teachers import Frozen
from limbeck.losses import (
    attention_kl,
    attention_mse,
    attention_scores_mse,
    attention_transfer,
    cosine,
    flow,
    mse,
    neuron_selectivity,
    patient,
    pearson,
    relation_kl,
    rkd_distance,
)
from limbeck.models.taps import Readout, Tapped


def test_scores_are_compared_where_both_sides_see_the_key() -> None:
    """A layer that sees everything learns from a layer with a window: keys beyond the window count on neither side."""
    model = tiny("modernbert")
    kinds = model.config.layer_types
    wide, narrow = (1 + kinds.index(kind) for kind in ("full_attention", "sliding_attention"))
    ids = torch.arange(3, 25).view(2, 11)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    readout = Tapped(model, [f"scores.{wide}", f"scores.{narrow}"])(batch)
    there, here = readout[f"scores.{wide}"], readout[f"scores.{narrow}"]
    seen = readout.visible(f"scores.{narrow}")
    assert readout.visible(f"scores.{wide}") is None
    assert seen is not None
    expected = torch.stack(
        [(there - here)[b, :, i, seen[b, 0, i]].square().mean() for b in range(2) for i in range(11)]
    ).mean()
    for pair in (Pair(f"scores.{wide}", f"scores.{narrow}"), Pair(f"scores.{narrow}", f"scores.{wide}")):
        term = Term("attention", attention_scores_mse, (pair,), constant(1.0))
        value = term.of_readouts(readout, readout, nn.ModuleDict(), batch, Counts(22, 22, 0))
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


# what counts


def inputs(padded: bool, rows: int = 4, length: int = 8) -> dict[str, Tensor]:
    """Random tokens; with padding, rows of 8, 6, 0 and 3 tokens."""
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    if padded:
        for row, kept in enumerate((8, 6, 0, 3)):
            mask[row, kept:] = 0
    select = mask.bool()
    labels = torch.where(select, ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "select": select, "blocks": torch.arange(rows)}


def part(batch: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {name: tensor[start:stop] for name, tensor in batch.items()}


def masks(pair: Pair, student: Readout, teacher: Readout, batch: dict[str, Tensor]) -> Tensor | None:
    """The mask that a loss is given at a pair."""
    given: list[Tensor | None] = []

    def loss(*, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        given.append(mask)
        return torch.zeros(())

    Term("spy", loss, (pair,), constant(1.0)).of_readouts(student, teacher, nn.ModuleDict(), batch, Counts.of([batch]))
    return given[0]


KINDS = ["embedding", "hidden.1", "ffn.1", "query.1", "key.2", "value.2", "pooled", "scores.1", "probs.2"]


@pytest.mark.parametrize("tap", KINDS)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_each_kind_of_tap_has_its_mask(name: str, tap: str) -> None:
    """Pairs of positions for maps, rows for pooled states, tokens for the rest; nothing where all count."""
    tapped = Tapped(tiny(name), [tap])
    padded, full = inputs(True), inputs(False)
    found = masks(Pair(tap, tap), tapped(padded), tapped(padded), padded)
    bare = masks(Pair(tap, tap), tapped(full), tapped(full), full)
    attended = padded["attention_mask"].bool()
    seen = attended[:, None, :, None] & attended[:, None, None, :]
    later = torch.ones(8, 8).triu(1).bool()
    if tap.startswith(("scores", "probs")):
        expected = seen & ~later if name == "gpt2" else seen
        assert bare is None if name == "bert" else torch.equal(bare, (~later).expand(4, 1, 8, 8))
    else:
        expected = torch.tensor([True, True, False, True]) if tap == "pooled" else attended
        assert bare is None
    assert found is not None and found.dtype == torch.bool
    assert torch.equal(found, expected)


def test_tuples_count_tokens() -> None:
    taps = ("query.1", "key.1", "value.1")
    tapped, padded, full = Tapped(tiny("bert"), taps), inputs(True), inputs(False)
    found = masks(Pair(taps, taps), tapped(padded), tapped(padded), padded)
    assert found is not None and torch.equal(found, padded["attention_mask"].bool())
    assert masks(Pair(taps, taps), tapped(full), tapped(full), full) is None


# what is averaged

STUDENT, TEACHER = bert(STUDENT_WIDTH, STUDENT_DEPTH, seed=1).eval(), bert(TEACHER_WIDTH, TEACHER_DEPTH, seed=2).eval()


def read(*taps: str, batch: dict[str, Tensor], teacher: bool = False) -> Readout:
    return Tapped(TEACHER if teacher else STUDENT, taps)(batch)


def widen(*names: str) -> nn.ModuleDict:
    return projections.build(dict.fromkeys(names, WIDEN), projections.Making(3, BLOCKS)).double()


def value_of(term: Term, batches: list[dict[str, Tensor]], modules: nn.ModuleDict | None = None) -> Tensor:
    """The term over a step of some micro-batches."""
    counts = Counts.of(batches)
    parts = [
        term.of_readouts(
            read(*term.taps("student"), batch=batch),
            read(*term.taps("teacher"), batch=batch, teacher=True),
            nn.ModuleDict() if modules is None else modules,
            batch,
            counts,
        )
        for batch in batches
    ]
    return torch.stack(parts).sum()


def states(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Transformers' own hidden states."""
    own = copy.deepcopy(model)
    own.set_attn_implementation("sdpa")
    return own(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    ).hidden_states


@pytest.mark.parametrize("padded", [False, True])
def test_relations_of_several_taps_by_hand(padded: bool) -> None:
    """MiniLMv2: KL between softmax(X X' / sqrt(d)), over relation heads, mean over tokens, sum over relations."""
    heads, kinds = 4, ("query", "key", "value")
    pair = Pair(tuple(f"{kind}.2" for kind in kinds), tuple(f"{kind}.4" for kind in kinds))
    term = Term("relation", lambda **given: relation_kl(**given, relation_heads=heads), (pair,), constant(1.0))
    batch = inputs(padded)

    sides = (STUDENT, states(STUDENT, batch), 2), (TEACHER, states(TEACHER, batch), 4)

    def relation(side: tuple[nn.Module, tuple[Tensor, ...], int], kind: str, row: int, n: int) -> Tensor:
        model, below, layer = side
        project = getattr(model.bert.encoder.layer[layer - 1].attention.self, kind)
        joined = project(below[layer - 1][row, :n])
        return torch.stack([(x @ x.T / math.sqrt(x.shape[1])).softmax(-1) for x in joined.chunk(heads, dim=-1)])

    total, tokens = 0.0, 0
    for row, n in enumerate(batch["attention_mask"].sum(1).tolist()):
        for kind in kinds if n else ():
            mine, theirs = (relation(side, kind, row, n) for side in sides)
            total = total + (theirs * (theirs.log() - mine.log())).sum(-1).mean(0).sum()
        tokens += n
    torch.testing.assert_close(value_of(term, [batch]), total / tokens, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_flow_goes_through_a_projection_at_each_end(padded: bool) -> None:
    pair = Pair(("hidden.1", "hidden.2"), ("hidden.2", "hidden.4"), projection=("first", "second"))
    batch, modules = inputs(padded), widen("first", "second")
    found = value_of(Term("flow", flow, (pair,), constant(1.0)), [batch], modules)
    mine, theirs = states(STUDENT, batch), states(TEACHER, batch)
    rows = []
    for row, n in enumerate(batch["attention_mask"].sum(1).tolist()):
        if n:
            low, high = modules["first"](mine[1][row, :n]), modules["second"](mine[2][row, :n])
            difference = low.T @ high / n - theirs[2][row, :n].T @ theirs[4][row, :n] / n
            rows.append((difference**2).mean())
    assert len(rows) == (3 if padded else 4)
    torch.testing.assert_close(found, sum(rows) / len(rows), rtol=1e-10, atol=1e-12)
    projection = [p for name in ("first", "second") for p in modules[name].parameters()]
    for gradient in torch.autograd.grad(found, projection):
        assert gradient.abs().sum() > 0


def test_pairs_of_a_term_add_up() -> None:
    pairs = (Pair("hidden.1", "hidden.2", "low"), Pair("hidden.2", "hidden.4", "high"))
    batch, modules = inputs(True), widen("low", "high")
    both = value_of(Term("hidden", mse, pairs, constant(1.0)), [batch], modules)
    each = [value_of(Term("hidden", mse, (pair,), constant(1.0)), [batch], modules) for pair in pairs]
    torch.testing.assert_close(both, each[0] + each[1], rtol=1e-12, atol=0)
    kept = batch["attention_mask"].bool()
    mine, theirs = states(STUDENT, batch), states(TEACHER, batch)
    by_hand = sum(
        ((modules[projection](mine[i]) - theirs[j])[kept] ** 2).mean()
        for projection, i, j in (("low", 1, 2), ("high", 2, 4))
    )
    torch.testing.assert_close(both, by_hand, rtol=1e-10, atol=1e-12)


def test_rows_without_a_token_do_not_count() -> None:
    """A loss of rows is averaged over rows with a token, over all micro-batches, whatever it says of the others."""

    def loss(*, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        return student[:, 0, 0] * 0 + torch.tensor([3.0, 5.0, torch.nan, 10.0])[: len(student)]

    term = Term("row", loss, (Pair("hidden.1", "hidden.1"),), constant(1.0), per="row")
    assert value_of(term, [inputs(True)]).item() == pytest.approx(18 / 3)
    assert value_of(term, [inputs(True), inputs(False, rows=2)]).item() == pytest.approx((18 + 8) / 5)


def test_patient_reads_one_row_of_pooled_states() -> None:
    batch, modules = inputs(True), widen("projection")
    term = Term("pooled", patient, (Pair("pooled", "pooled", "projection"),), constant(1.0), per="row")
    mine, theirs = states(STUDENT, batch)[-1], states(TEACHER, batch)[-1]
    rows = []
    for row, n in enumerate(batch["attention_mask"].sum(1).tolist()):
        if n:
            s, t = modules["projection"](mine[row, :n].mean(0)), theirs[row, :n].mean(0)
            rows.append(((s / s.norm() - t / t.norm()) ** 2).mean())
    torch.testing.assert_close(value_of(term, [batch], modules), sum(rows) / 3, rtol=1e-10, atol=1e-12)


def test_losses_of_a_batch_are_averaged_over_micro_batches() -> None:
    """Those with a token: a micro-batch of padding is none."""
    term = Term("pooled", rkd_distance, (Pair("pooled", "pooled"),), constant(1.0), per="batch")
    first, second = inputs(False, rows=3), inputs(True)
    empty = inputs(False, rows=2) | {"attention_mask": torch.zeros(2, 8, dtype=torch.long)}

    def by_hand(batch: dict[str, Tensor]) -> Tensor:
        sides = []
        for model in (STUDENT, TEACHER):
            last = states(model, batch)[-1]
            x = [last[row, :n].mean(0) for row, n in enumerate(batch["attention_mask"].sum(1).tolist()) if n]
            apart = torch.stack([torch.stack([(a - b).norm() if a is not b else a.sum() * 0 for b in x]) for a in x])
            sides.append(apart / apart[apart > 0].mean())
        return F.smooth_l1_loss(*sides)

    for batches in ([second], [first, second], [first, empty, second]):
        expected = torch.stack([by_hand(batch) for batch in batches if batch is not empty]).mean()
        torch.testing.assert_close(value_of(term, batches), expected, rtol=1e-9, atol=1e-11)


HALVES = [[(0, 4)], [(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 3), (3, 4)]]
SPLITTABLE = {
    "mse": Term("t", mse, (Pair("hidden.1", "hidden.2", "low"), Pair("hidden.2", "hidden.4", "high")), constant(1.0)),
    "embedding": Term("t", cosine, (Pair("embedding", "embedding", "low"),), constant(1.0)),
    "attention_transfer": Term("t", attention_transfer, (Pair("hidden.2", "hidden.3"),), constant(1.0)),
    "attention_scores_mse": Term("t", attention_scores_mse, (Pair("scores.1", "scores.2"),), constant(1.0)),
    "attention_kl": Term("t", attention_kl, (Pair("scores.2", "scores.4"),), constant(1.0)),
    "attention_mse": Term("t", attention_mse, (Pair("probs.2", "probs.4"),), constant(1.0)),
    "relation_kl": Term("t", relation_kl, (Pair(("query.2", "key.2"), ("query.4", "key.4")),), constant(1.0)),
    "neuron_selectivity": Term("t", neuron_selectivity, (Pair("ffn.2", "ffn.4"),), constant(1.0), per="row"),
    "patient": Term("t", patient, (Pair("hidden.2", "hidden.4", "low"),), constant(1.0), per="row"),
    "pooled": Term("t", mse, (Pair("pooled", "pooled", "low"),), constant(1.0)),
    "flow": Term(
        "t",
        flow,
        (Pair(("hidden.1", "hidden.2"), ("hidden.2", "hidden.4"), ("low", "high")),),
        constant(1.0),
        per="row",
    ),
}


@pytest.mark.parametrize("name", SPLITTABLE)
def test_tokens_and_rows_split_exactly(name: str) -> None:
    """The value and the gradients of a batch are those of its micro-batches together, down to one row."""
    whole, modules = inputs(True), widen("low", "high")
    parameters = [*STUDENT.bert.parameters(), *modules.parameters()]
    found = []
    for cuts in HALVES:
        value = value_of(SPLITTABLE[name], [part(whole, start, stop) for start, stop in cuts], modules)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        found.append((value.detach(), [g for g in gradients if g is not None]))
    expected = found[0]
    assert expected[0] > 1e-4 and len(expected[1]) > 3
    for value, gradients in found[1:]:
        torch.testing.assert_close(value, expected[0], rtol=1e-12, atol=1e-12)
        for mine, theirs in zip(gradients, expected[1], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


# losses on logits that see the whole micro-batch

PEARSON = Term("pearson", pearson, LOGITS, constant(0.7), per="batch")


def frozen_teacher() -> Frozen:
    return Frozen("teacher", bert(TEACHER_WIDTH, TEACHER_DEPTH, seed=2), ["logits"])


def plain_logits(one: Learner, teacher: Frozen, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The logit terms with whole logits: forward KL, label loss, and 1 - r of rows and of columns (DIST)."""
    student, guide = copy.deepcopy(one.model), copy.deepcopy(teacher.model)
    for model in (student, guide):
        model.set_attn_implementation("sdpa")
        model.zero_grad(set_to_none=True)
    selected, rows, gaps = 0, [], []
    for batch in batches:
        given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        mine = student(**given).logits[batch["select"]].softmax(-1)
        theirs = guide(**given).logits[batch["select"]].softmax(-1).detach()
        selected += len(mine)
        rows.append((theirs * (theirs.log() - mine.log())).sum())
        n, classes = mine.shape
        by_rows = [torch.corrcoef(torch.stack([mine[i], theirs[i]]))[0, 1] for i in range(n)]
        by_columns = [torch.corrcoef(torch.stack([mine[:, v], theirs[:, v]]))[0, 1] for v in range(classes)]
        gaps.append(2 - torch.stack(by_rows).mean() - torch.stack(by_columns).mean())
    values = {"logit": torch.stack(rows).sum() / selected, "pearson": torch.stack(gaps).mean()}
    (LOGIT.weight(0) * values["logit"] + PEARSON.weight(0) * values["pearson"]).backward()
    return values | {f"model.{name}": p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [1, 4, 10**6])
def test_losses_of_a_batch_see_all_selected_tokens(chunk: int) -> None:
    """Whatever the chunk, with a loss of tokens at its side, and over micro-batches."""
    teacher, terms = frozen_teacher(), (LOGIT, PEARSON)
    batches = [kernel_batch(1), kernel_batch(2, rows=2)]
    one = learner("a", terms)
    tally = still_of(teacher, [(one, terms)], chunk=chunk).gradients(*views(batches), 0)["a"]
    expected = plain_logits(one, teacher, batches)
    for name in ("logit", "pearson"):
        torch.testing.assert_close(tally.terms[name], expected[name].detach(), rtol=1e-9, atol=1e-11)
    gradients = {name: g for name, g in gradients_of(one).items() if g is not None}
    assert len(gradients) > 20
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("terms", [(LOGIT, PEARSON), (PEARSON, LOGIT), (LOGIT,), (PEARSON,)])
def test_the_common_logit_loss_is_noted_once(terms: tuple[Term, ...]) -> None:
    """Forward KL at temperature 1, also where only a loss of the whole batch is taught."""
    teacher, batches, one = frozen_teacher(), [kernel_batch(1), kernel_batch(2)], learner("a", terms)
    tally = still_of(teacher, [(one, terms)], chunk=4).gradients(*views(batches), 0)["a"]
    assert tally.logit_loss is not None
    torch.testing.assert_close(
        tally.logit_loss, plain_logits(one, teacher, batches)["logit"].detach(), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("chunk", [3, 10**6])
def test_a_whole_batch_loss_leaves_the_other_learners_bits(chunk: int) -> None:
    teacher, quiet = frozen_teacher(), (LOGIT, LABEL)
    teacher.model.float()

    def train(company: bool) -> dict[str, Tensor]:
        mine = learner("quiet", quiet, dropout=0.1, dtype=torch.float32)
        cast = [(mine, quiet)]
        if company:
            whole = (PEARSON, LOGIT)
            cast.insert(0, (learner("whole", whole, seed=4, dropout=0.1, dtype=torch.float32), whole))
        together = still_of(teacher, cast, chunk=chunk)
        for step in range(2):
            batches = [kernel_batch(2 * step), kernel_batch(2 * step + 1)]
            together.step(share(batches), step)
        return parameters_of(mine)

    alone = train(company=False)
    for name, bits in train(company=True).items():
        assert torch.equal(bits, alone[name]), name


def test_a_whole_batch_loss_of_no_token_adds_zero() -> None:
    """A micro-batch without a selected token, as masking sometimes leaves it."""
    teacher, full, empty = frozen_teacher(), kernel_batch(1), kernel_batch(2)
    empty |= {"select": torch.zeros_like(empty["select"]), "labels": torch.full_like(empty["labels"], -100)}
    for terms in ((PEARSON,), (LOGIT, PEARSON)):
        values = []
        for batches in ([full], [full, empty], [empty, full], [empty]):
            one = learner("a", terms)
            tally = still_of(teacher, [(one, terms)], chunk=4).gradients(*views(batches, Counts.of([full])), 0)["a"]
            values.append(float(tally.terms.get("pearson", torch.zeros(()))))
            assert all(g is None or g.isfinite().all() for g in gradients_of(one).values())
        assert values[0] > 0 and values[1:] == pytest.approx([values[0], values[0], 0.0], abs=1e-12)
