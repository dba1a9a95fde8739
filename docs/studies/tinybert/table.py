"""The table of docs/studies/tinybert.md: python docs/studies/tinybert/table.py RUN ... : each setting of each run, its last evaluation."""

import sys
from pathlib import Path

import numpy as np

from limbeck.rundir import EVALS, MANIFEST, METRICS, read_json, read_lines


def spent(folder: Path, setting: str) -> float:
    """Seconds that the students of a setting took alone, those of the stages in the run before included."""
    places = [folder, *sorted((folder / "stages").glob("*"))]
    rows = [row for place in places for row in read_lines(place / METRICS)[0] if row["setting"] == setting]
    return sum(row["seconds"] for row in rows)


if __name__ == "__main__":
    print("| setting (run) | mean | seeds | teacher | minutes a student |\n|---|---|---|---|---|")
    for run in map(Path, sys.argv[1:]):
        rows = [row for row in read_lines(run / EVALS)[0] if row["split"] == "test"]
        metric = next(iter(rows[0]["metrics"]))
        for name in dict.fromkeys(row["setting"] for row in rows):
            mine = [row for row in rows if row["setting"] == name]
            last = [row for row in mine if row["step"] == max(it["step"] for it in mine)]
            scores = [100 * row["metrics"][metric] for row in last]
            theirs = (last[0]["teacher_metrics"] or {}).get(metric)
            each = ", ".join(f"{score:.1f}" for score in scores)
            minutes = spent(run, name) / len(scores) / 60
            taught = "" if theirs is None else f"{100 * theirs:.1f}"
            print(
                f"| {name} ({read_json(run / MANIFEST)['name']}) | {np.mean(scores):.1f} | {each} | {taught} | {minutes:.1f} |"
            )
