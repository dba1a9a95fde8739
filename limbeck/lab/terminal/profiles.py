"""A profile as a table in the terminal: quantities down, models across, each with its ratio to the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from limbeck.lab.numbers import amount, latency, size

Facts = dict[str, Any]


def show(profile: Facts) -> None:
    """Prints what `profile.of_sources` found."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column()
    for model in profile["models"]:
        table.add_column(model["name"], justify="right", overflow="fold")
    for line in lines(profile):
        table.add_row(*line)
    console.print(table)
    console.print(remark(profile), style="dim", highlight=False)


def lines(profile: Facts) -> list[list[str]]:
    """A quantity, and what each model has of it; behind a number how many times the first model's it is."""
    found = [
        _line(profile, "parameters", lambda it: it["parameters"], lambda n: f"{n:,}"),
        _line(profile, "without embeddings", lambda it: it["parameters_without_embeddings"], lambda n: f"{n:,}"),
        _line(profile, "MACs, a token", lambda it: it["macs_per_token"], amount),
        _line(profile, f"MACs, a row of {profile['length']}", lambda it: it["macs_per_row"], amount),
        _line(profile, "weights on disk", lambda it: it["bytes_on_disk"], size),
    ]
    for rows in map(str, profile["batches"]):
        found.append(_line(profile, f"peak memory, batch {rows}", lambda it, b=rows: it["peak_memory"][b], size))
        for share in ("p50", "p90", "p99"):
            what = f"latency {share}, batch {rows}"
            found.append(_line(profile, what, lambda it, b=rows, p=share: it["latency"][b][p], latency))
    return found


def _line(profile: Facts, what: str, of: Callable[[Facts], Any], write: Callable[[Any], str]) -> list[str]:
    values = [of(model) for model in profile["models"]]
    texts = [values[0] if values[0] is None else write(values[0])]
    texts += [
        None if value is None else write(value) + (f"  x{value / values[0]:#.3g}".rstrip(".") if values[0] else "")
        for value in values[1:]
    ]
    return [what, *("\u2013" if text is None else text for text in texts)]


def remark(profile: Facts) -> str:
    """How it was measured."""
    threads = f"{profile['threads']} thread" + ("s" if profile["threads"] > 1 else "")
    rows = f"rows of {profile['length']} tokens without padding"
    if profile.get("padded"):
        rows = f"the next held-out rows of the task ({profile['length']} tokens on average), padded to the longest"
    return (
        f"A pass is a whole forward pass over {rows}, with the logits of every position "
        f"(of a causal model: the prefill; of a classifier: of every row). {profile['rounds']} passes of each model, in turn, on "
        f"{profile['device']}, {threads}, {profile['precision']}. Peak memory: the weights, and the tensors that a pass holds at most "
        "at a time. x: as many times the first model's."
    )
