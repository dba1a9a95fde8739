"""What a forward pass of a model multiplies, counted on the meta device: no memory, no weights; a shape is counted once."""

from __future__ import annotations

import json
from functools import cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from limbeck.families import family
from limbeck.models import students
from limbeck.models.taps import Tapped

NAMES = (
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
)  # keys of a config that are no part of a shape


class Counted(NamedTuple):
    """FLOPs of a forward pass, two for each multiply-accumulate: matrix products, attention included."""

    parameters: int
    token: float  # of the backbone, for each token
    pair: float  # and for each two positions of a row that attention compares
    head: int  # of one token, or of a row of a classifier


def count(config: PretrainedConfig, length: int) -> Counted:
    """The count of a shape; exact for rows of `length` tokens."""
    return _counted(type(config), _words(config), length)


def macs(config: PretrainedConfig, length: int) -> int:
    """Multiply-accumulates of one row, its head included; a causal model is counted with the whole square of its attention."""
    return _macs(type(config), _words(config), length)


def _words(config: PretrainedConfig) -> str:
    """What a shape is a function of."""
    drawn = family(config.model_type).dropouts
    return json.dumps({k: v for k, v in config.to_dict().items() if k not in (*NAMES, *drawn)}, sort_keys=True)


@cache
def _counted(kind: type[PretrainedConfig], words: str, length: int) -> Counted:
    config = kind.from_dict(json.loads(words))
    with torch.device("meta"), torch.no_grad():
        model = students.build(config, seed=0).eval()
        tapped, short = Tapped(model), length // 2
        whole, half = (_backbone(tapped, size) / size for size in (length, short))
        with FlopCounterMode(display=False) as head:
            tapped.head(torch.empty(1, config.hidden_size))
    pair = (whole - half) / (length - short)
    return Counted(sum(p.numel() for p in model.parameters()), whole - pair * length, pair, head.get_total_flops())


@cache
def _macs(kind: type[PretrainedConfig], words: str, length: int) -> int:
    with torch.device("meta"), torch.no_grad():
        model = students.build(kind.from_dict(json.loads(words)), seed=0).eval()
        with FlopCounterMode(display=False) as counter:
            model(**_row(length))
    return counter.get_total_flops() // 2


def _backbone(tapped: Tapped, length: int) -> int:
    """FLOPs of a forward pass of one row, without the head."""
    with FlopCounterMode(display=False) as counter:
        tapped(_row(length))
    return counter.get_total_flops()


def _row(length: int) -> dict[str, torch.Tensor]:
    seen = torch.ones(1, 1, length, length, dtype=torch.bool)  # four axes: taken without a look inside
    return {"input_ids": torch.zeros(1, length, dtype=torch.long), "attention_mask": seen}
