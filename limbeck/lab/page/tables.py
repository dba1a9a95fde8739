"""The numbers behind a report as files: CSV for other programs, Markdown and LaTeX for papers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import printable
from limbeck.lab.data.run import Lines, RunData
from limbeck.lab.page.baselines import of_baselines
from limbeck.lab.page.results import as_markdown, cells, rows, title
from limbeck.lab.page.verdicts import rows_of
from limbeck.lab.statistics.outcomes import of_run
from limbeck.system.files import write_text

FOLDER = "tables"


def write(run: RunData) -> list[Path]:
    """Writes `tables/` beside the report: results, verdicts, every evaluation and every step; returns the files."""
    folder = run.folder / FOLDER
    folder.mkdir(exist_ok=True)
    results = [*rows(run), *of_baselines(run)]
    texts = {
        "results.csv": _csv(_results(results)),
        "results.md": as_markdown(results),
        "results.tex": as_latex(results),
        "verdicts.csv": _csv(_verdicts(run)),
        "evals.csv": _csv(_flat(run.evals.items())),
        "metrics.csv": _csv(_flat([("", run.metrics)])),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def as_latex(results: list[dict[str, Any]]) -> str:
    """A LaTeX table of the results, for `booktabs`: quantities down, settings across."""
    lines = [[title(results), *(row["setting"] for row in results)]]
    lines += [[column.heading, *texts] for column, texts in cells(results)]
    head, *body = [" & ".join(map(_latex, line)) + r" \\" for line in lines]
    inside = "\n".join([r"\toprule", head, r"\midrule", *body, r"\bottomrule"])
    return f"\\begin{{tabular}}{{l{'r' * len(results)}}}\n{inside}\n\\end{{tabular}}\n"


def _latex(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    escaped = "".join(f"\\{c}" if c in "%&_#${}" else named.get(c, c) for c in printable(text))
    return escaped.replace("..", "--").replace("\u2013", "--")


def _csv(table: Iterable[dict[str, Any]]) -> str:
    """Rows as CSV under the union of their words, in the order in which they come."""
    found = list(table)
    words = list(dict.fromkeys(word for row in found for word in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, words, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def _results(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each setting, quantity and seed."""
    return [
        {"quantity": column.heading, "setting": row["setting"], "seed": seed, "value": value}
        for column, _ in cells(results)
        for row in results
        if row[column.key] is not None
        for seed, value in row[column.key].by_seed.items()
    ]


def _verdicts(run: RunData) -> list[dict[str, Any]]:
    """One row for each measure and pair."""
    found = []
    for outcome in of_run(rows_of(run), own_ends=run.own_ends, against=run.against):
        for verdict in outcome.verdicts:
            pair = verdict.comparison
            low, high = pair.interval or (None, None)
            found.append(
                {
                    "measure": outcome.measure.name,
                    "step": outcome.step,
                    "setting": verdict.second,
                    "against": verdict.first,
                    "word": verdict.word,
                    "reason": verdict.reason,
                    "seeds": pair.n,
                    "difference": pair.mean,
                    "low": low,
                    "high": high,
                    "d": pair.effect,
                    "g": pair.hedges,
                    "p": pair.p,
                    "p_holm": verdict.adjusted,
                    "detectable": verdict.detectable,
                }
            )
    return found


def _flat(parts: Iterable[tuple[str, Lines]]) -> list[dict[str, Any]]:
    """Lines as the files have them, tables within them by path, lists as JSON."""
    found = []
    for _, lines in parts:
        for (label, _), each in lines.items():
            found += [{"label": label, **dict(_paths(row))} for row in each]
    return found


def _paths(row: dict[str, Any], place: Sequence[str] = ()) -> Iterable[tuple[str, Any]]:
    for word, value in row.items():
        if isinstance(value, dict):
            yield from _paths(value, (*place, word))
        else:
            yield ".".join((*place, word)), json.dumps(value) if isinstance(value, list) else value
