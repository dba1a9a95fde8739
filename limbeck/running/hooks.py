"""Hooks that tell the user of the steps: how far the training is, and which terms teach nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from limbeck.system.progress import Doing
from limbeck.training.loop import Hook, Record

SILENT = 0.01  # share of the gradient below which a term is named

Tell = Callable[[str], None]


def shows(now: Doing, steps: int, tell: Tell) -> Hook:
    """Shows how far a training of so many steps is, with the loss of each setting; tells the last step."""

    def show(record: Record) -> None:
        now(record.step, steps, in_short(record))
        if record.step == steps:
            tell(str(now))

    return show


def in_short(record: Record) -> str:
    """`logit 1.234  multi skipped  9,876 tokens/s`: means over the seeds that were updated; tokens of all seeds a second."""
    losses, speeds = defaultdict(list), {}
    for row in record.rows:
        losses[row["setting"]] += [] if row["skipped"] else [row["loss"]]
        speeds[row["seed"]] = row["tokens_per_second"]
    speed = len(speeds) / sum(1 / value for value in speeds.values())
    said = [f"{name} {sum(v) / len(v):.3f}" if v else f"{name} skipped" for name, v in losses.items()]
    return f"{'  '.join(said)}  {speed:,.0f} tokens/s"


def silent_terms(tell: Tell) -> Hook:
    """Names each term, once, whose share of the gradient is below 1 % at a probe."""
    named: set[str] = set()

    def name(record: Record) -> None:
        for row in record.rows:
            shares = row["gradient_share"] if record.step > 1 else None  # at first, an average teaches nothing yet
            for term, share in (shares or {}).items():
                who = f"{row['setting']}: the term {term}"
                if share < SILENT and row["weights"][term] and who not in named:
                    named.add(who)
                    tell(
                        f"{who} has {share:.1%} of the gradient at step {record.step}; raise its weight, or set balance"
                    )

    return name
