"""Data augmentation of a study: which masked language model is asked, and the task with the copies of its rows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

import torch

from limbeck.errors import UserError
from limbeck.families import family
from limbeck.models import pretrained, students
from limbeck.models.flops import count
from limbeck.recipe import models
from limbeck.recipe.data import Augment
from limbeck.recipe.stage_texts import stage_of
from limbeck.system.files import json_sha256
from limbeck.system.precision import DTYPES
from limbeck.system.processes import World
from limbeck.system.store import cache_folder
from limbeck.text.augment.augmented_rows import entry, open_augmented, training
from limbeck.text.augment.copies import CandidateShelf
from limbeck.text.augment.proposals import Proposer
from limbeck.text.rows import TaskCorpus
from limbeck.text.tokenise import Encoder

if TYPE_CHECKING:
    from limbeck.assemble.design import Design

FOLDER = "candidates"
SAMPLE = 256  # rows by which the cost of all is estimated
KEY = "data.task.augment.model"
REMEDY = f"name the masked language model in {KEY}"


def augmented(plan: Design, world: World, corpus: TaskCorpus, tell: Callable[[str], None]) -> TaskCorpus:
    """The task whose training rows are followed by their copies, from the cache or made now.

    Args:
        plan: the study, whose task asks for copies.
        world: the processes, each of which makes a share.
        corpus: the task as it is.
        tell: receives one line for each thing that the user should know.

    Raises:
        UserError: no masked language model to ask, no word vectors, or the cache cannot be written.
    """
    data, how = plan.recipe.data, _how(plan)
    encoder, proposer = Encoder(plan.teacher_tokenizer, plan.student_tokenizer), _proposer(plan, how, world)
    key = json_sha256([proposer.identity, corpus.facts["sha256"]])
    shelf = CandidateShelf(cache_folder(data.cache) / FOLDER / key, proposer, tell)
    folder = entry(data, corpus, encoder, [proposer.identity, how.copies, how.probability, how.draw])
    if not folder.exists():
        shelf.write(training(data), world.rank, world.size, len(corpus.train))
    world.wait()
    if not world.is_main:
        world.wait()
    made = open_augmented(folder, data, corpus, encoder, lambda rows: shelf.augmented(rows, how), tell)
    if world.is_main:
        world.wait()
    return made


def flops(plan: Design) -> float:
    """What the masked language model multiplies for all training rows, counted on the first `SAMPLE` of them."""
    source, rest = masked_model(plan), training(plan.data)
    texts = [row for _, row in islice(rest, SAMPLE)]
    config = pretrained.config_of(source)
    with torch.device("meta"):
        model = students.build(config, seed=0)
    queries, tokens = Proposer(model, pretrained.tokenizer_of(source), _how(plan)).reads(
        [it for row in texts for it in row]
    )
    if not queries:
        return 0.0
    length = round(tokens / queries)
    cost = count(config, length)
    of_sample = tokens * (cost.token + cost.pair * length) + queries * cost.head
    return of_sample * (len(texts) + sum(1 for _ in rest)) / len(texts)


def _how(plan: Design) -> Augment:
    task = plan.recipe.data.task
    assert task is not None and task.augment is not None
    return task.augment


def _proposer(plan: Design, how: Augment, world: World) -> Proposer:
    """The masked language model, in the precision of the run, where the run is."""
    source = masked_model(plan)
    model = pretrained.model_of(source, DTYPES[plan.recipe.train.precision])
    world.place(model)
    return Proposer(model, pretrained.tokenizer_of(source), how, plan.autocast)


def masked_model(plan: Design) -> models.Source:
    """The masked language model that proposes words: the one that is named, or what the teacher was fine-tuned from.

    Raises:
        UserError: there is none, or it is a classifier or predicts the next word.
    """
    said, source = _how(plan).model, _origin(plan)
    if said is not None:
        source = models.source_of(said)
    if source is None:
        raise UserError(f"{KEY}: missing; no teacher here was fine-tuned from one in an earlier stage; {REMEDY}")
    config = pretrained.config_of(source)
    if config.problem_type is not None:
        raise UserError(
            f"{source.source}: a classifier, which proposes no words; {REMEDY} from which it was fine-tuned"
        )
    if family(config.model_type).causal:
        raise UserError(f"{source.source}: predicts the next word, and no masked ones; {REMEDY}")
    return source


def _origin(plan: Design) -> models.Source | None:
    """The pretrained model that the teacher is, or that the stages before began with; without a teacher the student's."""
    said = plan.recipe.models
    source = next(iter(said.members), said.student.origin)
    while source and (stage := stage_of(source.source)):
        before = plan.earlier[stage].recipe.models
        source = before.student.origin or (
            next(iter(before.members), None) if before.student.init == "teacher" else None
        )
    return source
