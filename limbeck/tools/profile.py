"""`limbeck profile`: model folders side by side."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from limbeck.errors import UserError
from limbeck.families import reserved_positions
from limbeck.measure.profile import Facts, Tell, measure, on_disk
from limbeck.models import pretrained
from limbeck.recipe.data import Data
from limbeck.recipe.models import Source, source_of
from limbeck.system.progress import doing
from limbeck.text.rows import prepare_task
from limbeck.tools.formats import exported


def of_sources(
    sources: Sequence[str],
    *,
    length: int = 128,
    batches: Sequence[int] = (1, 32),
    rounds: int = 30,
    threads: int | None = None,
    precision: str = "fp32",
    data: Data | None = None,
    tell: Tell = lambda line: None,
) -> Facts:
    """Profiles of model folders, or models of the Hub, on the processor: what `limbeck profile` shows.

    A folder that `limbeck export` made is run by its own runtime, as it is; its peak memory is not known.

    Args:
        sources: folders, `embedded` or Hub ids; the first one is what the others are compared with.
        length: tokens of a row.
        batches: numbers of rows of a pass.
        rounds: passes of each model that are timed; in each round every model has its turn.
        threads: of torch; as they are when left out.
        precision: fp32 or bf16, of the parameters and of the computation.
        data: of a task, whose held-out rows say how long rows are, each model's by its own tokenizer; in place of `length`.
        tell: as in `measure`.

    Raises:
        UserError: a model cannot be loaded, or its rows cannot be so long; the data are no task.
    """
    if threads:
        torch.set_num_threads(threads)
    said = [source_of(name) for name in sources]
    configs = [pretrained.config_of(source) for source in said]
    lengths = [_lengths(source, data) for source in said] if data else [[length]] * len(said)
    for name, config, mine in zip(sources, configs, lengths, strict=True):
        room = config.max_position_embeddings - reserved_positions(config)
        if max(mine) > room:
            remedy = "data.max_length" if data else "--length"
            raise UserError(f"{name}: rows of {max(mine)} tokens are more than its {room} positions; lower {remedy}")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    loaded: list[Any] = [
        _Export(name, it) if exported.is_one(name) else pretrained.model_of(source, dtype, config=it).eval()
        for name, source, it in zip(sources, said, configs, strict=True)
    ]
    how: dict[str, Any] = {"length": length, "batches": batches, "rounds": rounds, "lengths": lengths if data else None}
    with doing("profile") as now:
        found = measure(loaded, tell=tell, turn=lambda number, rows: now.at(f"{sources[number]}, rows: {rows}"), **how)
    rows = [
        {
            "name": name,
            **facts,
            **(model.facts(batches) if isinstance(model, _Export) else {"bytes_on_disk": on_disk(model)}),
        }
        for name, model, facts in zip(sources, loaded, found["models"], strict=True)
    ]
    return found | {"precision": precision, "models": rows}


class _Export(nn.Module):
    """An exported file in the place of a model."""

    def __init__(self, folder: str, config: PretrainedConfig) -> None:
        super().__init__()
        self.config, self.device, self._said = config, torch.device("cpu"), exported.facts(folder)
        self._run = exported.runner(folder)

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        """Its logits, under that name."""
        return SimpleNamespace(logits=self._run(batch))

    def facts(self, batches: Sequence[int]) -> Facts:
        """What its export counted, in place of what can be counted of a model in memory."""
        unknown = {"parameters_without_embeddings": None, "peak_memory": dict.fromkeys(map(str, batches))}
        return {"parameters": self._said["parameters"], "bytes_on_disk": self._said["bytes"], **unknown}


def _lengths(source: Source, data: Data) -> list[int]:
    """How many tokens the held-out rows of a task have, in the order of the file."""
    if data.task is None:
        raise UserError(
            "--task: its data are running text, whose blocks have one length; leave it out and say --length"
        )
    classes = ("0", "1") if data.task.label is None else None  # of rows without labels, whose lengths hang on none
    rows = prepare_task(data, pretrained.tokenizer_of(source), tell=lambda line: None, classes=classes)
    return rows.heldout.lengths.tolist()
