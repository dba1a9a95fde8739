"""Where pretrained models and tokenizers come from: a folder, the Hub at a pinned revision, or the embedded teacher.

Never remote code, never pickle: configurations are JSON, weights are safetensors.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
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
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
PATIENCE = 10.0  # seconds until the Hub answers


class NotDownloaded(UserError):
    """A model of the Hub that is not on this machine and could not be fetched."""


def place(source: str) -> str:
    """The folder or Hub id that a recipe's word means.

    Raises:
        UserError: it is neither.
    """
    if source == EMBEDDED:
        return str(files("limbeck") / "data" / "embedded")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return str(folder)
    if not HUB_ID.fullmatch(source) or folder.exists():
        raise UserError(
            f"{source}: no such model folder; give a folder, 'embedded', or a Hub id such as google-bert/bert-base-uncased"
        )
    return source


def config_of(source: Source, offline: bool = False) -> PretrainedConfig:
    """The model's configuration."""
    config = _fetch(AutoConfig, source, offline)
    family(config.model_type)
    return config


def tokenizer_of(source: Source, offline: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    return _fetch(AutoTokenizer, source, offline)


def model_of(source: Source, dtype: torch.dtype, **how: Any) -> PreTrainedModel:
    """The model with its masked or causal language-model head.

    Args:
        source: where it is.
        dtype: of its parameters.
        how: further words of `from_pretrained`, such as `device_map="meta"` to check the weights without reading them.

    Raises:
        UserError: weights are missing, left over or of another shape than the config says.
    """
    config = config_of(source)
    kind = AutoModelForCausalLM if family(config.model_type).causal else AutoModelForMaskedLM
    wanted = {
        "dtype": dtype,
        "use_safetensors": True,
        "attn_implementation": "sdpa",
        "output_loading_info": True,
        **how,
    }
    model, report = _fetch(kind, source, **wanted)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{source.source}: the weights of {missing[0]} are missing ({len(missing)} in all); take a whole model"
        )
    return model


def _fetch(kind: Any, source: Source, offline: bool = False, **how: Any) -> Any:
    """Never more than one request before it is known that the Hub answers; a copy in the Hub's cache needs none."""
    where = place(source.source)
    local = Path(where).is_dir()
    commit, why = (None, "not looked up") if local or offline else _commit(where, source.revision)
    how |= {"revision": commit or source.revision or "main", "local_files_only": commit is None}
    try:
        return kind.from_pretrained(where, trust_remote_code=False, **how)
    except Exception as error:  # what a damaged file or a strange config raises is not documented
        if local:
            raise UserError(f"{where}: not a usable model folder: {_line(error)}") from error
        if commit:
            raise UserError(f"{where}: not a usable model at revision {commit}: {_line(error)}") from error
        raise NotDownloaded(
            f"{where}: no such folder, and not to be had from the Hub ({why}); check the name and the network"
        ) from error


@cache
def _commit(name: str, revision: str | None) -> tuple[str | None, str]:
    """The commit that a revision of a Hub model stands for, one for the whole process, or None and why not."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    if HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    try:
        return HfApi().model_info(name, revision=revision, timeout=PATIENCE).sha, ""
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        return None, _line(error)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[0].split())[:200]
