"""`limbeck sensitivity`: which layers of a model folder are better left as they are when it is quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from limbeck.batch import to_device
from limbeck.errors import UserError
from limbeck.measure import sensitivity
from limbeck.models import pretrained
from limbeck.models.changes.quantise import Quantise
from limbeck.models.taps import Tapped
from limbeck.recipe import models
from limbeck.recipe.data import Data
from limbeck.system.progress import doing
from limbeck.tools.evaluate_model import batches_of

ROWS, AT_A_TIME = 32, 8  # of held-out text: always the same, spread evenly over it


def of_model(
    folder: str | Path, data: Data, *, bits: int, group: int | None = None, rows: int = ROWS
) -> dict[str, Any]:
    """Quantises one layer after another and measures how far the predictions on held-out text move.

    Args:
        folder: a folder, or a Hub id.
        data: the table `data` of a recipe.
        bits: of a weight, 2 to 8.
        group: inputs that share a scale; None: a whole row.
        rows: blocks, or rows of a task, that are looked at; all where there are fewer.

    Returns:
        `model`, `bits`, `group`, the number of `rows` and of `tokens` (of a task, rows again), what was `measured`; `layers`, each with
        `names`, `change`, `bytes` and whether it is to be left `alone`, the most sensitive first; `skip`, the names of those to be left alone.

    Raises:
        UserError: no usable model, the data do not fit it, groups do not divide the inputs of a layer.

    Example:
        >>> of_model("runs/mine/students/logit-seed0", data, bits=4)["skip"]   # doctest: +SKIP
        ['bert.encoder.layer.0.attention.output.dense']
    """
    source = models.source_of(str(folder))
    config, tokenizer = pretrained.config_of(source), pretrained.tokenizer_of(source)
    batches, _ = batches_of(data, config, tokenizer, folder, AT_A_TIME, rows)
    read = [to_device(batch, torch.device("cpu")) for batch in batches]
    tokens = sum(int(batch["select"].sum()) for batch in read)
    if not tokens:
        raise UserError(
            f"{folder}: no token of the held-out rows is masked, so nothing is predicted; raise data.masking"
        )
    tapped = Tapped(pretrained.model_of(source, torch.float32, config=config).eval())
    with doing("sensitivity", "layers") as done:
        found = sensitivity.of_layers(tapped, read, Quantise(bits, bits, bits, group), done)
    alone = sensitivity.left_alone(found)
    return {
        "model": str(folder),
        "bits": bits,
        "group": group,
        "rows": sum(len(batch["input_ids"]) for batch in read),
        "tokens": tokens,
        "measured": "squared error" if config.problem_type and config.num_labels == 1 else "KL",
        "layers": [
            {"names": list(it.names), "change": it.change, "bytes": it.bytes, "alone": it in alone} for it in found
        ],
        "skip": [name for it in alone for name in it.names],
    }
