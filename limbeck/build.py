"""The only place where the words of a recipe become objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck import bridges, factors, layers, lessons, models, recipe, schedules, schemes, seeds, students, terms
from limbeck.actors import Frozen, Learner, Optimisation
from limbeck.anatomy import family
from limbeck.balance import Balance
from limbeck.engine import to_device
from limbeck.errors import UserError
from limbeck.feeds.blocks import Corpus, prepare
from limbeck.feeds.feed import Feed
from limbeck.still import Still
from limbeck.words import LAYERED_TAPS
from limbeck.world import World

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Design:
    """What is known of a study before any weight is read."""

    recipe: recipe.Recipe
    teacher: PretrainedConfig | None
    student: PretrainedConfig
    teacher_tokenizer: PreTrainedTokenizerBase
    student_tokenizer: PreTrainedTokenizerBase
    terms: dict[str, tuple[lessons.Term, ...]]  # of each setting

    @property
    def causal(self) -> bool:
        """Whether the student predicts the next token."""
        return family(self.student.model_type).causal

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of matrix products where it is not the parameters'."""
        return torch.bfloat16 if self.recipe.train.precision == "bf16" else None


def design(table: recipe.Recipe, offline: bool = False) -> Design:
    """Reads configurations and tokenizers and matches the parts of teacher and student.

    Raises:
        UserError: something is missing, or does not fit.
    """
    source = table.models.teacher
    teacher = models.config_of(source, offline) if source else None
    said = table.models.student.tokenizer
    theirs = models.tokenizer_of(source, offline) if source else None
    mine = models.tokenizer_of(recipe.Source(source=said), offline) if said else theirs
    if mine is None:
        raise UserError("models.student.tokenizer: missing; without a teacher the student needs a tokenizer")
    student = students.shape(table.models.student, teacher, **_facts(mine))
    if teacher is not None and family(teacher.model_type).causal != family(student.model_type).causal:
        raise UserError(
            f"a {student.model_type} student cannot learn from a {teacher.model_type} teacher: one predicts the next token; set models.student.family"
        )
    for config in (teacher, student):
        if config is not None:
            _fits(config, table.data.max_length, len(mine))
    made = {name: terms.of_setting(it, student, teacher, f"settings.{name}") for name, it in table.chosen.items()}
    _has_targets(table, made, family(student.model_type).causal)
    return Design(table, teacher, student, theirs or mine, mine, made)


def _facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


def _fits(config: PretrainedConfig, length: int, vocabulary: int) -> None:
    """Whether a model has a position for every token of a block, and an embedding for every token."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and length > (room := positions - family(config.model_type).reserved_positions):
        raise UserError(
            f"data.max_length: {length} tokens are more than the {room} positions of the {config.model_type} model; lower it"
        )
    if vocabulary > config.vocab_size:
        raise UserError(
            f"the tokenizer has {vocabulary} tokens and the {config.model_type} model {config.vocab_size}; "
            "give the tokenizer that belongs to the model"
        )


def _has_targets(table: recipe.Recipe, made: dict[str, tuple[lessons.Term, ...]], causal: bool) -> None:
    """Whether the data give every setting what its losses look at."""
    for name, setting in table.chosen.items():
        if causal and any(terms.reads_first_token(term) for term in setting.terms):
            raise UserError(
                f"settings.{name}: patient reads the first token, which sees nothing in a causal model; set position: last"
            )
    if causal and table.data.positions == "masked":
        raise UserError("data.positions: masked, but a causal model is never masked; set data.positions to all")
    if causal or table.data.masking.mode != "none":
        return
    for name, learned in made.items():
        if any("labels" in term.needs for term in learned):
            raise UserError(
                f"settings.{name}: without masking there are no labels to learn; set data.masking.mode to dynamic or static"
            )


def weights_fit(plan: Design, offline: bool = False) -> None:
    """Compares names and shapes of the teacher's weights with its config, and with the student that copies them.

    Raises:
        UserError: they do not fit. Said before the corpus is tokenised, which can take hours.
    """
    source, wanted = plan.recipe.models.teacher, plan.recipe.models.student
    if source is None:
        return
    teacher = models.model_of(source, torch.float32, offline=offline, device_map="meta")
    if wanted.init == "teacher":
        with torch.device("meta"):
            student = students.build(plan.student, seed=0)
        students.copy_layers(student, teacher, wanted.from_layers)


@dataclass(frozen=True)
class Study:
    """A study ready to run: for every seed a still and the feed of its data order."""

    design: Design
    world: World
    corpus: Corpus
    teacher: Frozen | None
    stills: dict[int, Still]
    feeds: dict[int, Feed]
    settings: dict[str, str]  # learner -> setting

    @property
    def learners(self) -> list[Learner]:
        """All learners, seed by seed."""
        return [learner for still in self.stills.values() for learner in still.learners]


def text(plan: Design, tell: Callable[[str], None]) -> Corpus:
    """The tokenised corpus, from the cache or made now."""
    return prepare(plan.recipe.data, plan.teacher_tokenizer, plan.student_tokenizer, tell=tell)


def study(plan: Design, world: World, corpus: Corpus) -> Study:
    """Loads the teacher and makes every learner, still and feed."""
    table = plan.recipe
    teacher, original = _teacher(plan, world), _original(table.models)
    stills, settings = {}, {}
    for seed in table.seeds:
        learners = {f"{name}-seed{seed}": name for name in plan.terms}
        settings |= learners
        cast = [
            _learner(plan, world, original, name, setting, bridges.Making(seed, len(corpus.train)))
            for name, setting in learners.items()
        ]
        stills[seed] = schemes.offline(
            teacher,
            [(learner, plan.terms[settings[learner.name]]) for learner in cast],
            chunk=table.train.chunk,
            autocast=plan.autocast,
            world=world,
        )
    feeds = {seed: feed(plan, corpus, seed) for seed in table.seeds}
    return Study(plan, world, corpus, teacher, stills, feeds, settings)


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
                    read = _features(made, pair.teacher, seed, module.steps)
                    first, last = module.fit(read, stopped)
                    tell(
                        f"{learner.name}: paraphraser of {pair.teacher}: error {first:.4g} to {last:.4g} in {module.steps} updates"
                    )


def _features(made: Study, tap: str, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The teacher's states at a tap `[B, T, H]` and what is no padding, batch by batch."""
    assert made.teacher is not None
    for step in range(steps):
        batch = to_device(made.feeds[seed].batch(step), made.world.device)
        yield made.teacher.read(batch)[tap], batch["attention_mask"].bool()


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


def _teacher(plan: Design, world: World) -> Frozen | None:
    source = plan.recipe.models.teacher
    if source is None:
        return None
    taps = {tap for terms in plan.terms.values() for term in terms for tap in term.taps("teacher")}
    model = models.model_of(source, DTYPES[plan.recipe.train.precision])
    torch.nn.Module.to(model, world.device)
    return Frozen("teacher", model, sorted(taps))


def _original(said: recipe.Models) -> PreTrainedModel | None:
    """The weights that students begin with, as they are stored and not in the precision of the run."""
    if said.student.init == "random" or said.teacher is None:
        return None
    return models.model_of(said.teacher, torch.float32)


def _learner(
    plan: Design, world: World, original: PreTrainedModel | None, name: str, setting: str, making: bridges.Making
) -> Learner:
    """A learner of one setting; all settings of a seed begin with the same parameters."""
    how, learned = plan.recipe.train, plan.terms[setting]
    model = students.build(plan.student, seeds.derive_seed(making.seed, "student"))
    if original is not None:
        students.copy_layers(model, original, plan.recipe.models.student.from_layers)
    built = bridges.build({name: make for term in learned for name, make in term.aids.items()}, making)
    balance = Balance(plan.recipe.settings[setting].balance, [term.name for term in learned])
    dtype = torch.float64 if how.precision == "fp64" else torch.float32
    for module in (model, built, balance):
        torch.nn.Module.to(module, world.device, dtype)
    return Learner(
        name,
        model,
        sorted({tap for term in learned for tap in term.taps("student")}),
        seed=making.seed,
        bridges=built,
        optimisation=_optimisation(how),
        balance=balance,
    )


def _optimisation(how: recipe.Train) -> Optimisation:
    schedule = schedules.learning_rate(how.lr, how.steps, how.warmup_steps, how.schedule)
    return Optimisation(schedule, how.weight_decay, how.betas, how.eps, how.clip)


def facts(plan: Design) -> dict[str, Any]:
    """The layer maps of every setting, for people: setting -> term -> `1<-2 2<-4`."""
    if plan.teacher is None:
        return {}
    return {
        name: {
            term.label: layers.describe(terms.layer_map(term, plan.student, plan.teacher, name))
            for term in setting.terms
            if set(term.taps) & set(LAYERED_TAPS)
        }
        for name, setting in plan.recipe.chosen.items()
    }
