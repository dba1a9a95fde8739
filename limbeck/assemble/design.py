"""What is known of a study before any weight is read: shapes, tokenizers, terms; whether all of it fits together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck import families
from limbeck.assemble import bare, changes, own, tasks, terms, text_writers
from limbeck.assemble.checks import can_be_cached, fits, has_targets, mixes, same_words, sees_enough
from limbeck.assemble.kinds import kind_of
from limbeck.assemble.model_files import ModelFiles
from limbeck.distil import lessons, projections
from limbeck.distil.still import chunk_of
from limbeck.errors import UserError
from limbeck.families import family
from limbeck.models import inherit, int8, layer_maps, pretrained, students
from limbeck.models.taps import Tapped
from limbeck.recipe import actor_names, models, recipe, stage_texts
from limbeck.recipe.data import Data
from limbeck.recipe.keys import LAYERED_TAPS
from limbeck.recipe.stage_texts import stage_of
from limbeck.recipe.stages import student_of


@dataclass(frozen=True)
class Design:
    """What is known of a study before any weight is read."""

    recipe: recipe.Recipe
    teachers: dict[str, PretrainedConfig]  # of every pretrained model; the first gives students their shape
    student: PretrainedConfig
    teacher_tokenizer: PreTrainedTokenizerBase
    student_tokenizer: PreTrainedTokenizerBase
    terms: dict[str, tuple[lessons.Term, ...]]  # of each setting
    origin: PretrainedConfig | None  # the shape of what the students begin as
    earlier: Mapping[str, Design]  # the stages before, by their names

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
    def data(self) -> Data:
        """The table `data`, in which folders stand for the texts of stages."""
        return stage_texts.placed(self.recipe.data, {name: plan.recipe for name, plan in self.earlier.items()})

    @property
    def unwritten(self) -> list[str]:
        """The stages whose texts it reads and that have not written them yet."""
        return stage_texts.missing(self.recipe.data, {name: plan.recipe for name, plan in self.earlier.items()})

    @property
    def columns(self) -> int | None:
        """The columns that all logits share, where embeddings are padded to different sizes; None where all are alike."""
        sizes = {config.vocab_size for config in (*self.teachers.values(), self.student)}
        return min(sizes) if len(sizes) > 1 and kind_of(self.recipe).of_tokens else None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the task in the order of their logits; none for scores and for running text."""
        return (
            tuple((self.student.id2label or {}).values())
            if self.student.problem_type == "single_label_classification"
            else ()
        )

    def with_recipe(self, table: recipe.Recipe) -> Design:
        """The same models for another recipe: other text, or fewer settings and seeds."""
        return replace(self, recipe=table, terms={name: self.terms[name] for name in table.chosen})

    @cached_property
    def skeleton(self) -> Tapped:
        """The student on the meta device: shapes without weights."""
        with torch.device("meta"):
            return Tapped(students.build(self.student, seed=0), columns=self.columns)

    @cached_property
    def modules(self) -> dict[str, list[torch.nn.ModuleDict]]:
        """Setting -> the modules of each of its terms, on the meta device."""
        making = projections.Making(0, tapped=self.skeleton)
        with torch.device("meta"):
            return {
                name: [projections.build(term.modules, making) for term in terms] for name, terms in self.terms.items()
            }

    @property
    def causal(self) -> bool:
        """Whether the student predicts the next token."""
        return family(self.student.model_type).causal

    @property
    def top_k(self) -> int | None:
        """How many tokens of a prediction the cache keeps; None without a cache, or where it keeps them all."""
        cache, columns = self.recipe.cache, self.columns or families.vocabulary(self.student)
        return cache.top_k if cache and self.teachers and columns > cache.top_k else None

    @property
    def chunk(self) -> int:
        """Tokens whose logits exist at a time."""
        how = self.recipe.train
        return how.chunk or chunk_of(families.vocabulary(self.student), how.precision)

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of matrix products where it is not the parameters'."""
        return torch.bfloat16 if self.recipe.train.precision == "bf16" else None


Plans = dict[str, Design]  # the stages of a recipe, by their names


def design(
    table: recipe.Recipe, files: ModelFiles | None = None, earlier: Mapping[str, Design] | None = None
) -> Design:
    """Reads configurations and tokenizers and matches the parts of teacher and student.

    Args:
        table: the recipe.
        files: what several designs read.
        earlier: the stages before, by their names, whose students it may name.

    Raises:
        UserError: something is missing, or does not fit.
    """
    files = files or ModelFiles()
    library, said = _Library(files, earlier or {}, table), table.models.student
    shapes = {name: library.config(source) for name, source in named_sources(table.models).items()}
    teacher = next(iter(shapes.values()), None)
    origin = library.config(said.origin) if said.origin else teacher if said.init == "teacher" else None
    theirs = _one_tokenizer(table.models, library)
    mine = library.tokenizer(models.Source(source=said.tokenizer)) if said.tokenizer else theirs
    mine = mine or (library.tokenizer(said.origin) if said.origin else None)
    if mine and said.origin and stage_of(said.origin.source):
        same_words(mine, library.tokenizer(said.origin), said.origin.source)
    if mine is None:
        raise UserError("models.student.tokenizer: missing; without a teacher the student needs a tokenizer")
    student = students.shape(said, origin or teacher, **_facts(mine))
    tasks.give(table.data, student, shapes, theirs or mine, mine, files.offline)
    for config in shapes.values():
        if family(config.model_type).causal != family(student.model_type).causal:
            raise UserError(
                f"a {student.model_type} student cannot learn from a {config.model_type} teacher: one predicts the next token; set models.student.family"
            )
    for config in (*shapes.values(), student):
        fits(config, table.data.max_length, 1 + max(mine.get_vocab().values()))
    plan = Design(table, shapes, student, theirs or mine, mine, {}, origin, earlier or {})
    for name, setting in table.chosen.items():
        plan.terms[name] = terms.of_setting(setting, student, plan.roles, f"settings.{name}", plan.top_k)
    has_targets(table, plan.terms, plan.causal)
    if table.train.teacher_precision == "int8":
        int8.require()
    sees_enough(table)
    mixes(table)
    own.require(table.models)
    changes.require(table, student)
    text_writers.writer_of(table)
    can_be_cached(table, bool(plan.teachers), plan.causal)
    bare.require_states_alone(table, shapes, origin, plan.terms)
    if kind_of(table).masks(table.data, plan.causal) and plan.teacher_tokenizer.mask_token_id is None:
        raise UserError(
            "the tokenizer has no mask token, and the text is masked; take a tokenizer that has one, or set "
            "data.masking.mode to none"
        )
    return plan


@contextmanager
def naming(table: recipe.Recipe, several: bool) -> Iterator[None]:
    """What is wrong inside is said with the name of the stage, where there are several."""
    try:
        yield
    except pretrained.NotDownloaded:
        raise
    except UserError as error:
        raise UserError(f"stage {table.stage}: {error}" if several else str(error)) from error


def chain(tables: Sequence[recipe.Recipe], files: ModelFiles | None = None) -> Plans:
    """The designs of stages that follow one another. Errors are those of `design`, with the name of the stage."""
    plans: Plans = {}
    for table in tables:
        with naming(table, len(tables) > 1):
            plans[table.stage] = design(table, files, dict(plans))
    return plans


def placed(plans: Plans, tables: Sequence[recipe.Recipe]) -> Plans:
    """The designs of the same stages in other folders, of fewer settings, for other numbers of updates: nothing is read."""
    found: Plans = {}
    for table in tables:
        found[table.stage] = replace(plans[table.stage].with_recipe(table), earlier=dict(found))
    return found


def named_sources(said: models.Models) -> dict[str, models.Source]:
    """Every pretrained model that a recipe names: `teacher`, or `teacher-1` and so on of an ensemble, then the others."""
    return {**dict(zip(actor_names.members(len(said.members)), said.members, strict=True)), **said.teachers}


@dataclass(frozen=True)
class _Library:
    """Shapes and tokenizers of what a recipe names: models on disk or on the Hub, students of earlier stages."""

    files: ModelFiles
    earlier: Mapping[str, Design]
    table: recipe.Recipe

    def config(self, source: models.Source) -> PretrainedConfig:
        stage = stage_of(source.source)
        return self._exported(source.source, stage) if stage else self.files.config(source)

    def _exported(self, source: str, stage: str) -> PretrainedConfig:
        """The shape of the students that a stage leaves."""
        earlier, seed = self.earlier[stage], self.table.seeds[0]
        taken = [student_of(earlier.recipe, source, name, seed) for name in self.table.chosen]
        names = dict.fromkeys(name for it in taken for name, _ in [actor_names.setting_and_seed(it) or ("", 0)])
        shapes = {
            name: changes.shrunk(earlier.recipe, name, copy.deepcopy(earlier.student))
            for name in names or earlier.recipe.chosen
        }
        first, *others = shapes
        for name in others:
            if shapes[name].to_dict() != shapes[first].to_dict():
                raise UserError(
                    f"{source}: {first} and {name} leave students of other shapes, for their changes cut other units; say which one, "
                    f"such as ${stage}/{first}"
                )
        return shapes[first]

    def tokenizer(self, source: models.Source) -> PreTrainedTokenizerBase:
        stage = stage_of(source.source)
        return self.earlier[stage].student_tokenizer if stage else self.files.tokenizer(source)


def _one_tokenizer(said: models.Models, library: _Library) -> PreTrainedTokenizerBase | None:
    """The tokenizer that all teachers share."""
    found = {name: library.tokenizer(source) for name, source in named_sources(said).items()}
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


def weights_fit(plan: Design, files: ModelFiles) -> list[str]:
    """Compares names and shapes of the teachers' weights with their configs, and with the student that begins as one.

    Returns:
        Lines for people: what the student leaves of the model that it begins as.

    Raises:
        UserError: they do not fit. Said before the corpus is tokenised, which can take hours.
    """
    wanted, said = plan.recipe.models.student, named_sources(plan.recipe.models)
    found = {name: _on_meta(source, plan.teachers[name], files) for name, source in said.items()}
    if plan.origin is None:
        return []
    first = next(iter(found.values()), None)
    origin = _on_meta(wanted.origin, plan.origin, files) if wanted.origin else first
    assert origin is not None
    with torch.device("meta"):
        student = students.build(plan.student, seed=0)
    return inherit.inherit(student, origin, wanted.from_layers)


def _on_meta(source: models.Source, config: PretrainedConfig, files: ModelFiles) -> PreTrainedModel:
    """A model without its weights, whose names and shapes are those on disk or those that a stage will train."""
    if not stage_of(source.source):
        return files.without_weights(source, config)
    with torch.device("meta"):
        return students.build(config, seed=0)


def facts(plan: Design) -> dict[str, Any]:
    """The layer maps of every setting, for people: setting -> term -> `1<-2 2<-4`."""
    return {
        name: {
            term.label: layer_maps.describe(
                terms.layer_map(term, plan.student, terms.shape_of(term, plan.student, plan.roles), name, setting.exits)
            )
            for term in setting.terms
            if set(term.taps) & set(LAYERED_TAPS)
        }
        for name, setting in plan.recipe.chosen.items()
    }
