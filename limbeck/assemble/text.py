"""From the keys of a recipe to text and feeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from limbeck.assemble import tasks
from limbeck.assemble.design import Design
from limbeck.assemble.kinds import TextSources, kind_of
from limbeck.errors import UserError
from limbeck.system.processes import World
from limbeck.system.seeds import derive_seed
from limbeck.text.block_feed import Feed
from limbeck.text.feed import Repeatable
from limbeck.text.heldout import beside
from limbeck.text.mixed_feed import Beside, Mixed
from limbeck.text.row_feed import TaskFeed


@dataclass(frozen=True)
class Material:
    """What is read: the corpus, and the texts beside it."""

    corpus: TextSources
    others: Mapping[str, TextSources] = field(default_factory=dict)  # by their places in the table `data`

    @property
    def blocks(self) -> int:
        """How many blocks, or rows, there are to train on."""
        return sum(len(each.train) for each in (self.corpus, *self.others.values()))

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        found: dict[str, Any] = dict(self.corpus.facts)
        for place, other in self.others.items():
            table, _, name = place.partition(".")
            found[table] = found.get(table, {}) | {name: other.facts} if name else other.facts
        return found


def read_text(plan: Design, tell: Callable[[str], None]) -> Material:
    """The tokenised corpus, and those beside it, from the cache or made now."""
    data = plan.data
    if waits := plan.unwritten:
        raise UserError(
            f"${waits[0]}: the stage {waits[0]} has not written its text yet; run the recipe, which has it written first"
        )
    kind = kind_of(plan.recipe)
    kind.require(plan)
    corpus = _called(kind.prepare(plan, tell), plan.recipe.data.corpus)
    tasks.labelled(plan.recipe, plan.terms, corpus.facts.get("labelled", 0))
    tasks.measurable(plan.recipe, corpus.facts.get("heldout_labelled", 0))
    others, said = {}, plan.recipe.data.others
    for place, other in data.others.items():
        more = plan.recipe.model_copy(update={"data": beside(data, other, plan.classes)})
        others[place] = _called(kind_of(more).prepare(plan.with_recipe(more), tell), said[place].corpus)
    return Material(corpus, others)


def _called(corpus: TextSources, said: str) -> TextSources:
    """A corpus that the manifest calls as the recipe does: of the text of a stage its name, not its file."""
    return replace(corpus, facts=corpus.facts | {"corpus": said})


def augmented(plan: Design, world: World, material: Material, tell: Callable[[str], None]) -> Material:
    """The text with what the recipe adds to it, such as copies of rows."""
    return replace(material, corpus=kind_of(plan.recipe).copied(plan, world, material.corpus, tell))


def feed_of(plan: Design, material: Material, seed: int, part: str = "train") -> Repeatable:
    """The batches of one seed."""
    kind = kind_of(plan.recipe)
    mine: Any = kind.feed(plan, getattr(material.corpus, part), seed, part)
    if part != "train" or not material.others:
        return mine
    others: dict[str, Any] = {}
    for place, said in plan.recipe.data.others.items():
        more: Any = kind.feed(plan, material.others[place].train, derive_seed(seed, place), part)
        others[f"data.{place}"] = Beside(more, said.share, said.labels)
    if not isinstance(mine, (Feed, TaskFeed)):
        raise UserError(
            f"data.kind: {type(mine).__name__} is a feed of your own, with which no text can be mixed; leave {next(iter(others))} out"
        )
    mixed: Any = Mixed
    return mixed(mine, others)
