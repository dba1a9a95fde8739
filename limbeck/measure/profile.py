"""What models cost when they answer: parameters, MACs, memory, latency, measured side by side on this machine.

One pass is a whole forward pass over rows of equal length, without padding: a masked or causal language model gives the logits of
every position (of a causal one this is the prefill), a sequence classifier those of every row.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, PreTrainedModel

from limbeck.models.flops import macs

PERCENTILES = (50, 90, 99)
MOST = 100  # passes that read other rows than those before them
LEAST = 3  # rounds, below which nothing is said of a latency

Facts = dict[str, Any]
Pass = Callable[[], Any]
Tell = Callable[[str], None]
Around = Callable[[], AbstractContextManager[Any]]
Turn = Callable[[int, int], None]  # receives the number of a model, and the rows that it reads now


def measure(
    loaded: Sequence[PreTrainedModel],
    *,
    length: int,
    batches: Sequence[int],
    rounds: int,
    seconds: float = math.inf,
    around: Around = nullcontext,
    lengths: Sequence[Sequence[int]] | None = None,
    tell: Tell = lambda line: None,
    turn: Turn = lambda number, rows: None,
) -> Facts:
    """The profiles of models in memory, in their order.

    Args:
        loaded: in evaluation mode, on one device.
        length, batches, rounds: as in `of_sources`.
        seconds: to be spent in all. Fewer rounds are made where they take longer; of a batch size of which fewer than `LEAST` fit,
            latency and memory are None.
        around: what every pass runs in, such as autocast.
        lengths: of each model the tokens of the rows that its passes read one after another, padded to the longest of a pass;
            then a row has their mean, in place of `length`.
        tell: takes a line before a batch size is begun.
        turn: is called before every pass.
    """
    device = loaded[0].device
    rows_of = lengths or [[length]] * len(loaded)
    length = round(float(np.mean(rows_of[0])))
    found: list[Facts] = [{**size(model, length), "latency": {}, "peak_memory": {}} for model in loaded]
    begin, pace = perf_counter(), 0.0
    for rows in batches:
        tell(f"batch {rows}: {rounds} passes of each model")
        passes = [
            _pass(model, rows, mine, around, partial(turn, number, rows))
            for number, (model, mine) in enumerate(zip(loaded, rows_of, strict=True))
        ]
        left = seconds - (perf_counter() - begin)
        times = latencies(passes, rounds, left, device) if pace * rows * LEAST < left else None
        pace = sum(min(each) for each in times) / rows if times else pace  # seconds of a row of every model
        for number, (model, one) in enumerate(zip(loaded, passes, strict=True)):
            found[number]["latency"][str(rows)] = percentiles(times[number]) if times else None
            found[number]["peak_memory"][str(rows)] = peak_memory(model, one) if times else None
    how = {
        "length": length,
        "padded": lengths is not None,
        "batches": list(batches),
        "rounds": rounds,
        "device": str(device),
    }
    return {**how, "threads": torch.get_num_threads(), "models": found}


def size(model: PreTrainedModel, length: int) -> Facts:
    """Parameters, and multiply-accumulates of a row of `length` tokens and of a token of it (the row's share)."""
    whole = macs(model.config, length)
    tables = [one for one in model.modules() if isinstance(one, nn.Embedding)]
    embedded = {id(one.weight): one.weight.numel() for one in tables}  # a decoder that is tied to one goes with it
    total = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": total,
        "parameters_without_embeddings": total - sum(embedded.values()),
        "macs_per_token": whole / length,
        "macs_per_row": whole,
    }


def on_disk(model: PreTrainedModel) -> int | None:
    """Bytes of the weights in the folder that a model was read from; None of one that is not in a folder, but on the Hub."""
    folder = Path(str(model.name_or_path))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else None


def latencies(
    passes: Sequence[Pass],
    rounds: int,
    seconds: float = math.inf,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> list[list[float]] | None:
    """Seconds of every pass in every round, `[len(passes)][rounds]`; they take turns, so that noise hits all alike.

    A first call of each warms it up and is not counted; by it fewer rounds are made where `rounds` would take more than
    `seconds`, and None is returned where fewer than `LEAST` fit.
    """
    first = sum(_seconds(one, device) for one in passes)
    fit = int(min(rounds, seconds / first))
    if fit < min(LEAST, rounds):
        return None
    return [list(each) for each in zip(*([_seconds(one, device) for one in passes] for _ in range(fit)), strict=True)]


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Of the seconds of some passes, linear between two of them.

    >>> percentiles([1.0, 2.0, 3.0])
    {'p50': 2.0, 'p90': 2.8, 'p99': 2.98}
    """
    return {
        f"p{share}": float(value) for share, value in zip(PERCENTILES, np.percentile(times, PERCENTILES), strict=True)
    }


def peak_memory(model: nn.Module, one: Pass) -> int:
    """Bytes of the parameters and buffers, and of the tensors that a pass holds at most at a time.

    Counted tensor by tensor while the pass runs: what kernels use inside, libraries and the interpreter are not in it.
    """
    mine = {id(each): each for each in (*model.parameters(), *model.buffers())}.values()
    storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in mine}
    with _Held(set(storages)) as held:
        one()
    return sum(storages.values()) + held.most


class _Held(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while they are alive."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.now, self.most = known, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in self.known:
                self._begin(each.untyped_storage())
        return made

    def _begin(self, storage: torch.UntypedStorage) -> None:
        key, count = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += count
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._end, key, count)

    def _end(self, key: int, count: int) -> None:
        self.known.discard(key)
        self.now -= count


def _pass(
    model: PreTrainedModel, rows: int, lengths: Sequence[int], around: Around, turn: Callable[[], None] = lambda: None
) -> Pass:
    """A forward pass over random tokens: each call over the next `rows` rows of these lengths, from the first again at the end."""
    coming = cycle(lengths)
    count = min(MOST, max(1, len(lengths) // rows))
    batches = cycle([tokens(model.config, list(islice(coming, rows)), model.device) for _ in range(count)])

    def go() -> Any:
        turn()
        batch = next(batches)
        with torch.no_grad(), around():
            return model(**batch).logits

    return go


def tokens(config: PretrainedConfig, lengths: Sequence[int], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Random tokens, padded on the right to the longest row."""
    vocabulary, padding = config.vocab_size, config.pad_token_id
    ids = torch.randint(vocabulary, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    seen = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    if padding is not None:
        ids = torch.where(seen, torch.where(ids == padding, (padding + 1) % vocabulary, ids), padding)
    return {"input_ids": ids.to(device), "attention_mask": seen.long().to(device)}


def _seconds(one: Pass, device: torch.device) -> float:
    begin = perf_counter()
    one()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - begin
