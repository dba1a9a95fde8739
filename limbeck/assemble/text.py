"""From the words of a recipe to text and feeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from limbeck.assemble import augmentation, tasks
from limbeck.assemble.design import Design
from limbeck.assemble.kinds import TextSources, kind_of
from limbeck.system.processes import World
from limbeck.system.seeds import derive_seed
from limbeck.text.feed import Repeatable
from limbeck.text.heldout import beside
from limbeck.text.mixed_feed import Mixed


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
    corpus = kind_of(plan.recipe).prepare(plan, tell)
    tasks.labelled(plan.recipe, plan.terms, corpus.facts.get("labelled", 0))
    tasks.measurable(plan.recipe, corpus.facts.get("heldout_labelled", 0))
    if data.unlabelled is None:
        return Material(corpus, None)
    more = plan.recipe.model_copy(update={"data": beside(data, plan.classes)})
    return Material(corpus, kind_of(more).prepare(plan.with_recipe(more), tell))


def augmented(plan: Design, world: World, material: Material, tell: Callable[[str], None]) -> Material:
    """The text with what the recipe adds to it, such as copies of rows."""
    return replace(material, corpus=kind_of(plan.recipe).copied(plan, world, material.corpus, tell))


def feed_of(plan: Design, material: Material, seed: int, part: str = "train") -> Repeatable:
    """The batches of one seed."""
    kind, extra = kind_of(plan.recipe), plan.recipe.data.unlabelled
    mine: Any = kind.feed(plan, getattr(material.corpus, part), seed, part)
    if extra is None or material.unlabelled is None or part != "train":
        return mine
    more: Any = kind.feed(plan, material.unlabelled.train, derive_seed(seed, "unlabelled"), part)
    return Mixed(mine, more, extra.share)
