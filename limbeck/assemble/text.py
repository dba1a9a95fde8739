"""From the words of a recipe to text and feeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from limbeck.assemble import augmentation, tasks
from limbeck.assemble.design import Design
from limbeck.system.processes import World
from limbeck.system.seeds import derive_seed
from limbeck.text.block_feed import Feed
from limbeck.text.blocks import Corpus, prepare
from limbeck.text.feed import Repeatable
from limbeck.text.heldout import beside
from limbeck.text.mixed_feed import Mixed
from limbeck.text.row_feed import TaskFeed
from limbeck.text.rows import TaskCorpus, prepare_task

TextSources = Corpus | TaskCorpus


@dataclass(frozen=True)
class Material:
    """What is read: the corpus, and text beside it whose labels are not used."""

    corpus: TextSources
    unlabelled: TextSources | None

    @property
    def blocks(self) -> int:
        """How many blocks, or rows, there are to train on."""
        return len(self.corpus.train) + (len(self.unlabelled.train) if self.unlabelled else 0)

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return self.corpus.facts | ({"unlabelled": self.unlabelled.facts} if self.unlabelled else {})


def read_text(plan: Design, tell: Callable[[str], None]) -> Material:
    """The tokenised corpus, and the unlabelled one beside it, from the cache or made now."""
    data = plan.recipe.data
    if data.task and data.task.augment:
        augmentation.masked_model(plan)
    corpus = _prepared(plan, tell)
    tasks.labelled(plan.recipe, plan.terms, corpus.facts.get("labelled", 0))
    tasks.measurable(plan.recipe, corpus.facts.get("heldout_labelled", 0))
    if data.unlabelled is None:
        return Material(corpus, None)
    more = plan.recipe.model_copy(update={"data": beside(data, plan.classes)})
    return Material(corpus, _prepared(plan.with_recipe(more), tell))


def augmented(plan: Design, world: World, material: Material, tell: Callable[[str], None]) -> Material:
    """The text with the copies of the rows of its task that the recipe asks for, of which every process makes a share."""
    if plan.recipe.data.task is None or plan.recipe.data.task.augment is None:
        return material
    assert isinstance(material.corpus, TaskCorpus)
    return replace(material, corpus=augmentation.augmented(plan, world, material.corpus, tell))


def _prepared(plan: Design, tell: Callable[[str], None]) -> TextSources:
    data, tokenizers = plan.recipe.data, (plan.teacher_tokenizer, plan.student_tokenizer)
    if data.task is None:
        return prepare(data, *tokenizers, tell=tell)
    return prepare_task(data, *tokenizers, tell=tell, classes=plan.classes or None)


def feed_of(plan: Design, material: Material, seed: int, part: str = "train") -> Repeatable:
    """The batches of one seed."""
    mine, extra = _feed(plan, getattr(material.corpus, part), seed, part), plan.recipe.data.unlabelled
    if extra is None or material.unlabelled is None or part != "train":
        return mine
    return Mixed(mine, _feed(plan, material.unlabelled.train, derive_seed(seed, "unlabelled"), part), extra.share)


def _feed(plan: Design, blocks: Any, seed: int, part: str) -> Any:
    data, tokenizer, rows = plan.recipe.data, plan.student_tokenizer, plan.recipe.train.batch_size
    if data.task is not None:
        types = any("token_type_ids" in one.model_input_names for one in (plan.teacher_tokenizer, tokenizer))
        pool, pad = data.group_by_length, tasks.padding(tokenizer)
        length = data.max_length if data.pad_to == "max_length" and part == "train" else None
        return TaskFeed(blocks, seed=seed, batch_size=rows, pad_id=pad, types=types, pool=pool, length=length)
    return Feed(blocks, masking=data.masking, positions=data.positions, seed=seed, batch_size=rows, causal=plan.causal)
