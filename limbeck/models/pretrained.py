"""Where pretrained models and tokenizers come from: a folder, the Hub at a pinned revision, or the embedded teacher.

Never remote code, never pickle: configurations are JSON, weights are safetensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils import logging

from limbeck.errors import Interrupted, UserError
from limbeck.families import family
from limbeck.recipe.models import Source
from limbeck.system import files, hub
from limbeck.system.files import path_of
from limbeck.system.progress import doing

EMBEDDED = "embedded"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
INDEX = "model.safetensors.index.json"  # of weights in several files


class NotDownloaded(UserError):
    """What is on the Hub and not on this machine, and was not fetched.

    Args:
        message: what a run would say.
        far: what it is -> why the Hub could not be asked for it; None where it has it.
    """

    def __init__(self, message: str, far: Mapping[str, str | None] | None = None) -> None:
        super().__init__(message)
        self.far = far or {}


def place(source: str) -> str:
    """The folder or Hub id that a recipe means.

    Raises:
        UserError: it is neither.
    """
    if source == EMBEDDED:
        return str(resources.files("limbeck") / "data" / "embedded")
    try:
        folder = path_of(source)
        if folder.is_dir():
            return str(folder)
        there = folder.exists()
    except OSError as error:
        raise UserError(f"{source}: cannot be looked at ({error.strerror}); give a folder that can be read") from None
    if not HUB_ID.fullmatch(source) or there:
        raise UserError(
            f"{source}: no such model folder; give a folder, 'embedded', or a Hub id such as google-bert/bert-base-uncased"
        )
    return source


def files_of(sources: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Folder of every model that is on this disk -> its files of weights, as `rundir.identity` says them."""
    folders = {source: path_of(source) for source in sources}
    return {
        source: {path.name: files.identity(path) for path in sorted(folder.glob("*.safetensors"))}
        for source, folder in folders.items()
        if folder.is_dir()
    }


def config_of(source: Source, offline: bool = False) -> PretrainedConfig:
    """The model's configuration; `problem_type` says what a sequence classifier predicts, and is None for any other."""
    config = _fetch(AutoConfig, source, offline)
    _require_sizes(config, source.source)
    one = "regression" if config.num_labels == 1 else "single_label_classification"
    config.problem_type = (config.problem_type or one) if has_task(config) else None
    return config


def _require_sizes(config: PretrainedConfig, source: str) -> None:
    """Whether a config says sizes from which a model can be made; what is absurd would take all time and memory.

    Raises:
        UserError: a size is none.
    """
    row = family(config.model_type)
    most = dict.fromkeys((row.width, row.n_heads, "max_position_embeddings", "type_vocab_size"), 10**6)
    most |= {"vocab_size": 10**7, row.n_layers: 1000}
    for word, bound in most.items():
        size = getattr(config, word, 1)
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= bound:
            raise UserError(
                f"{source}: {word} of config.json is {size!r:.40}, and no size from 1 to {bound:,}; mend it"
            )


def tokenizer_of(source: Source, offline: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        UserError: there is none.
    """
    tokenizer = _fetch(AutoTokenizer, source, offline)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(f"{source.source}: there is no tokenizer; put its tokenizer.json there")
    return tokenizer


def kind_of(config: PretrainedConfig) -> Any:
    """The class of transformers that a model of this config is: a sequence classifier where it has a task."""
    if config.problem_type:
        return AutoModelForSequenceClassification
    return AutoModelForCausalLM if family(config.model_type).causal else AutoModelForMaskedLM


def has_task(config: PretrainedConfig) -> bool:
    """Whether the weights that come with a config are those of a sequence classifier."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ())


def is_bare(config: PretrainedConfig) -> bool:
    """Whether the weights that come with a config are those of a model without a head, such as a `BertModel`."""
    return config.architectures == [MODEL_MAPPING_NAMES.get(config.model_type)]


def model_of(
    source: Source,
    dtype: torch.dtype,
    offline: bool = False,
    config: PretrainedConfig | None = None,
    bare: bool = False,
    **how: Any,
) -> PreTrainedModel:
    """The model with the head that it comes with: of a language model, or of a sequence classifier.

    Args:
        source: where it is.
        dtype: of its parameters.
        offline: do not ask the Hub.
        config: its configuration, where it is known.
        bare: whether its head may be missing, as where only its states are read; it is zeros then.
        how: further arguments of `from_pretrained`, such as `device_map="meta"` to check the weights without reading them.

    Raises:
        UserError: weights are missing, left over or of another shape than the config says.
    """
    config = config or config_of(source, offline)
    _require_weights(Path(place(source.source)))
    row, kind = family(config.model_type), kind_of(config)
    how |= {"dtype": dtype, "use_safetensors": True, "attn_implementation": "sdpa", "config": config}
    model, report = _fetch(kind, source, offline, output_loading_info=True, ignore_mismatched_sizes=True, **how)
    for name, there, here in sorted(report["mismatched_keys"]):
        raise UserError(
            f"{source.source}: the weights of {name} are {tuple(there)}, but {tuple(here)} by the config; mend the config"
        )
    missing = sorted(report["missing_keys"])
    if bare and is_bare(config):
        head = {name for name in missing if not name.startswith(f"{row.base}.")}
        _without_head(model, head)
        missing = [name for name in missing if name not in head]
    if missing:
        saved = (config.architectures or [""])[0]
        whole = f"it was saved as {saved}, without a head; take the model that predicts"
        whole = whole if is_bare(config) else "take a whole model"
        raise UserError(f"{source.source}: the weights of {missing[0]} are missing ({len(missing)} in all); {whole}")
    surplus = [name for name in sorted(report["unexpected_keys"]) if f"{row.base}.{row.layers}." in name]
    if surplus:
        raise UserError(f"{source.source}: the config has no place for the weights of {surplus[0]}; mend the config")
    return model


@torch.no_grad()
def _without_head(model: PreTrainedModel, names: Collection[str]) -> None:
    """Zeros for what no file gave: the same in every process and at every start."""
    for name, parameter in model.named_parameters():
        if name in names and not parameter.is_meta:
            parameter.zero_()


def _require_weights(folder: Path) -> None:
    """Whether a folder has weights that are safe to read.

    Raises:
        UserError: it has none but pickles, or is what another model is made from.
    """
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: an adapter, no whole model; merge it into its model, and give that")
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        for kind in PICKLES:
            for found in folder.glob(kind):
                raise UserError(
                    f"{found}: no file named model.safetensors, and pickles are never read; save the model anew with "
                    "save_pretrained"
                )


def _require_inside(folder: Path) -> None:
    """Whether everything that a model folder names lies in it; the Hub's own cache links to its blobs.

    Raises:
        UserError: a link or an index leads out of the folder.
    """
    root = folder.resolve()
    root = root.parents[1] if root.parent.name == "snapshots" else root
    for found in sorted(folder.iterdir()):
        target = Path(os.path.realpath(found))  # of a link to itself, that
        if found.is_symlink() and not target.is_relative_to(root):
            raise UserError(f"{found}: leads out of its folder, to {target}; copy the file into the folder")
    try:
        shards = json.loads((folder / INDEX).read_bytes())["weight_map"].values()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # there is none, or one that the reader of the weights refuses
    for name in shards:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{folder / INDEX}: {name!r:.80} is no file of the folder; mend the index")


def _fetch(kind: Any, source: Source, offline: bool = False, **how: Any) -> Any:
    """Never more than one request before it is known that the Hub answers.

    Raises:
        UserError: it is no usable model, or the Hub has none of that name.
        NotDownloaded: the Hub does not answer, or is only asked whether it has it (`offline`).
    """
    where = place(source.source)
    local = Path(where).is_dir()
    if local:
        _require_inside(Path(where))
    commit = None if local or offline else hub.model(where, source.revision).commit
    how |= {"revision": commit or source.revision or "main", "local_files_only": commit is None}
    try:
        with quiet(), doing(f"loading {source.source}"):
            return kind.from_pretrained(where, trust_remote_code=False, **how)
    except Interrupted:
        raise
    except Exception as error:  # what a damaged file or a strange config raises is not documented
        if local or commit:
            what = "folder" if local else f"at revision {commit}"
            raise UserError(
                f"{where}: not a usable model {what}: {hub.sentence(error)}; it needs the config.json of a known family, tokenizer.json and model.safetensors"
            ) from error
        answer = hub.model(where, source.revision)
        message = (
            f"{where}: no such folder, and not to be had from the Hub ({answer.why}); check the name and the network"
        )
        raise (
            UserError(message) if answer.final else NotDownloaded(message, {source.source: answer.why or None})
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's own words: what is wrong is said in one line."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
