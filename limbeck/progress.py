"""Progress on standard error: a bar on a terminal, elsewhere one plain line every few seconds."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from limbeck.engine import Hook, Record
from limbeck.errors import printable

EVERY = 5.0  # seconds between plain lines


def tell(line: str) -> None:
    """One line of log."""
    print(printable(line), file=sys.stderr, flush=True)


@contextmanager
def shown(steps: int, start: int, quiet: bool = False) -> Iterator[Hook]:
    """A hook that shows step, loss of each setting, tokens/s and time left."""
    if quiet:
        yield lambda record: None
    elif sys.stderr.isatty():
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=steps, completed=start, now="")
            yield lambda record: bar.update(task, completed=record.step, now=_now(record))
    else:
        yield _plain(steps, start)


def _plain(steps: int, start: int) -> Hook:
    begin = last = monotonic()

    def line(record: Record) -> None:
        nonlocal last
        now = monotonic()
        if now - last < EVERY and record.step < steps:
            return
        last = now
        left = (now - begin) / (record.step - start) * (steps - record.step)
        tell(f"step {record.step}/{steps}  {_now(record)}  {_clock(left)} left")

    return line


def _now(record: Record) -> str:
    """`logit 1.234  multi skipped  9,876 tokens/s`: means over the seeds that were updated; tokens of all seeds a second."""
    losses, speeds = defaultdict(list), {}
    for row in record.rows:
        losses[row["setting"]] += [] if row["skipped"] else [row["loss"]]
        speeds[row["seed"]] = row["tokens_per_second"]
    speed = len(speeds) / sum(1 / value for value in speeds.values())
    said = [f"{name} {sum(v) / len(v):.3f}" if v else f"{name} skipped" for name, v in losses.items()]
    return f"{'  '.join(said)}  {speed:,.0f} tokens/s"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
