"""Whether an exported file answers as the model in memory: on which text, and by how much they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from limbeck import rundir
from limbeck.assemble import tasks
from limbeck.batch import IGNORED
from limbeck.errors import UserError
from limbeck.families import reserved_positions
from limbeck.recipe.arms import asked
from limbeck.recipe.data import Data
from limbeck.system.progress import doing
from limbeck.text import docs
from limbeck.tools.evaluate_model import Answered, Batch, batches_of, scored, told
from limbeck.tools.formats.format import Runner

ROWS = {True: 1000, False: 64}  # rows of a task, or blocks of text, that are compared at most
AT_ONCE = {True: 32, False: 8}
TOPICS, LONGEST = 32, 64  # of the sample: texts, and tokens of each


@dataclass(frozen=True)
class HeldOut:
    """What two models are compared on.

    Attributes:
        batches: padded, with `labels` and `select`.
        data: where they come from; None of the sample.
        said: in words.
    """

    batches: list[Batch]
    data: Data | None
    said: str

    @property
    def length(self) -> int:
        """Tokens of a row, on average."""
        seen = [batch["attention_mask"].sum(1).float() for batch in self.batches]
        return max(1, round(torch.cat(seen).mean().item()))


def data_of_run(folder: Path) -> Data | None:
    """The table `data` of the run that a student lies in, `RUN/students/NAME`; None of any other folder."""
    recipe = folder.absolute().parents[1] / rundir.RECIPE if len(folder.absolute().parents) > 1 else None
    ours = recipe is not None and folder.absolute().parent.name == rundir.STUDENTS and recipe.is_file()
    return asked(str(recipe), []).arms()[0].data if ours else None


def of_data(data: Data, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: str) -> HeldOut:
    """The held-out part of some data, or rows spread evenly over it.

    Raises:
        UserError: it cannot be read, or a model of this config does not fit it.
    """
    is_task = data.task is not None
    found = list(batches_of(data, config, tokenizer, folder, AT_ONCE[is_task], ROWS[is_task])[0])
    rows = sum(len(batch["input_ids"]) for batch in found)
    where = data.heldout if isinstance(data.heldout, str) else data.corpus
    return HeldOut(found, data, f"{rows:,} held-out {'rows' if is_task else 'blocks'} of {where}")


def sample(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """Some texts that every installation has: of the reference of the language Python, without labels."""
    from pydoc_data.topics import topics

    texts = ("\n".join(docs.prose(topics[topic])) for topic in sorted(topics))
    some = list(islice((text for text in texts if text), TOPICS))
    room = getattr(config, "max_position_embeddings", LONGEST) - reserved_positions(config)
    how: dict[str, Any] = {"truncation": True, "max_length": min(LONGEST, room)}
    rows = [tokenizer(text, **how)["input_ids"] for text in some]
    padding = tasks.padding(tokenizer)
    return HeldOut(
        [_padded(rows[at : at + 8], padding, bool(config.problem_type)) for at in range(0, len(rows), 8)],
        None,
        f"{len(rows)} texts of the reference of Python",
    )


def _padded(rows: Sequence[Sequence[int]], padding: int, classifies: bool) -> Batch:
    ids = torch.full((len(rows), max(map(len, rows))), padding)
    seen = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = torch.tensor(row)
        seen[line, : len(row)] = 1
    select = torch.ones(len(rows), dtype=torch.bool) if classifies else seen.bool()
    return {"input_ids": ids, "attention_mask": seen, "labels": torch.full(select.shape, IGNORED), "select": select}


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from the model in memory that it is held against.

    Attributes:
        difference: the largest absolute difference of two logits; infinite where one is no number.
        largest: the largest absolute logit in memory.
        agreement: the share of tokens or rows of which both say the same first; None of scores.
        compared: tokens or rows.
        scores: of every model that was asked its loss and metrics, where there are labels.
    """

    difference: float
    largest: float
    agreement: float | None
    compared: int
    scores: dict[str, dict[str, float | None]]

    @property
    def relative(self) -> float:
        """The difference, as a share of the largest logit."""
        return self.difference / self.largest if self.largest else self.difference


def compare(memory: Runner, file: Runner, heldout: HeldOut, others: Mapping[str, Runner]) -> Parity:
    """Asks all the same, one batch after another; `others` for their scores alone."""
    runners = {**others, "memory": memory, "export": file}
    answers: dict[str, list[Answered]] = {name: [] for name in runners}
    difference, largest, agreed, compared, columns = 0.0, 0.0, 0, 0, 0
    with doing("parity", "batches") as done:
        for number, batch in enumerate(heldout.batches):
            done(number, len(heldout.batches))
            select, rows = batch["select"], batch["select"].dim() == 1
            said = {name: run(batch)[select].float() for name, run in runners.items()}
            for name, logits in said.items():
                answers[name].append(told(logits, batch["labels"][select], rows))
            here, there = said["memory"], said["export"]
            gap = (here - there).abs().max().item()
            difference = max(difference, gap) if math.isfinite(gap) else math.inf
            largest = max(largest, here.abs().max().item())
            agreed += int((here.argmax(-1) == there.argmax(-1)).sum())
            compared, columns = compared + len(here), here.shape[-1]
    scores = {name: _score(heldout.data, found) for name, found in answers.items()}
    agreement = agreed / compared if columns > 1 else None
    return Parity(difference, largest, agreement, compared, scores)


def _score(data: Data | None, found: list[Answered]) -> dict[str, float | None]:
    if data is None:
        return {}
    rows, loss, metrics = scored(data, found)
    return {"label_loss": loss, **metrics} if rows else {}


def heldout(
    folder: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, data: Data | None, tell: Any
) -> HeldOut:
    """What a student and its export are compared on: the data that were named, else those of its run, else the sample.

    Raises:
        UserError: the data that were named cannot be read, or do not fit.
    """
    if data is not None:
        return of_data(data, config, tokenizer, folder)
    try:
        found = data_of_run(Path(folder))
        return of_data(found, config, tokenizer, folder) if found else sample(config, tokenizer)
    except UserError as error:
        tell(
            f"{folder}: the data of its run cannot be used ({error}); parity is measured on texts of Python's reference"
        )
        return sample(config, tokenizer)
