"""The only place where the words of a recipe become objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck import bridges, layers, lessons, models, recipe, schedules, schemes, seeds, students
from limbeck.actors import Frozen, Learner, Optimisation
from limbeck.anatomy import family
from limbeck.errors import UserError
from limbeck.feeds.blocks import Corpus, prepare
from limbeck.feeds.feed import Feed
from limbeck.losses import LOSSES
from limbeck.still import Still
from limbeck.words import LAYERED_TAPS
from limbeck.words import LOSSES as WORDS
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
    _has_targets(table, family(student.model_type).causal)
    terms = {name: _terms(setting, student, teacher, f"settings.{name}") for name, setting in table.chosen.items()}
    return Design(table, teacher, student, theirs or mine, mine, terms)


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


def _has_targets(table: recipe.Recipe, causal: bool) -> None:
    """Whether the data give every setting what its losses look at."""
    if causal and table.data.positions == "masked":
        raise UserError("data.positions: masked, but a causal model is never masked; set data.positions to all")
    if causal or table.data.masking.mode != "none":
        return
    for name, setting in table.chosen.items():
        if any("labels" in WORDS[term.loss].needs for term in setting.terms):
            raise UserError(
                f"settings.{name}: without masking there are no labels to learn; set data.masking.mode to dynamic or static"
            )


def _terms(
    setting: recipe.Setting, student: PretrainedConfig, teacher: PretrainedConfig | None, where: str
) -> tuple[lessons.Term, ...]:
    return tuple(_term(term, student, teacher, f"{where}.{term.label}") for term in setting.terms)


def _term(term: recipe.Term, student: PretrainedConfig, teacher: PretrainedConfig | None, where: str) -> lessons.Term:
    words = WORDS[term.loss]
    hyper = term.parameters
    plain = LOSSES[term.loss]
    loss = (lambda **given: plain(**given, **hyper)) if hyper else plain
    return lessons.Term(term.label, loss, _pairs(term, student, teacher, where), _weight(term.weight), words.needs)


def _weight(weight: float | recipe.Ramp) -> schedules.Schedule:
    if isinstance(weight, recipe.Ramp):
        return schedules.ramp(weight.start, weight.end, weight.steps)
    return schedules.constant(weight)


def _pairs(
    term: recipe.Term, student: PretrainedConfig, teacher: PretrainedConfig | None, where: str
) -> tuple[lessons.Pair, ...]:
    if term.tap == "logits" or teacher is None:
        return (lessons.Pair("logits", "logits"),)
    if term.tap in ("scores", "probs") and student.num_attention_heads != teacher.num_attention_heads:
        raise UserError(
            f"{where}: {term.loss} compares head by head; the student has {student.num_attention_heads} heads and the teacher "
            f"{teacher.num_attention_heads}; set models.student.heads={teacher.num_attention_heads}"
        )
    if term.tap == "embedding":
        return (lessons.Pair("embedding", "embedding", _bridge(term, term.label, student, teacher, where)),)
    return tuple(
        lessons.Pair(f"{term.tap}.{s}", f"{term.tap}.{t}", _bridge(term, f"{term.label}-{s}", student, teacher, where))
        for s, t in layer_map(term, student, teacher, where).items()
    )


def layer_map(term: recipe.Term, student: PretrainedConfig, teacher: PretrainedConfig, where: str) -> dict[int, int]:
    """The layers that a layered term compares: {student layer: teacher layer}."""
    assert term.tap in LAYERED_TAPS
    try:
        pairs = layers.resolve(term.layers, student.num_hidden_layers, teacher.num_hidden_layers)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if term.tap != "hidden" and 0 in (*pairs, *pairs.values()):
        raise UserError(f"{where}: layer 0 is the embedding and has no {term.tap}; count layers from 1")
    return pairs


def _bridge(
    term: recipe.Term, name: str, student: PretrainedConfig, teacher: PretrainedConfig, where: str
) -> str | None:
    widths = (student.hidden_size, teacher.hidden_size)
    if not WORDS[term.loss].same_width:
        return None
    if term.bridge == "none" or (term.bridge == "auto" and widths[0] == widths[1]):
        if widths[0] != widths[1]:
            raise UserError(f"{where}: widths {widths[0]} and {widths[1]} differ; set bridge to each or shared")
        return None
    return "shared" if term.bridge == "shared" else name.replace(".", "_")


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
        cast = [_learner(plan, world, original, name, setting, seed) for name, setting in learners.items()]
        stills[seed] = schemes.offline(
            teacher,
            [(learner, plan.terms[settings[learner.name]]) for learner in cast],
            chunk=table.train.chunk,
            autocast=plan.autocast,
            world=world,
        )
    feeds = {seed: feed(plan, corpus, seed) for seed in table.seeds}
    return Study(plan, world, corpus, teacher, stills, feeds, settings)


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
    taps = {pair.teacher for terms in plan.terms.values() for term in terms for pair in term.pairs}
    model = models.model_of(source, DTYPES[plan.recipe.train.precision])
    torch.nn.Module.to(model, world.device)
    return Frozen("teacher", model, sorted(taps))


def _original(said: recipe.Models) -> PreTrainedModel | None:
    """The weights that students begin with, as they are stored and not in the precision of the run."""
    if said.student.init == "random" or said.teacher is None:
        return None
    return models.model_of(said.teacher, torch.float32)


def _learner(
    plan: Design, world: World, original: PreTrainedModel | None, name: str, setting: str, seed: int
) -> Learner:
    """A learner of one setting; all settings of a seed begin with the same parameters."""
    how, terms = plan.recipe.train, plan.terms[setting]
    model = students.build(plan.student, seeds.derive_seed(seed, "student"))
    if original is not None:
        students.copy_layers(model, original, plan.recipe.models.student.from_layers)
    names = [pair.bridge for term in terms for pair in term.pairs if pair.bridge]
    width = plan.teacher.hidden_size if plan.teacher else plan.student.hidden_size
    built = bridges.build(names, plan.student.hidden_size, width, seed)
    dtype = torch.float64 if how.precision == "fp64" else torch.float32
    for module in (model, built):
        torch.nn.Module.to(module, world.device, dtype)
    return Learner(
        name,
        model,
        sorted({pair.student for term in terms for pair in term.pairs}),
        seed=seed,
        bridges=built,
        optimisation=_optimisation(how),
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
            term.label: layers.describe(layer_map(term, plan.student, plan.teacher, name))
            for term in setting.terms
            if term.tap in LAYERED_TAPS
        }
        for name, setting in plan.recipe.chosen.items()
    }
