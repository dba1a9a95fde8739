"""What a model folder reaches on held-out text or rows: the metrics of its task, or how well it predicts words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.assemble import tasks
from limbeck.batch import IGNORED
from limbeck.errors import UserError
from limbeck.families import family, reserved_positions
from limbeck.losses import cross_entropy, squared_error
from limbeck.measure import metrics
from limbeck.models import pretrained
from limbeck.models.taps import Tapped
from limbeck.recipe import models
from limbeck.recipe.data import Data
from limbeck.system import files
from limbeck.system.precision import DTYPES
from limbeck.system.processes import usable
from limbeck.system.progress import doing
from limbeck.text.block_feed import Feed
from limbeck.text.blocks import counted, prepare
from limbeck.text.corpora import without_text
from limbeck.text.feed import Batches
from limbeck.text.heldout import each, heldout_source
from limbeck.text.row_feed import TaskFeed
from limbeck.text.rows import TaskCorpus, prepare_task
from limbeck.tools.formats import exported
from limbeck.tools.formats.format import Runner

Batch = Mapping[str, Tensor]
Answer = Callable[[Batch], Iterator[Tensor]]  # a batch -> the logits of what it selects, SOME tokens or rows at a time
Answered = tuple[np.ndarray, np.ndarray, np.ndarray]  # of some tokens or rows what was said, the labels, the losses
SOME = 1024


@dataclass
class Examined:
    """What was found.

    Attributes:
        rows: rows of a task, or selected tokens of running text, that have a label.
        label_loss: the mean cross entropy in nats, of scores the mean square; None where nothing has a label.
        metrics: of a task its metrics; of running text `accuracy` and `perplexity`.
        answers: of a task one for each row, in the order of the file: the class, or the score.
    """

    rows: int
    label_loss: float | None
    metrics: dict[str, float | None]
    answers: list[str] = field(default_factory=list)


def examine(
    folder: str | Path,
    data: Data,
    *,
    batch_size: int = 32,
    precision: str = "fp32",
    device: str = "cpu",
    answering: bool = False,
) -> Examined:
    """Evaluates a model, such as an exported student, on the held-out part of some data.

    Args:
        folder: a folder, or a Hub id; one that `limbeck export` made is run by its own runtime.
        data: the table `data` of a recipe.
        batch_size: rows at a time.
        precision: `fp32`, `bf16`, `fp64`.
        device: where it runs.
        answering: rows of a task are wanted for their answers: they need no labels, and each must have text.

    Raises:
        UserError: no usable model, no such device, it does not fit the task, or the data cannot be read.

    Example:
        >>> examine("runs/classify/students/logit-seed0", data).metrics["accuracy"]   # doctest: +SKIP
        0.91
    """
    source = models.source_of(str(folder))
    config, tokenizer = pretrained.config_of(source), pretrained.tokenizer_of(source)
    if answering and data.task:
        _every_row_is_read(data)
    heldout, names = batches_of(data, config, tokenizer, folder, batch_size)
    if exported.is_one(folder):
        if (precision, device) != ("fp32", "cpu"):
            raise UserError(f"{folder}: an export runs as it is, on the processor; leave --precision and --device out")
        answer = of_runner(exported.runner(folder))
    else:
        dtype, where = DTYPES[precision], usable(device, f"--device: {device}", "take cpu")
        answer = of_model(pretrained.model_of(source, dtype, config=config).to(where).eval())  # pyright: ignore
    with doing("evaluation", "rows" if data.task else "blocks") as done:
        found = [each for batch in counted(heldout, done, batch_size) for each in answered(answer, batch)]
    rows, loss, scores = scored(data, found)
    if not rows and not (answering and data.task):
        raise UserError(
            f"{data.heldout}: no held-out row has a label to be measured by; name their column in data.task"
        )
    if data.task is None:
        return Examined(rows, loss, scores)
    logits = np.concatenate([some[0] for some in found])
    said = [names[int(row.argmax())] for row in logits] if names else [f"{row[0]:.6g}" for row in logits]
    return Examined(rows, loss, scores, said)


def scored(data: Data, found: Sequence[Answered]) -> tuple[int, float | None, dict[str, float | None]]:
    """Of what was answered: how many have a label, the mean loss of those, and the metrics."""
    logits, labels = (np.concatenate([some[place] for some in found]) for place in (0, 1))
    kept = labels != IGNORED
    loss = float(np.concatenate([some[2] for some in found])[kept].mean()) if kept.any() else None
    if data.task:
        return int(kept.sum()), loss, metrics.scores(data.task.kind, logits, labels)
    if loss is None:
        return 0, None, {}
    right = float((logits[kept] == labels[kept]).mean())
    return int(kept.sum()), loss, {"accuracy": right, "perplexity": math.exp(min(loss, 700.0))}


def _every_row_is_read(data: Data) -> None:
    """Whether no held-out row is passed over for want of text: an answer stands under the number of its row."""
    assert data.task is not None
    for one in each(data):
        if (source := heldout_source(one)) and (name := without_text(*source, data.task.columns, data.longest)):
            raise UserError(f"{name}: a row without text, which has no answer; remove it, or put a text there")


def write_answers(found: Examined, path: Path) -> None:
    """Writes the answers of a task as a table of two columns, `index` and `prediction`, the form that GLUE takes."""
    if not found.answers:
        raise UserError("--predictions: running text has no rows to answer; leave it out")
    lines = [f"{index}\t{answer}" for index, answer in enumerate(found.answers)]
    files.write_text(path, "\n".join(["index\tprediction", *lines]) + "\n")


def batches_of(
    data: Data,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Any,
    size: int,
    most: int | None = None,
) -> tuple[Iterator[Batch], tuple[str, ...]]:
    """The held-out part, whole or some rows spread evenly over it, and what the rows call their classes.

    Raises:
        UserError: a model of this config does not fit the data.
    """
    feed: Batches
    names: tuple[str, ...] = ()
    if (data.task is None) != (config.problem_type is None):
        what = (
            "a language model, and the data are a task"
            if data.task
            else "made for a task, and the data are running text"
        )
        raise UserError(f"{folder}: {what}; take another model, or other data")
    if data.task is None:
        corpus = prepare(data, tokenizer, tell=lambda line: None)
        causal = family(config.model_type).causal
        if not causal and data.masking.mode == "none":
            raise UserError(
                f"{folder}: is measured by masked tokens, and none is masked; set data.masking.mode to dynamic"
            )
        masking = data.masking.model_copy(update={"mode": "none"} if causal else {})
        positions = "all" if causal else "masked"
        feed = Feed(corpus.heldout, masking=masking, positions=positions, batch_size=size, causal=causal)
    else:
        if (config.num_labels == 1) != (data.task.kind == "regression"):
            raise UserError(
                f"{folder}: made for {config.problem_type}, and the task is a {data.task.kind}; take another"
            )
        classes = tasks.classes_of(config) if data.task.kind == "classification" else None
        corpus = prepare_task(data, tokenizer, tell=lambda line: None, classes=classes)
        if names := corpus.classes:
            tasks.agrees(data.task, str(folder), config, names)
        types = "token_type_ids" in tokenizer.model_input_names
        feed = TaskFeed(corpus.heldout, batch_size=size, pad_id=tasks.padding(tokenizer), types=types)
    longest = int(corpus.heldout.lengths.max()) if isinstance(corpus, TaskCorpus) else data.max_length
    if longest > (room := getattr(config, "max_position_embeddings", longest) - reserved_positions(config)):
        raise UserError(f"{folder}: rows of {longest} tokens are more than its {room} positions; lower data.max_length")
    return feed.fixed(most or len(corpus.heldout), size), names


def of_model(model: PreTrainedModel) -> Answer:
    """How a model in memory answers; on the device where it is."""
    tapped = Tapped(model)

    @torch.no_grad()
    def answer(batch: Batch) -> Iterator[Tensor]:
        here = {name: tensor.to(model.device) for name, tensor in batch.items()}
        features = tapped(here).features[here["select"]]
        yield from (tapped.head(some) for some in features.split(SOME))

    return answer


def of_runner(run: Runner) -> Answer:
    """How an exported file answers."""

    def answer(batch: Batch) -> Iterator[Tensor]:
        yield from run(batch)[batch["select"]].split(SOME)

    return answer


def answered(answer: Answer, batch: Batch) -> Iterator[Answered]:
    """Of the selected tokens or rows of a batch, some at a time: the logits (of tokens the best one), the labels, the loss."""
    labels = batch["labels"][batch["select"]].split(SOME)
    for logits, some in zip(answer(batch), labels, strict=True):
        yield told(logits, some, rows=batch["select"].dim() == 1)


@torch.no_grad()
def told(logits: Tensor, labels: Tensor, rows: bool) -> Answered:
    """Some logits beside their labels, as `answered` gives them; of the rows of a task, or of tokens."""
    labels = labels.to(logits.device)
    loss = squared_error if logits.shape[-1] == 1 else cross_entropy
    values = loss(student=logits, labels=labels)
    found = (logits if rows else logits.argmax(-1), labels, values)
    one, two, three = (tensor.double().cpu().numpy() for tensor in found)
    return one, two, three
