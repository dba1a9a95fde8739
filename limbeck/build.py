"""The only place where the words of a recipe become objects."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck import bridges, factors, lessons, models, recipe, schedules, schemes, seeds, settings, students
from limbeck.actors import Ema, Frozen, Learner, Optimisation
from limbeck.balance import Balance
from limbeck.designs import Design, sources
from limbeck.engine import to_device
from limbeck.ensemble import Ensemble
from limbeck.feeds.blocks import Corpus, prepare
from limbeck.feeds.feed import Feed
from limbeck.still import Still
from limbeck.world import World

PEERS = string.ascii_lowercase  # what peers are called
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Study:
    """A study ready to run: for every seed a still and the feed of its data order."""

    design: Design
    world: World
    corpus: Corpus
    teachers: dict[str, Frozen | Ensemble]  # role -> who plays it
    stills: dict[int, Still]
    feeds: dict[int, Feed]
    settings: dict[str, str]  # learner -> setting
    averages: list[Ema]

    @property
    def teacher(self) -> Frozen | Ensemble | None:
        """Whose predictions are the measure."""
        return self.teachers.get("teacher")

    @property
    def learners(self) -> list[Learner]:
        """All learners, seed by seed."""
        return [learner for still in self.stills.values() for learner in still.learners]

    @property
    def changing(self) -> list[Learner | Ema]:
        """All that changes while the run goes on: what a checkpoint holds."""
        return [*self.learners, *self.averages]


def text(plan: Design, tell: Callable[[str], None]) -> Corpus:
    """The tokenised corpus, from the cache or made now."""
    return prepare(plan.recipe.data, plan.teacher_tokenizer, plan.student_tokenizer, tell=tell)


def study(plan: Design, world: World, corpus: Corpus) -> Study:
    """Loads the teacher and makes every learner, still and feed."""
    table = plan.recipe
    teachers, original = _teachers(plan, world), _original(table.models)
    stills, settings, averages = {}, {}, []
    for seed in table.seeds:
        making, casts = bridges.Making(seed, len(corpus.train)), []
        for name, setting in table.chosen.items():
            peers = [_learner(plan, world, original, name, number, making) for number in range(setting.peers)]
            settings |= {peer.name: name for peer in peers}
            casts.append(_cast(setting, plan.terms[name], teachers, peers))
        averages += [actor for cast in casts for actor in cast.actors if isinstance(actor, Ema)]
        stills[seed] = schemes.together(casts, chunk=table.train.chunk, autocast=plan.autocast, world=world)
    feeds = {seed: feed(plan, corpus, seed) for seed in table.seeds}
    return Study(plan, world, corpus, teachers, stills, feeds, settings, averages)


def _cast(
    setting: settings.Setting, learned: Sequence[lessons.Term], teachers: schemes.Teachers, peers: list[Learner]
) -> schemes.Cast:
    """The scheme that a setting asks for."""
    if setting.peers > 1:
        return schemes.mutual(peers, teachers, learned, setting.alternate)
    if setting.ema is not None:
        average = Ema(f"{peers[0].name}-ema", peers[0], _read_of("ema", learned), setting.ema)
        return schemes.averaged(peers[0], average, teachers, learned)
    return schemes.offline(peers[0], teachers, learned)


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
                    assert isinstance(module, factors.Paraphraser) and isinstance(pair.teacher, str)
                    read = _features(made, made.teachers[term.teacher], pair.teacher, seed, module.steps)
                    first, last = module.fit(read, stopped)
                    tell(
                        f"{learner.name}: paraphraser of {pair.teacher}: error {first:.4g} to {last:.4g} in {module.steps} updates"
                    )


def _features(
    made: Study, teacher: Frozen | Ensemble, tap: str, seed: int, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """A teacher's states at a tap `[B, T, H]` and what is no padding, batch by batch."""
    for step in range(steps):
        batch = to_device(made.feeds[seed].batch(step), made.world.device)
        yield teacher.read(batch)[tap], batch["attention_mask"].bool()


def feed(plan: Design, corpus: Corpus, seed: int, part: str = "train") -> Feed:
    """The batches of one seed."""
    data = plan.recipe.data
    return Feed(
        getattr(corpus, part),
        masking=data.masking,
        positions=data.positions,
        seed=seed,
        batch_size=plan.recipe.train.batch_size,
        causal=plan.causal,
    )


def _teachers(plan: Design, world: World) -> dict[str, Frozen | Ensemble]:
    """Role -> who plays it, of the fixed teachers."""
    learned, said = [term for terms in plan.terms.values() for term in terms], plan.recipe.models
    made = {}
    for name, source in sources(said).items():
        model = models.model_of(source, DTYPES[plan.recipe.train.precision])
        torch.nn.Module.to(model, world.device)
        made[name] = Frozen(name, model, _read_of(name, learned), plan.columns)
    if isinstance(said.teacher, recipe.Ensemble):
        members = [made.pop(name) for name in list(made) if name not in said.teachers]
        made = {"teacher": Ensemble("teacher", members, said.teacher.average, said.teacher.weights), **made}
    return made


def _read_of(role: str, learned: Sequence[lessons.Term]) -> list[str]:
    """The taps that terms read of who plays a role."""
    return sorted({tap for term in learned if term.teacher == role for tap in term.taps("teacher")})


def _original(said: recipe.Models) -> PreTrainedModel | None:
    """The weights that students begin with, as they are stored and not in the precision of the run."""
    if said.student.init == "random" or not said.members:
        return None
    return models.model_of(said.members[0], torch.float32)


def _learner(
    plan: Design,
    world: World,
    original: PreTrainedModel | None,
    setting: str,
    number: int,
    making: bridges.Making,
) -> Learner:
    """A learner of one setting; all settings of a seed begin with the same parameters, and so do their n-th peers."""
    how, learned, several = plan.recipe.train, plan.terms[setting], plan.recipe.settings[setting].peers > 1
    model = students.build(plan.student, seeds.derive_seed(making.seed, "student", *([number] if number else [])))
    if original is not None:
        students.copy_layers(model, original, plan.recipe.models.student.from_layers)
    built = bridges.build({name: make for term in learned for name, make in term.aids.items()}, making)
    balance = Balance(plan.recipe.settings[setting].balance, [term.name for term in learned])
    dtype = torch.float64 if how.precision == "fp64" else torch.float32
    for module in (model, built, balance):
        torch.nn.Module.to(module, world.device, dtype)
    return Learner(
        f"{setting}-seed{making.seed}" + (f"-{PEERS[number]}" if several else ""),
        model,
        sorted({tap for term in learned for tap in term.taps("student")} | set(_read_of("peers", learned))),
        seed=making.seed,
        bridges=built,
        optimisation=_optimisation(how),
        balance=balance,
        columns=plan.columns,
    )


def _optimisation(how: recipe.Train) -> Optimisation:
    schedule = schedules.learning_rate(how.lr, how.steps, how.warmup_steps, how.schedule)
    return Optimisation(schedule, how.weight_decay, how.betas, how.eps, how.clip)
