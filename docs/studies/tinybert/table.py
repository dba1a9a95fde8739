"""The table of docs/studies/tinybert.md: python docs/studies/tinybert/table.py RUN ... : each setting of each run, its last evaluation.

"trained" is the best evaluation between the first update and the last, each seed's own: without the untrained weights of step 0, and
without the last line, which may be those (`keep: best`). "minutes" are a student's alone, and of the whole run, stages included.
"""

import sys
from pathlib import Path

import numpy as np

from limbeck.lab.data.evaluated import last_rows
from limbeck.rundir import EVALS, MANIFEST, METRICS
from limbeck.system.files import read_json, read_lines


def places(folder: Path) -> list[Path]:
    """A run, and the stages before it."""
    return [folder, *sorted((folder / "stages").glob("*"))]


def spent(folder: Path, setting: str) -> float:
    """Seconds that the students of a setting took alone."""
    rows = [row for place in places(folder) for row in read_lines(place / METRICS)[0] if row["setting"] == setting]
    return sum(row["seconds"] for row in rows)


if __name__ == "__main__":
    print(
        "| setting (run) | mean | seeds | trained | teacher | minutes a student | of the run |\n|---|---|---|---|---|---|---|"
    )
    for run in map(Path, sys.argv[1:]):
        rows = [row for row in read_lines(run / EVALS)[0] if row["split"] == "test"]
        metric = next(iter(rows[0]["metrics"]))
        for name in dict.fromkeys(row["setting"] for row in rows):
            mine = [row for row in rows if row["setting"] == name]
            last = last_rows(mine)
            scores = [100 * row["metrics"][metric] for row in last]
            theirs = (last[0]["teacher_metrics"] or {}).get(metric)
            each = ", ".join(f"{score:.1f}" for score in scores)
            between = {row["seed"]: [] for row in last}
            for row in mine:
                if 0 < row["step"] < last[0]["step"]:
                    between[row["seed"]].append(100 * row["metrics"][metric])
            trained = ", ".join(f"{max(found):.1f}" for found in between.values() if found)
            minutes = spent(run, name) / len(scores) / 60
            taught = "" if theirs is None else f"{100 * theirs:.1f}"
            whole = sum(read_json(place / MANIFEST)["seconds"] for place in places(run)) / 60
            told = f"{name} ({read_json(run / MANIFEST)['name']})"
            print(f"| {told} | {np.mean(scores):.1f} | {each} | {trained} | {taught} | {minutes:.1f} | {whole:.1f} |")
