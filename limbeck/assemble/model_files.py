"""What the files of pretrained models say without their weights, read once for all designs of a command."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.models import pretrained
from limbeck.recipe.models import Source


class ModelFiles:
    """Configurations, tokenizers, names and shapes of weights: arms and stages ask for the same ones.

    Args:
        offline: do not ask the Hub.
    """

    def __init__(self, offline: bool = False) -> None:
        self.offline = offline
        self._configs: dict[str, PretrainedConfig] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._models: dict[str, PreTrainedModel] = {}

    def config(self, source: Source) -> PretrainedConfig:
        """The model's configuration, for whoever asks to change."""
        key = source.model_dump_json()
        if key not in self._configs:
            self._configs[key] = pretrained.config_of(source, self.offline)
        return copy.deepcopy(self._configs[key])

    def tokenizer(self, source: Source) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        key = source.model_dump_json()
        if key not in self._tokenizers:
            self._tokenizers[key] = pretrained.tokenizer_of(source, self.offline)
        return self._tokenizers[key]

    def without_weights(self, source: Source, config: PretrainedConfig) -> PreTrainedModel:
        """The model with the names and shapes that are on disk, on the meta device."""
        folder = Path(pretrained.place(source.source))
        found = [(it.name, it.lstat().st_size, it.lstat().st_mtime_ns) for it in sorted(folder.glob("*"))]
        key = str((folder, found, config.to_json_string(use_diff=False)))
        if not found or key not in self._models:
            how: dict[str, Any] = {"offline": self.offline, "config": config, "bare": True, "device_map": "meta"}
            self._models[key] = pretrained.model_of(source, torch.float32, **how)
        return self._models[key]
