"""The lines of docs/studies/schemes.md: python docs/studies/schemes/table.py RUN [RUN ...]

For every setting of every run: perplexity (mean, and each seed), logit loss at the end, compute with all stages before it, and the
logit loss read off a straight line between evaluations where that compute is 1.03e12 and 2.0e12.
"""

import math
import sys
from pathlib import Path

import numpy as np

from limbeck.rundir import EVALS, MANIFEST, METRICS
from limbeck.system.files import read_json, read_lines

BUDGETS = (1.03e12, 2.0e12)


def spent(folder: Path, setting: str) -> dict[int, float]:
    """Step -> the FLOPs of a setting until then, that of the stages before its own included."""
    earlier = sorted(read_json(folder / MANIFEST)["earlier"]) if (folder / "stages").is_dir() else []
    before = sum(max(row["flops"] for row in read_lines(folder / "stages" / name / METRICS)[0]) for name in earlier)
    rows = [row for row in read_lines(folder / METRICS)[0] if row["setting"] == setting]
    return {0: before} | {row["step"]: before + row["flops"] for row in rows}


def line(folder: Path, setting: str) -> str:
    """One line of the table."""
    rows = [row for row in read_lines(folder / EVALS)[0] if (row["setting"], row["split"]) == (setting, "test")]
    steps = sorted({row["step"] for row in rows})
    losses = [float(np.mean([row["logit_loss"] for row in rows if row["step"] == step])) for step in steps]
    flops = [spent(folder, setting)[step] for step in steps]
    ends = [math.exp(row["label_loss"]) for row in rows if row["step"] == steps[-1]]
    at = [f"{np.interp(it, flops, losses):.2f}" if flops[0] <= it <= 1.001 * flops[-1] else "" for it in BUDGETS]
    seeds = ", ".join(f"{value:.1f}" for value in ends)
    told = [
        f"{setting} ({folder.name})",
        f"{np.mean(ends):.1f} ({seeds})",
        f"{losses[-1]:.2f}",
        f"{flops[-1]:.3g}",
        *at,
    ]
    return " | ".join(told)


if __name__ == "__main__":
    for place in map(Path, sys.argv[1:]):
        for name in dict.fromkeys(row["setting"] for row in read_lines(place / EVALS)[0]):
            print(line(place, name))
