"""What is known of a study before any weight is read: shapes, tokenizers, terms; whether all of it fits together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from limbeck import layers, lessons, models, recipe, students, terms
from limbeck.anatomy import family
from limbeck.errors import UserError
from limbeck.words import LAYERED_TAPS, LOSSES

PER_BATCH = {name for name, words in LOSSES.items() if words.per == "batch"}


@dataclass(frozen=True)
class Design:
    """What is known of a study before any weight is read."""

    recipe: recipe.Recipe
    teachers: dict[str, PretrainedConfig]  # of every pretrained model; the first gives students their shape
    student: PretrainedConfig
    teacher_tokenizer: PreTrainedTokenizerBase
    student_tokenizer: PreTrainedTokenizerBase
    terms: dict[str, tuple[lessons.Term, ...]]  # of each setting

    @property
    def teacher(self) -> PretrainedConfig | None:
        """The shape of the teacher, of the first one of an ensemble."""
        return next(iter(self.teachers.values()), None)

    @property
    def roles(self) -> dict[str, PretrainedConfig]:
        """The shape of the fixed teacher of each role."""
        named = {name: self.teachers[name] for name in self.recipe.models.teachers}
        return {"teacher": self.teacher, **named} if self.teacher else {}

    @property
    def columns(self) -> int | None:
        """The columns that all logits share, where embeddings are padded to different sizes; None where all are alike."""
        sizes = {config.vocab_size for config in (*self.teachers.values(), self.student)}
        return min(sizes) if len(sizes) > 1 else None

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
    shapes = {name: models.config_of(source, offline) for name, source in sources(table.models).items()}
    teacher, said = next(iter(shapes.values()), None), table.models.student.tokenizer
    theirs = _one_tokenizer(table.models, offline)
    mine = models.tokenizer_of(recipe.Source(source=said), offline) if said else theirs
    if mine is None:
        raise UserError("models.student.tokenizer: missing; without a teacher the student needs a tokenizer")
    student = students.shape(table.models.student, teacher, **_facts(mine))
    for config in shapes.values():
        if family(config.model_type).causal != family(student.model_type).causal:
            raise UserError(
                f"a {student.model_type} student cannot learn from a {config.model_type} teacher: one predicts the next token; set models.student.family"
            )
    for config in (*shapes.values(), student):
        _fits(config, table.data.max_length, len(mine))
    plan = Design(table, shapes, student, theirs or mine, mine, {})
    for name, setting in table.chosen.items():
        plan.terms[name] = terms.of_setting(setting, student, plan.roles, f"settings.{name}")
    _has_targets(table, plan.terms, plan.causal)
    _sees_enough(table)
    return plan


def sources(said: recipe.Models) -> dict[str, recipe.Source]:
    """Every pretrained model that a recipe names: `teacher`, or `teacher-1` and so on of an ensemble, then the others."""
    members = said.members
    names = ["teacher"] if len(members) == 1 else [f"teacher-{number}" for number, _ in enumerate(members, start=1)]
    return {**dict(zip(names, members, strict=True)), **said.teachers}


def _one_tokenizer(said: recipe.Models, offline: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer that all teachers share."""
    found = {name: models.tokenizer_of(source, offline) for name, source in sources(said).items()}
    first = next(iter(found.values()), None)
    for name, other in found.items():
        if first is not None and other.get_vocab() != first.get_vocab():
            raise UserError(
                f"models: {name} has another vocabulary than {next(iter(found))}; teachers of one student must share theirs"
            )
    return first


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
    wanted, said = plan.recipe.models.student, sources(plan.recipe.models).values()
    found = [models.model_of(source, torch.float32, offline=offline, device_map="meta") for source in said]
    if wanted.init == "teacher":
        with torch.device("meta"):
            student = students.build(plan.student, seed=0)
        students.copy_layers(student, found[0], wanted.from_layers)


def _sees_enough(table: recipe.Recipe) -> None:
    """Whether losses between rows see more than one of them."""
    rows = table.train.batch_size // table.train.accumulate
    for name, setting in table.chosen.items():
        for term in setting.terms:
            least = 3 if term.loss == "rkd_angle" else 2
            between_rows = term.loss == "similarity" or (term.loss in PER_BATCH and term.taps == ("pooled",))
            if between_rows and rows < least:
                raise UserError(
                    f"settings.{name}.{term.label}: {term.loss} compares rows, and a micro-batch has {rows}; "
                    f"raise train.batch_size or lower train.accumulate, to {least} rows or more"
                )


def facts(plan: Design) -> dict[str, Any]:
    """The layer maps of every setting, for people: setting -> term -> `1<-2 2<-4`."""
    return {
        name: {
            term.label: layers.describe(
                terms.layer_map(term, plan.student, terms.shape_of(term, plan.student, plan.roles), name)
            )
            for term in setting.terms
            if set(term.taps) & set(LAYERED_TAPS)
        }
        for name, setting in plan.recipe.chosen.items()
    }
