"""The teacher cache of a study: which answers it needs, and the teachers that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from limbeck import families
from limbeck.assemble.design import Design
from limbeck.distil import schemes
from limbeck.distil.actors import Actor
from limbeck.distil.teachers import Frozen
from limbeck.models import readouts
from limbeck.system.files import json_sha256
from limbeck.system.processes import World
from limbeck.system.store import cache_folder
from limbeck.teacher_cache.cached import Cached
from limbeck.teacher_cache.shelf import AnswerShelf, KeptStates
from limbeck.text.feed import Repeatable

FOLDER = "teacher"
TEXT = ("sha256", "tokenizer_sha256", "tokens", "max_length", "unlabelled")  # of the facts of the text


def kept_of(plan: Design, teacher: PretrainedConfig, taps: Iterable[str]) -> KeptStates:
    """What a study keeps of the answers of a teacher that it taps there."""
    said = plan.recipe.cache
    assert said is not None
    on_logits = any(term.on_logits for terms in plan.terms.values() for term in terms)
    columns = (plan.columns or families.vocabulary(teacher)) if on_logits else 0
    return KeptStates(columns, said.top_k, readouts.kept(taps, teacher.num_hidden_layers), said.states)


class Library:
    """Makes cached teachers from fixed ones; answers are written where they are missing.

    Args:
        plan: the study.
        world: the processes, each of which writes its share.
        facts: of the text, as the manifest has them.
        stopped: whether to stop between two batches.
        tell: receives a line for every teacher.
    """

    def __init__(
        self,
        plan: Design,
        world: World,
        facts: dict[str, Any],
        stopped: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self.plan, self.world, self.stopped, self.tell = plan, world, stopped, tell
        mixture = {"mixture": list(facts["mixture"].items())} if "mixture" in facts else {}
        self.text = json_sha256({name: facts.get(name) for name in TEXT} | mixture)
        self.sizes: dict[Path, int] = {}  # folder -> its bytes; said by the first process
        self._made: dict[tuple[str, str], Actor] = {}

    def of(self, teachers: schemes.Teachers, feed: Repeatable) -> schemes.Teachers:
        """Role -> who plays it from the cache, for one seed."""
        return {role: self._recalled(teacher, feed) for role, teacher in teachers.items()}

    def _recalled(self, teacher: Actor, feed: Repeatable) -> Actor:
        key = teacher.name, json_sha256(feed.masks)
        if key not in self._made:
            self._made[key] = teacher.over(lambda one: self._cached(one, feed))
        return self._made[key]

    def _cached(self, teacher: Frozen, feed: Repeatable) -> Cached:
        table = self.plan.recipe
        kept = kept_of(self.plan, teacher.model.config, teacher.tapped.taps)
        folder = cache_folder(table.data.cache) / FOLDER
        shelf = AnswerShelf(folder, teacher, feed, kept, self.text, self.plan.autocast)
        self.tell(f"answers of {teacher.name} to {len(feed):,} blocks: {shelf.folder}")
        mine = shelf.write(self.world.rank, self.world.size, self.stopped, self.tell)
        size = round(self.world.total([mine])[0])  # all are done
        if self.world.is_main:
            self.sizes[shelf.folder] = size
        return Cached(teacher, shelf, table.data.max_length)
