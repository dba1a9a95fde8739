"""A study from a design: its text, its batches, and for every seed a still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from limbeck.assemble import bare
from limbeck.assemble.actors import ActorMaker, trained_head
from limbeck.assemble.design import Design
from limbeck.assemble.teacher_caches import Library
from limbeck.assemble.text import Material, feed_of
from limbeck.batch import Batch, to_device
from limbeck.distil import paraphraser, projections, schemes
from limbeck.distil.actors import Actor, Stateful
from limbeck.distil.learner import Learner
from limbeck.distil.still import Still
from limbeck.system.processes import World
from limbeck.system.progress import Done, doing
from limbeck.text.feed import Repeatable
from limbeck.training.best import Best

CALIBRATION = 128  # rows of training text that data-aware changes look at
SAMPLE = 16  # held-out blocks on which the effect of a quantisation is measured


@dataclass(frozen=True)
class Study:
    """A study ready to run: for every seed a still and the feed of its data order."""

    design: Design
    world: World
    material: Material
    teachers: dict[str, schemes.Teachers]  # learner -> role -> who plays it
    stills: dict[int, Still]
    feeds: Mapping[int, Repeatable]
    settings: dict[str, str]  # learner -> setting
    seeds: dict[str, int]  # learner -> seed
    bests: list[Best]  # of every learner, where the best weights are kept

    @property
    def measures(self) -> dict[str, Actor | None]:
        """Learner -> whose predictions are its measure; None where there is no teacher, or one without a head."""
        silent = "teacher" in bare.names(self.design.teachers)
        return {name: None if silent else roles.get("teacher") for name, roles in self.teachers.items()}

    @property
    def learners(self) -> list[Learner]:
        """All learners, seed by seed."""
        return [cast(Learner, learner) for still in self.stills.values() for learner in still.learners]

    @property
    def changing(self) -> list[Stateful]:
        """All that changes while the run goes on: what a checkpoint holds."""
        actors = [actor for still in self.stills.values() for actor in still.actors.values()]
        return [*(actor for actor in actors if actor.state()), *self.bests]


def build_study(
    plan: Design,
    world: World,
    material: Material,
    stopped: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda line: None,
) -> Study:
    """Reads the teachers and makes every learner, still and feed; with a cache, also the answers that are missing there.

    Raises:
        Interrupted: `stopped` said so while answers were written.
    """
    table, company = plan.recipe, _company(plan, world, material, tell)
    teachers, stills, settings, seeds = {}, {}, {}, {}
    feeds = {seed: feed_of(plan, material, seed) for seed in table.seeds}
    library = Library(plan, world, material.facts, stopped, tell)
    for seed in table.seeds:
        making, casts = projections.Making(seed, material.blocks), []
        for name, setting in table.chosen.items():
            fixed, base = company.teachers(name, seed), company.base(name, seed)
            peers = [company.learner(name, number, making) for number in range(setting.peers)]
            settings |= {peer.name: name for peer in peers}
            seeds |= {peer.name: seed for peer in peers}
            teachers |= {peer.name: {**fixed, **base} for peer in peers}
            taught = library.of(fixed, feeds[seed]) if table.cache else schemes.teaching(fixed, seed)
            one = company.cast(setting, plan.terms[name], peers, {**taught, **base})
            apart = plan.top_k or "teacher" in [*table.models.noisy, *bare.names(plan.teachers)]
            casts.append(schemes.unmeasured(one) if apart else one)
        stills[seed] = schemes.together(casts, chunk=plan.chunk, autocast=plan.autocast, world=world)
    learners = [learner for still in stills.values() for learner in still.learners]
    bests = [Best(it, trained_head(plan, settings[it.name])) for it in learners] if table.measure else []
    return Study(plan, world, material, teachers, stills, feeds, settings, seeds, bests)


def _company(plan: Design, world: World, material: Material, tell: Callable[[str], None]) -> ActorMaker:
    """Who makes the actors; with text on which the effect of a quantisation is measured."""
    sample = None
    if plan.recipe.train.teacher_precision == "int8":
        heldout = feed_of(plan, Material(material.corpus), 0, "heldout")
        sample = to_device(next(iter(heldout.fixed(SAMPLE, SAMPLE))), world.device)
    return ActorMaker(plan, world, sample, tell, lambda: _calibration(plan, world, material))


def _calibration(plan: Design, world: World, material: Material) -> Iterator[Batch]:
    """Training text that data-aware changes look at: the same for all settings and seeds, in every process."""
    feed = feed_of(plan, material, plan.recipe.seeds[0])
    return (to_device(batch, world.device) for batch in feed.fixed(CALIBRATION, SAMPLE))


def write_answers(
    plan: Design, world: World, material: Material, stopped: Callable[[], bool], tell: Callable[[str], None]
) -> dict[Path, int]:
    """Writes what the teachers answer to the training text, where it is missing: folder of the cache -> its bytes."""
    company, library = _company(plan, world, material, tell), Library(plan, world, material.facts, stopped, tell)
    for seed in plan.recipe.seeds:
        for name in plan.recipe.chosen:
            library.of(company.teachers(name, seed), feed_of(plan, material, seed))
    return library.sizes


def first_stages(made: Study, stopped: Callable[[], bool], tell: Callable[[str], None]) -> None:
    """What comes before the first update: paraphrasers are trained, each alone, on the batches of their learner's seed.

    Every process does the same work, so that all hold the same bits.
    """
    for seed, still in made.stills.items():
        for learner in still.learners:
            for term in made.design.terms[made.settings[learner.name]]:
                for pair in term.pairs:
                    if pair.teacher_module is None:
                        continue
                    module = learner.modules[pair.teacher_module]
                    assert isinstance(module, paraphraser.Paraphraser) and isinstance(pair.teacher, str)
                    teacher = made.teachers[learner.name][term.teacher]
                    with doing(f"{learner.name}: paraphraser of {pair.teacher}", "updates") as done:
                        read = _features(made, teacher, pair.teacher, seed, module.steps, done)
                        first, last = module.fit(read, stopped)
                    tell(
                        f"{learner.name}: paraphraser of {pair.teacher}: error {first:.4g} to {last:.4g} in {module.steps} updates"
                    )


def _features(
    made: Study, teacher: Actor, tap: str, seed: int, steps: int, done: Done
) -> Iterator[tuple[Tensor, Tensor]]:
    """A teacher's states at a tap `[B, T, H]` and what is no padding, batch by batch."""
    for step in range(steps):
        done(step, steps)
        batch = to_device(made.feeds[seed].batch(step), made.world.device)
        yield teacher.forward(batch)[tap], batch["attention_mask"].bool()
