"""Tasks: what predicting a class or a score of a row makes of models and of the terms that a recipe may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from limbeck.distil import lessons
from limbeck.errors import UserError
from limbeck.losses import LOSSES
from limbeck.models import pretrained
from limbeck.recipe import recipe, stage_texts
from limbeck.recipe.data import Data, Task
from limbeck.recipe.keys import MEASURED_BY_TEACHER
from limbeck.text.heldout import each
from limbeck.text.rows import prepare_task

HEAD_DROPOUTS = ("classifier_dropout", "seq_classif_dropout")
SHOWN = 12  # how many classes an error names
OF_SCORES = ("logit_mse", "squared_error")  # the losses on logits that a score has


def give(
    data: Data,
    student: PretrainedConfig,
    teachers: Mapping[str, PretrainedConfig],
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase,
    offline: bool = False,
) -> None:
    """Makes the student's config that of a classifier for the task of the data, or of a language model where there is none.

    Raises:
        UserError: a teacher is no model for this task, or its classes are others.
        NotDownloaded: only rows on the Hub name the classes, and it is not to be asked (`offline`).
    """
    task = data.task
    for name, config in teachers.items():
        _suits(data, name, config)
    if task is None:
        student.problem_type = None
        return
    classes: Sequence[str] = ("score",)
    if task.kind == "classification":
        known = _known(task, list(teachers.values()))
        if known is None and offline and any(one.corpus.startswith("hub:") for one in each(data)):
            raise pretrained.NotDownloaded(f"{data.corpus}: its rows name the classes; name them in data.task.classes")
        if known is None and stage_texts.named(data):
            raise UserError(
                "data.task.classes: missing; name them, since the rows of a stage that writes are not there yet"
            )
        classes = known or prepare_task(data, teacher_tokenizer, student_tokenizer, tell=_silent).classes
    student.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
    student.id2label = dict(enumerate(classes))
    student.label2id = {name: number for number, name in enumerate(classes)}
    student.pad_token_id = padding(student_tokenizer)
    for word in HEAD_DROPOUTS:
        if hasattr(student, word):
            setattr(student, word, 0.0)
    for name, config in teachers.items():
        agrees(task, f"models.{name}", config, classes)


def _known(task: Task, teachers: Sequence[PretrainedConfig]) -> Sequence[str] | None:
    """The classes where the recipe or a teacher names them, None where the rows must. Without labels they need no names."""
    named = [names for names in map(_names, teachers) if names]
    if task.label is None and not named:
        named = [classes_of(config) for config in teachers]
    return task.classes or next(iter(named), None)


def agrees(task: Task, where: str, config: PretrainedConfig, classes: Sequence[str]) -> None:
    """Whether a model predicts the classes of the task, in their order.

    Names differ where the recipe says what the rows call the classes (0, 1) that the model calls otherwise (NEGATIVE,
    POSITIVE); the same names in another order are a mistake.
    """
    theirs, mine, remedy = classes_of(config), list(classes), "data.task.classes in the order of its logits"
    said = f"{where}: it predicts {listed(theirs)}, and the task has {listed(mine)}"
    if len(theirs) != len(mine):
        count = f"{len(theirs)} and {len(mine)}"
        raise UserError(f"{said} ({count}); " + ("take another" if task.kind == "regression" else f"name all {remedy}"))
    if task.kind == "regression" or _names(config) is None:
        return
    low, high = ([word.casefold() for word in words] for words in (theirs, mine))
    if low != high and (not task.classes or set(low) & set(high)):
        raise UserError(f"{said}; name {remedy}")


def listed(names: Sequence[str]) -> str:
    """The first classes of many, for people."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _silent(line: str) -> None:
    pass


def _suits(data: Data, name: str, config: PretrainedConfig) -> None:
    """Whether a teacher predicts what the data ask for."""
    kinds = {"classification": "single_label_classification", "regression": "regression"}
    wanted = kinds[data.task.kind] if data.task else None
    if config.problem_type == wanted:
        return
    if wanted is None:
        raise UserError(
            f"models.{name}: a classifier of rows, and the data are running text; set data.task, or take a language model"
        )
    if config.problem_type is None:
        raise UserError(
            f"models.{name}: a language model, which predicts no {'class' if data.task and data.task.kind == 'classification' else 'score'} yet; "
            "fine-tune it first, in a run or a stage of its own with models.student.init"
        )
    raise UserError(
        f"models.{name}: made for {config.problem_type}, and the task is a {data.task and data.task.kind}; take another"
    )


def _names(config: PretrainedConfig) -> tuple[str, ...] | None:
    """The classes of a model in the order of its logits, None where it only counts them (LABEL_0, LABEL_1)."""
    names = classes_of(config)
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def classes_of(config: PretrainedConfig) -> tuple[str, ...]:
    """What a model calls its logits; a file may hold them sorted as text, 10 before 2."""
    return tuple(str(name) for _, name in sorted((config.id2label or {}).items(), key=lambda item: int(item[0])))


def padding(tokenizer: Any) -> int:
    """The id that fills rows up: the tokenizer's own, or else the first special token with which no row ends.

    A causal classifier of transformers answers at the last token that is not this one.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    last = tokenizer("a")["input_ids"][-1:]
    known = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    return next((number for number in known if number is not None and number not in last), 0)


def has_targets(table: recipe.Recipe, made: Mapping[str, Sequence[lessons.Term]]) -> None:
    """Whether the task gives every setting what its losses look at, and has the distribution that they compare."""
    task = table.data.task
    for name, setting in table.chosen.items():
        for said, term in zip(setting.terms, made[name], strict=True):
            where = f"settings.{name}.{term.name}"
            if said.loss == "squared_error" and (task is None or task.kind == "classification"):
                raise UserError(f"{where}: squared_error learns scores; use cross_entropy for classes and tokens")
            if task is None:
                continue
            if "labels" in term.needs and task.label is None:
                raise UserError(f"{where}: {said.loss} learns labels, and data.task.label is null; name their column")
            if said.loss not in LOSSES or not term.on_logits:
                continue
            if task.kind == "regression" and said.loss not in OF_SCORES:
                raise UserError(
                    f"{where}: a score is no distribution; use {' or '.join(OF_SCORES)} in place of {said.loss}"
                )


def labelled(table: recipe.Recipe, made: Mapping[str, Sequence[lessons.Term]], rows: int) -> None:
    """Whether there are labels of training rows, `rows` of them, where a loss learns them.

    Raises:
        UserError: there are none: a task may have labels in its held-out part alone.
    """
    for name, terms in made.items() if table.data.task and not rows else ():
        for term in terms:
            if "labels" in term.needs:
                raise UserError(
                    f"settings.{name}.{term.name}: learns labels, and no training row of {table.data.corpus} has one in the "
                    f"column '{table.data.task and table.data.task.label}'; name another column in data.task.label, or take "
                    "a loss that learns from the teacher"
                )


def measurable(table: recipe.Recipe, rows: int) -> None:
    """Whether there are labels of held-out rows, `rows` of them, where the weights that are kept are chosen by them.

    Raises:
        UserError: there are none, and the untrained student would be kept.
    """
    task, measure = table.data.task, table.measure
    if task is None or rows or measure in (None, *MEASURED_BY_TEACHER):
        return
    remedy = "name their column in data.task.label" if task.label is None else "name held-out rows that have some"
    other = "logit_loss" if table.models.teacher else "last"
    raise UserError(
        f"train.keep: {measure} is measured by labels, and no held-out row has one; {remedy}, or set train.keep to {other}"
    )
