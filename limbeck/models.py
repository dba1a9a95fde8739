"""Where pretrained models and tokenizers come from: a folder, the Hub at a pinned revision, or the embedded teacher.

Never remote code, never pickle: configurations are JSON, weights are safetensors.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from limbeck.anatomy import family
from limbeck.errors import UserError
from limbeck.recipe import Source

EMBEDDED = "embedded"


class NotDownloaded(UserError):
    """A model of the Hub that is not on this machine and could not be fetched."""


def place(source: str) -> str:
    """The folder or Hub id that a recipe's word means.

    Raises:
        UserError: it is written as a path and is not there.
    """
    if source == EMBEDDED:
        return str(files("limbeck") / "data" / "embedded")
    if Path(source).is_dir():
        return source
    if source.startswith(("/", "./", "../", "~")) or source.count("/") != 1:
        raise UserError(
            f"{source}: no such model folder; give a folder, 'embedded', or a Hub id such as google-bert/bert-base-uncased"
        )
    return source


def config_of(source: Source, offline: bool = False) -> PretrainedConfig:
    """The model's configuration."""
    config = _fetch(AutoConfig, source, local_files_only=offline)
    family(config.model_type)
    return config


def tokenizer_of(source: Source, offline: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    return _fetch(AutoTokenizer, source, local_files_only=offline)


def model_of(source: Source, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its masked or causal language-model head.

    Raises:
        UserError: weights are missing, left over or of another shape than the config says.
    """
    config = config_of(source)
    kind = AutoModelForCausalLM if family(config.model_type).causal else AutoModelForMaskedLM
    try:
        model, report = _fetch(
            kind, source, dtype=dtype, use_safetensors=True, output_loading_info=True, attn_implementation="sdpa"
        )
    except RuntimeError as error:
        raise UserError(f"{source.source}: the weights do not fit the config: {_line(error)}") from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{source.source}: the weights of {missing[0]} are missing ({len(missing)} in all); take a whole model"
        )
    return model


def _fetch(kind: Any, source: Source, **how: Any) -> Any:
    where = place(source.source)
    try:
        return kind.from_pretrained(where, revision=source.revision or "main", trust_remote_code=False, **how)
    except (OSError, ValueError, KeyError) as error:
        if Path(where).is_dir():
            raise UserError(f"{where}: not a usable model folder: {_line(error)}") from None
        raise NotDownloaded(
            f"{where}: could not be fetched from the Hub: {_line(error)}; check the name and the network"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
