"""What settings and their teachers cost: when they answer (profile.json), and to train (metrics.jsonl)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from limbeck.lab.data.joined import Joined, called
from limbeck.lab.data.run import RunData
from limbeck.lab.numbers import amount, duration, latency, size
from limbeck.lab.page.results import cost
from limbeck.rundir import PROFILE
from limbeck.system.files import read_json

Facts = Mapping[str, Any]
NONE = "\u2013"


class Cost(NamedTuple):
    """A table as texts, one line for each model, and how it was measured."""

    headings: list[str]
    lines: list[list[str]]
    remark: str


class _Models(NamedTuple):
    """What is known of the models of a run: of its settings, of its teachers, and how it was measured."""

    settings: dict[str, Facts]
    teachers: dict[str, Facts]
    how: Facts


def of_run(run: RunData) -> Cost:
    """The cost of every setting, and of every teacher; what was not measured is a dash.

    Parameters, MACs, latency and memory are of the first seed's student: those of other seeds are alike in it.
    Tokens a second and time are of the training of a setting alone, the mean over its seeds.
    """
    models = _models(run)
    batches = [str(rows) for rows in models.how.get("batches", [])]
    headings = ["model", "parameters", "without embeddings", "MACs a token"]
    headings += [f"latency, batch {rows}" for rows in batches]
    headings += [f"peak memory, batch {rows}" for rows in batches]
    headings += ["training tokens/s", "training time"]
    lines = [[name, *_model(facts, batches), NONE, NONE] for name, facts in models.teachers.items()]
    lines += [[it, *_model(models.settings.get(it, {}), batches), *_training(run, it)] for it in run.settings]
    return Cost(headings, lines, _remark(models.how))


def _model(facts: Facts, batches: list[str]) -> list[str]:
    def said(value: Any, write: Any) -> str:
        return NONE if value is None else write(value)

    latencies = [(facts.get("latency") or {}).get(rows) or {} for rows in batches]
    memory = [(facts.get("peak_memory") or {}).get(rows) for rows in batches]
    return [
        said(facts.get("parameters"), lambda count: f"{count:,}"),
        said(facts.get("parameters_without_embeddings"), lambda count: f"{count:,}"),
        said(facts.get("macs_per_token"), amount),
        *(said(each.get("p50"), latency) for each in latencies),
        *(said(each, size) for each in memory),
    ]


def _training(run: RunData, setting: str) -> list[str]:
    """Tokens a second and seconds, each the mean over the seeds."""
    tokens, seconds = [], []
    for seed in run.seeds(setting):
        last, spent = run.metrics[setting, seed][-1], cost(run, setting, seed, "seconds")
        seconds.append(math.nan if spent is None else float(spent[1][-1]))
        tokens.append(math.nan if last.get("tokens") is None else last["tokens"])
    rate, mean = sum(tokens) / (sum(seconds) or math.nan), sum(seconds) / len(seconds)
    return [f"{rate:,.0f}" if math.isfinite(rate) else NONE, duration(mean) if math.isfinite(mean) else NONE]


def _remark(how: Facts) -> str:
    said = (
        "Training is that of the setting alone, its own share of each step and the teacher's, the mean over the seeds."
    )
    if not how:
        return f"{said} The run has no {PROFILE}: latency and memory were not measured."
    threads = how["threads"]
    return (
        f"Latency: the median of a forward pass over rows of {how['length']} tokens, with the logits of every position (of a "
        f"classifier of every row), models in turn, on {how['device']} with {threads} thread{'s' if threads != 1 else ''}, "
        f"{how['precision']}; a dash where there was no time for it. Students of one shape were measured once. Peak memory: the "
        f"weights, and the tensors that such a pass holds at most. {PROFILE} has more. {said}"
    )


def _models(run: RunData) -> _Models:
    """Those of a run directory, or of all that were joined; a teacher of several is told once."""
    if isinstance(run, Joined):
        parts = [(part, _models(part.run)) for part in run.parts]
        settings = {called(it, part.shown): facts for part, found in parts for it, facts in found.settings.items()}
        teachers = {name: facts for _, found in reversed(parts) for name, facts in found.teachers.items()}
        return _Models(settings, teachers, next((found.how for _, found in parts if found.how), {}))
    path = run.folder / PROFILE
    told = read_json(path) if path.is_file() else {}
    counts = run.manifest.get("students") or {}
    settings = {}
    for (label, _), rows in run.metrics.items():
        mine = [it for it in told.get("models", []) if rows[0]["setting"] in it["settings"]]
        settings.setdefault(label, mine[0] if mine else counts.get(rows[0]["learner"], {}))
    known = [run.manifest.get("teacher"), *(run.manifest.get("teachers") or [])]
    teachers = {str(it.get("name") or "teacher"): it for it in known if it}
    measured = {it["name"]: it for it in told.get("models", []) if not it["settings"]}
    return _Models(settings, measured or teachers, {key: it for key, it in told.items() if key != "models"})
