"""A study from a design: its text, its batches, and for every seed a still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.assemble import augmentation, bare, tasks
from limbeck.assemble.actors import Company, trained_head
from limbeck.assemble.design import Design
from limbeck.assemble.teacher_caches import Library
from limbeck.batch import to_device
from limbeck.distil import paraphraser, projections, schemes
from limbeck.distil.learner import Ema, Frozen, Learner
from limbeck.distil.still import Still
from limbeck.distil.teachers import Ensemble
from limbeck.system.processes import World
from limbeck.system.progress import Done, doing
from limbeck.system.seeds import derive_seed
from limbeck.text.blocks import Corpus, prepare
from limbeck.text.corpora import beside
from limbeck.text.feed import Feed, Repeatable
from limbeck.text.mixed_feed import Mixed
from limbeck.text.row_feed import TaskFeed
from limbeck.text.rows import TaskCorpus, prepare_task
from limbeck.training.best import Best

Text = Corpus | TaskCorpus
SAMPLE = 16  # held-out blocks on which the effect of a quantisation is measured


@dataclass(frozen=True)
class Material:
    """What is read: the corpus, and text beside it whose labels are not used."""

    corpus: Text
    unlabelled: Text | None

    @property
    def blocks(self) -> int:
        """How many blocks, or rows, there are to train on."""
        return len(self.corpus.train) + (len(self.unlabelled.train) if self.unlabelled else 0)

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return self.corpus.facts | ({"unlabelled": self.unlabelled.facts} if self.unlabelled else {})


@dataclass(frozen=True)
class Study:
    """A study ready to run: for every seed a still and the feed of its data order."""

    design: Design
    world: World
    material: Material
    teachers: dict[str, schemes.Fixed]  # learner -> role -> who plays it
    stills: dict[int, Still]
    feeds: Mapping[int, Repeatable]
    settings: dict[str, str]  # learner -> setting
    averages: list[Ema]
    bests: list[Best]  # of every learner, where the best weights are kept

    @property
    def measures(self) -> dict[str, Frozen | Ensemble | None]:
        """Learner -> whose predictions are its measure; None where there is no teacher, or one without a head."""
        silent = "teacher" in bare.names(self.design.teachers)
        return {name: None if silent else roles.get("teacher") for name, roles in self.teachers.items()}

    @property
    def learners(self) -> list[Learner]:
        """All learners, seed by seed."""
        return [learner for still in self.stills.values() for learner in still.learners]

    @property
    def changing(self) -> list[Learner | Ema | Best]:
        """All that changes while the run goes on: what a checkpoint holds."""
        return [*self.learners, *self.averages, *self.bests]


def text(plan: Design, tell: Callable[[str], None]) -> Material:
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


def _prepared(plan: Design, tell: Callable[[str], None]) -> Text:
    data, tokenizers = plan.recipe.data, (plan.teacher_tokenizer, plan.student_tokenizer)
    if data.task is None:
        return prepare(data, *tokenizers, tell=tell)
    return prepare_task(data, *tokenizers, tell=tell, classes=plan.classes or None)


def study(
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
    teachers, stills, settings, averages = {}, {}, {}, []
    feeds = {seed: feed(plan, material, seed) for seed in table.seeds}
    library = Library(plan, world, material.facts, stopped, tell)
    for seed in table.seeds:
        making, casts = projections.Making(seed, material.blocks), []
        for name, setting in table.chosen.items():
            fixed = company.teachers(name, seed)
            peers = [company.learner(name, number, making) for number in range(setting.peers)]
            settings |= {peer.name: name for peer in peers}
            teachers |= {peer.name: fixed for peer in peers}
            taught = library.of(fixed, feeds[seed]) if table.cache else schemes.teaching(fixed, seed)
            cast = company.cast(setting, plan.terms[name], peers, taught)
            apart = plan.top_k or "teacher" in [*table.models.noisy, *bare.names(plan.teachers)]
            casts.append(schemes.unmeasured(cast) if apart else cast)
        averages += [actor for cast in casts for actor in cast.actors if isinstance(actor, Ema)]
        stills[seed] = schemes.together(casts, chunk=plan.chunk, autocast=plan.autocast, world=world)
    learners = [learner for still in stills.values() for learner in still.learners]
    bests = [Best(it, trained_head(plan, settings[it.name])) for it in learners] if table.measure else []
    return Study(plan, world, material, teachers, stills, feeds, settings, averages, bests)


def _company(plan: Design, world: World, material: Material, tell: Callable[[str], None]) -> Company:
    """Who makes the actors; with text on which the effect of a quantisation is measured."""
    sample = None
    if plan.recipe.train.teacher_precision == "int8":
        heldout = feed(plan, Material(material.corpus, None), 0, "heldout")
        sample = to_device(next(iter(heldout.fixed(SAMPLE, SAMPLE))), world.device)
    return Company(plan, world, sample, tell)


def answers(
    plan: Design, world: World, material: Material, stopped: Callable[[], bool], tell: Callable[[str], None]
) -> dict[Path, int]:
    """Writes what the teachers answer to the training text, where it is missing: folder of the cache -> its bytes."""
    company, library = _company(plan, world, material, tell), Library(plan, world, material.facts, stopped, tell)
    for seed in plan.recipe.seeds:
        for name in plan.recipe.chosen:
            library.of(company.teachers(name, seed), feed(plan, material, seed))
    return library.sizes


def first_stages(made: Study, stopped: Callable[[], bool], tell: Callable[[str], None]) -> None:
    """What comes before the first update: paraphrasers are trained, each alone, on the batches of their learner's seed.

    Every process does the same work, so that all hold the same bits.
    """
    for seed, still in made.stills.items():
        for learner in still.learners:
            for term in made.design.terms[made.settings[learner.name]]:
                for pair in term.pairs:
                    if pair.lens is None:
                        continue
                    module = learner.bridges[pair.lens]
                    assert isinstance(module, paraphraser.Paraphraser) and isinstance(pair.teacher, str)
                    teacher = made.teachers[learner.name][term.teacher]
                    with doing(f"{learner.name}: paraphraser of {pair.teacher}", "updates") as done:
                        read = _features(made, teacher, pair.teacher, seed, module.steps, done)
                        first, last = module.fit(read, stopped)
                    tell(
                        f"{learner.name}: paraphraser of {pair.teacher}: error {first:.4g} to {last:.4g} in {module.steps} updates"
                    )


def _features(
    made: Study, teacher: Frozen | Ensemble, tap: str, seed: int, steps: int, done: Done
) -> Iterator[tuple[Tensor, Tensor]]:
    """A teacher's states at a tap `[B, T, H]` and what is no padding, batch by batch."""
    for step in range(steps):
        done(step, steps)
        batch = to_device(made.feeds[seed].batch(step), made.world.device)
        yield teacher.read(batch)[tap], batch["attention_mask"].bool()


def feed(plan: Design, material: Material, seed: int, part: str = "train") -> Repeatable:
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
