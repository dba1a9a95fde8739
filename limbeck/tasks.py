"""Tasks: what predicting a class or a score of a row makes of models and of the terms that a recipe may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from limbeck import lessons, recipe
from limbeck.errors import UserError
from limbeck.feeds.tasks import prepare_task
from limbeck.losses import LOSSES
from limbeck.material import Data

HEAD_DROPOUTS = ("classifier_dropout", "seq_classif_dropout")
OF_SCORES = ("logit_mse", "squared_error")  # the losses on logits that a score has


def give(
    data: Data,
    student: PretrainedConfig,
    teachers: Mapping[str, PretrainedConfig],
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Makes the student's config that of a classifier for the task of the data, or of a language model where there is none.

    Raises:
        UserError: a teacher is no model for this task, or its classes are others.
    """
    task = data.task
    for name, config in teachers.items():
        _suits(data, name, config)
    if task is None:
        student.problem_type = None
        return
    first = next(iter(teachers.values()), None)
    classes: Sequence[str] = ("score",)
    if task.kind == "classification":
        named = task.classes or (first and _names(first))
        classes = named or prepare_task(data, teacher_tokenizer, student_tokenizer, tell=_silent).classes
    student.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
    student.id2label = dict(enumerate(classes))
    student.label2id = {name: number for number, name in enumerate(classes)}
    student.pad_token_id = padding(student_tokenizer)
    for word in HEAD_DROPOUTS:
        if hasattr(student, word):
            setattr(student, word, 0.0)
    if hasattr(student, "classifier_pooling"):
        student.classifier_pooling = "cls"
    for name, config in teachers.items():
        if config.num_labels != len(classes) or (_names(config) or classes) != tuple(classes):
            mine, theirs = ", ".join(classes), ", ".join(map(str, (config.id2label or {}).values()))
            raise UserError(
                f"models.{name}: it predicts {theirs}, and the task has {mine}; give both the same, in one order"
            )


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
    names = tuple(map(str, (config.id2label or {}).values()))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def padding(tokenizer: Any) -> int:
    """The id that fills rows up: the tokenizer's own, or that of the end of text."""
    own = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return own if own is not None else 0


def has_targets(table: recipe.Recipe, made: Mapping[str, Sequence[lessons.Term]]) -> None:
    """Whether the task gives every setting what its losses look at, and has the distribution that they compare."""
    task = table.data.task
    assert task is not None
    for name, setting in table.chosen.items():
        for said, term in zip(setting.terms, made[name], strict=True):
            where = f"settings.{name}.{term.name}"
            if "labels" in term.needs and task.label is None:
                raise UserError(f"{where}: {said.loss} learns labels, and data.task.label is null; name their column")
            if said.loss not in LOSSES or not term.on_logits:
                continue
            if task.kind == "regression" and said.loss not in OF_SCORES:
                raise UserError(
                    f"{where}: a score is no distribution; use {' or '.join(OF_SCORES)} in place of {said.loss}"
                )
            if task.kind == "classification" and said.loss == "squared_error":
                raise UserError(f"{where}: squared_error learns scores; use cross_entropy for classes")


def vocabulary(config: PretrainedConfig) -> int:
    """The columns of a model's logits."""
    return int((config.num_labels if config.problem_type else config.vocab_size) or 0)
