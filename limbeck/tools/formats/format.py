"""What a format is: how a student is written as a file, and how that file is run without limbeck."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.errors import UserError
from limbeck.families import family
from limbeck.models.compressed import Compressed

Batch = Mapping[str, Tensor]
Runner = Callable[[Batch], Tensor]  # a batch -> logits, `[B, T, V]`, of a sequence classifier `[B, C]`


@dataclass(frozen=True)
class Format:
    """A kind of file, as a value.

    Attributes:
        name: in `--to`.
        about: what it is, in a sentence of the card.
        packages: that it needs, by the names that are imported.
        bound: how far a logit may be from the twin's, as a share of the largest logit of the twin.
        refusal: why a student of this config cannot be written so, and what else to do; None where it can.
        twin: a model, which may be changed, and what was done to its weights -> the model in memory that says what the file says.
        write: writes the twin and its tokenizer into a folder.
        runner: how a written folder answers, by its own runtime.
        usage: the five lines of the card, given the config and the names of the inputs.
    """

    name: str
    about: str
    packages: tuple[str, ...]
    bound: float
    refusal: Callable[[PretrainedConfig, Compressed], str | None]
    twin: Callable[[PreTrainedModel, Compressed], PreTrainedModel]
    write: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Path], None]
    runner: Callable[[Path], Runner]
    usage: Callable[[PretrainedConfig, Sequence[str]], str]


def require(name: str, packages: Sequence[str]) -> None:
    """Whether the packages of a format are installed.

    Raises:
        UserError: one is not.
    """
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise UserError(f"{name} needs {' and '.join(missing)}; pip install 'limbeck[export]'")


def reads_types(config: PretrainedConfig) -> bool:
    """Whether a model tells the first text of a pair from the second."""
    return bool(getattr(config, "type_vocab_size", 0)) and not family(config.model_type).counts_from_padding


def input_names(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the tokenizer gives and the model reads, in this order: `input_ids`, `attention_mask`, and `token_type_ids` where there is."""
    types = "token_type_ids" in tokenizer.model_input_names and reads_types(config)
    return ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
