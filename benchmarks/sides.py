"""The sides of a race. Each takes turns: for every turn it does one update on the same batch, as its users would.

A side is a function of `turns`, whose next item comes when the side may go on, and whose end is an exception.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.shapes import Shape, batch, model
from limbeck import rundir
from limbeck.distil import projections, schemes
from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.lessons import Pair, Term
from limbeck.distil.schedules import constant
from limbeck.distil.still import Still
from limbeck.distil.teachers import Frozen
from limbeck.losses import attention_scores_mse, forward_kl, mse
from limbeck.losses.blockwise import blockwise
from limbeck.recipe.load import load
from limbeck.running import stages
from limbeck.system import files
from limbeck.system.precision import DTYPES
from limbeck.system.processes import World
from limbeck.training.loop import Course, Record, fit

Turns = Iterator[None]
RATE, CLIP = 1e-4, 1.0


# limbeck


def prepare(shape: Shape) -> None:
    """What `limbeck run` sets for the process."""
    stages.prepare_libraries(load("quickstart", [f"train.device={shape.device}"]))


def terms(shape: Shape) -> tuple[Term, ...]:
    """The four losses: logits, embedding, hidden states, attention scores."""
    one, widen = constant(1.0), projections.linear(shape.student.hidden, shape.teacher.hidden)
    hidden = [Pair(f"hidden.{s}", f"hidden.{t}", f"hidden:{s}") for s, t in shape.pairs]
    scores = tuple(Pair(f"scores.{s}", f"scores.{t}") for s, t in shape.pairs)
    place = Pair("embedding", "embedding", "embedding:0")
    return (
        Term("logits", forward_kl, (Pair("logits", "logits"),), one, needs=("teacher",)),
        Term("embedding", mse, (place,), one, modules={"embedding:0": widen}),
        Term("hidden", mse, tuple(hidden), one, modules={str(pair.projection): widen for pair in hidden}),
        Term("scores", attention_scores_mse, scores, one),
    )


def cast(shape: Shape, precision: str, students: int) -> tuple[Frozen, list[Learner]]:
    """The teacher in the run's precision, and students with fp32 weights, as `limbeck run` makes them."""
    learned = terms(shape)
    taps = {side: sorted({tap for term in learned for tap in term.taps(side)}) for side in ("teacher", "student")}
    modules = {name: make for term in learned for name, make in term.modules.items()}
    optimisation = Optimisation(constant(RATE), weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8, clip=CLIP)
    teacher = Frozen("teacher", model(shape.teacher, shape, 1, DTYPES[precision]), taps["teacher"])
    learners = [
        Learner(
            f"setting{number}-seed0",
            model(shape.student, shape, 2),
            taps["student"],
            seed=0,
            modules=projections.build(modules, projections.Making(0)).to(shape.device),
            optimisation=optimisation,
        )
        for number in range(students)
    ]
    return teacher, learners


def still_of(shape: Shape, precision: str, students: int) -> Still:
    """The four losses, for one or more students of one teacher."""
    teacher, learners = cast(shape, precision, students)
    casts = [schemes.offline(learner, {"teacher": teacher}, terms(shape)) for learner in learners]
    world = World(device=torch.device(shape.device))
    autocast = None if precision == "fp32" else DTYPES[precision]
    return schemes.together(casts, chunk=shape.chunk_of(precision), autocast=autocast, world=world)


class Repeated:
    """A feed that gives one batch, a turn at a time."""

    def __init__(self, turns: Turns, shape: Shape) -> None:
        self.turns, self.batch_size, self.one = turns, shape.rows, batch(shape)

    def batch(self, step: int, rows: slice = slice(None)) -> dict[str, Tensor]:
        """The batch, when it is this side's turn."""
        next(self.turns)
        return self.one

    def fixed(self, count: int, batch_size: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Of an evaluation, which there is none of."""
        raise NotImplementedError


def limbeck(turns: Turns, shape: Shape, precision: str | None = None, students: int = 1) -> None:
    """limbeck's own loop: `training.loop.fit` with the hooks that every run has, and lines of metrics on the disk."""
    prepare(shape)
    still = still_of(shape, precision or shape.precision, students)
    said = {"stage": "train", "seed": 0}
    with TemporaryDirectory() as folder:

        def record(record: Record) -> None:
            files.append_lines(Path(folder) / rundir.METRICS, record.rows)

        course = Course(
            stills={0: still},
            feeds={0: Repeated(turns, shape)},
            steps=1 << 40,
            accumulate=1,
            describe=lambda learner: said | {"setting": learner.partition("-")[0]},
            measure=lambda step: False,
            world=still.world,
        )
        fit(course, [record])


def bare(turns: Turns, shape: Shape, precision: str) -> None:
    """The same mathematics by limbeck's kernels and losses, by hand: no still, no lessons, no tallies, no metrics."""
    prepare(shape)
    (teacher, (learner,)), given = cast(shape, precision, 1), batch(shape)
    for _ in turns:
        by_hand(teacher, learner, given, shape, precision)


def by_hand(teacher: Frozen, learner: Learner, given: dict[str, Tensor], shape: Shape, precision: str) -> None:
    """One update."""
    with torch.autocast(shape.device, dtype=DTYPES[precision], enabled=precision != "fp32"):
        theirs, mine = teacher.forward(given), learner.tapped(given)
        inputs, slope = _logit_gradient(teacher, learner, theirs, mine, shape.chunk_of(precision))
        losses = [mse(student=learner.modules["embedding:0"](mine["embedding"]), teacher=theirs["embedding"])]
        for s, t in shape.pairs:
            widened = learner.modules[f"hidden:{s}"](mine[f"hidden.{s}"])
            losses.append(mse(student=widened, teacher=theirs[f"hidden.{t}"]))
            losses.append(attention_scores_mse(student=mine[f"scores.{s}"], teacher=theirs[f"scores.{t}"]))
    torch.autograd.backward([torch.stack([loss.mean() for loss in losses]).sum(), inputs], [None, slope])
    for part in (learner.model, learner.modules):
        clip_grad_norm_(part.parameters(), CLIP)
    for group in learner.optimizer.param_groups:
        group["lr"] = RATE
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)


def _logit_gradient(teacher: Frozen, learner: Learner, theirs: Any, mine: Any, chunk: int) -> tuple[Tensor, Tensor]:
    """The logit loss, a chunk of tokens at a time: the inputs of the student's head and the slope there."""
    inputs, heard = mine.inputs("logits").flatten(0, -2), theirs.inputs("logits").flatten(0, -2)
    slope = torch.empty_like(inputs)
    for start in range(0, len(inputs), chunk):
        leaf = inputs[start : start + chunk].detach().requires_grad_()
        said = teacher.logits(heard[start : start + chunk])
        loss = blockwise(forward_kl, learner.tapped.head(leaf), {"teacher": said}).sum() / len(inputs)
        loss.backward()
        assert leaf.grad is not None
        slope[start : start + chunk] = leaf.grad
    return inputs, slope


# peers


def plain_models(shape: Shape, teacher_dtype: torch.dtype) -> tuple[Any, Any]:
    """Teacher and student with eager attention: without it transformers gives no attention maps."""
    teacher, student = model(shape.teacher, shape, 1, teacher_dtype), model(shape.student, shape, 2)
    for each in (teacher, student):
        each.set_attn_implementation("eager")
    return teacher.eval(), student.train()


def linears(shape: Shape) -> nn.ModuleList:
    """A projection for the embedding and one for every matched layer."""
    return nn.ModuleList(nn.Linear(shape.student.hidden, shape.teacher.hidden) for _ in range(1 + len(shape.pairs)))


def four_losses(mine: Any, theirs: Any, projections: nn.ModuleList, shape: Shape) -> Tensor:
    """The four losses as one writes them over transformers' outputs."""
    log_p, q = F.log_softmax(mine.logits, dim=-1), F.softmax(theirs.logits, dim=-1)
    loss = F.kl_div(log_p.flatten(0, 1), q.flatten(0, 1), reduction="batchmean")
    for projection, (s, t) in zip(projections, [(0, 0), *shape.pairs], strict=True):
        loss = loss + F.mse_loss(projection(mine.hidden_states[s]).float(), theirs.hidden_states[t].float())
    for s, t in shape.pairs:
        loss = loss + F.mse_loss(mine.attentions[s - 1].float(), theirs.attentions[t - 1].float())
    return loss


def loop(turns: Turns, shape: Shape, precision: str = "bf16") -> None:
    """A loop over transformers as users write it: whole logits, all hidden states, all attention maps, autocast.

    The teacher is held in the precision of the run, the better of the two ways to write it.
    """
    teacher, student = plain_models(shape, DTYPES[precision])
    projections = linears(shape).to(shape.device)
    trained = [*student.parameters(), *projections.parameters()]
    optimizer, given = torch.optim.AdamW(trained, lr=RATE), batch(shape)
    asked = {name: given[name] for name in ("input_ids", "attention_mask")}
    asked |= {"output_hidden_states": True, "output_attentions": True}
    for _ in turns:
        with torch.autocast(shape.device, dtype=DTYPES[precision], enabled=precision != "fp32"):
            with torch.no_grad():
                theirs = teacher(**asked)
            loss = four_losses(student(**asked), theirs, projections, shape)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(trained, CLIP)
        optimizer.step()
        loss.item()


def textbrewer(turns: Turns, shape: Shape) -> None:
    """TextBrewer's `GeneralDistiller` in its own training loop, in fp32, which is all it has without apex.

    Attention is matched by the maps that transformers gives, which are probabilities. Nothing is masked: there is no padding.
    """
    peer = importlib.import_module("textbrewer")
    teacher, student = plain_models(shape, torch.float32)
    widen = ["linear", shape.student.hidden, shape.teacher.hidden]
    matches: list[dict[str, Any]] = [
        {"layer_T": t, "layer_S": s, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": [*widen]}
        for s, t in [(0, 0), *shape.pairs]
    ]
    matches += [
        {"layer_T": t - 1, "layer_S": s - 1, "feature": "attention", "loss": "attention_mse", "weight": 1}
        for s, t in shape.pairs
    ]
    how = peer.DistillationConfig(temperature=1, kd_loss_type="ce", intermediate_matches=matches)
    given = batch(shape)
    asked = {name: given[name] for name in ("input_ids", "attention_mask")}
    with TemporaryDirectory() as folder:
        training = peer.TrainingConfig(device=shape.device, ckpt_steps=1 << 40, output_dir=folder)
        distiller = peer.GeneralDistiller(training, how, teacher, student, _adaptor, _adaptor)
        optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
        more = {"output_hidden_states": True, "output_attentions": True}
        with distiller:
            batches = (dict(asked) for _ in turns)
            distiller.train(optimizer, batches, num_steps=1 << 40, max_grad_norm=CLIP, **more)


def _adaptor(given: Any, outputs: Any) -> dict[str, Any]:
    return {"logits": outputs.logits, "hidden": outputs.hidden_states, "attention": outputs.attentions}
