"""The verdicts of a run as the page and the terminal show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from limbeck.lab.data.joined import together
from limbeck.lab.data.run import RunData
from limbeck.lab.names import compared, of
from limbeck.lab.numbers import count, number
from limbeck.lab.statistics import documents
from limbeck.lab.statistics.outcomes import Outcome, of_run
from limbeck.lab.statistics.verdicts import Verdict
from limbeck.recipe.keys import MEASURED_BY_TEACHER

FEW = 5  # seeds below which the smallest effect is stated
MOST = 45  # pairs that a table shows


class Judged(NamedTuple):
    """One measure: its name, the verdicts as lines of text, and a sentence on what could have been seen."""

    name: str
    main: bool  # what the settings are compared by
    lines: list[list[str]]  # second, word, first, difference, interval, error over documents, effect, p
    remark: str


HEADINGS = ("setting", "is", "than", "difference", "95 % interval", "s.e. over documents", "effect d", "p (Holm)")


def judged(run: RunData) -> list[Judged]:
    """Every measure with its verdicts, first the one that the settings are compared by; none for a single setting."""
    return [judge(run, each, _is_main(run, each)) for each in _outcomes(run)]


def main_outcome(run: RunData) -> Outcome | None:
    """The verdicts on what the settings are compared by; None where there are none."""
    return next((each for each in _outcomes(run) if _is_main(run, each)), None)


def _outcomes(run: RunData) -> list[Outcome]:
    if len(run.settings) < 2:
        return []
    found = of_run(rows_of(run), own_ends=run.own_ends, against=run.against)
    found = [each for each in found if each.verdicts and _compares(run, each.measure.name)]
    return sorted(found, key=lambda each: not _is_main(run, each))


def _is_main(run: RunData, outcome: Outcome) -> bool:
    return outcome.measure.name == compared(run).key.removeprefix("metrics.")


def _compares(run: RunData, name: str) -> bool:
    """Whether a measure means the same for all settings."""
    return run.shares_teacher or name not in MEASURED_BY_TEACHER


def rows_of(run: RunData) -> list[dict[str, Any]]:
    """The evaluations on held-out text, each of the last stage of its run, which may have another name than that of the next;
    peers, which stand one by one elsewhere, under their setting again."""
    return [
        {**row, **(row.get("metrics") or {}), "setting": together(label, row), "split": "test", "stage": None}
        for (label, _), lines in run.evals.get("test", {}).items()
        for row in lines
    ]


def judge(run: RunData, outcome: Outcome, main: bool) -> Judged:
    """An outcome as it is shown."""
    said = of(run)
    names = {"logit_loss": said.logit_loss, "label_loss": said.label_loss, "label_accuracy": "label accuracy"}
    names |= {metric.key.removeprefix("metrics."): metric.name for metric in said.metrics}
    shown = outcome.verdicts[:MOST]
    remark = _remark(outcome, run.against)
    if len(outcome.verdicts) > MOST:
        remark += f" The first {MOST} of {len(outcome.verdicts)} pairs are shown; tables/verdicts.csv has all."
    name = names.get(outcome.measure.name, outcome.measure.name)
    told = documents.of_settings(run.folder, outcome.step, outcome.measure.name)
    return Judged(f"{name}, {said.test}", main, [_line(it, told) for it in shown], remark)


def _line(verdict: Verdict, told: Mapping[str, documents.Documents]) -> list[str]:
    found = verdict.comparison
    pair = [told[name] for name in (verdict.first, verdict.second) if told.get(name)]
    within = documents.inner_variance(*pair).error if len(pair) == 2 else None
    low, high = found.interval or (None, None)
    return [
        verdict.second,
        verdict.word or "no verdict",
        verdict.first,
        _signed(found.mean),
        "\u2013" if low is None or high is None else f"{_signed(low)} .. {_signed(high)}",
        "\u2013" if within is None else number(within),
        "\u2013" if found.effect is None else f"{found.effect:+.2f}".replace("-", "\u2212"),
        p_value(verdict.adjusted),
    ]


def p_value(value: float | None) -> str:
    """Three places: 0.012, < 0.001; a dash for none."""
    if value is None:
        return "\u2013"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _signed(value: float | None) -> str:
    if value is None:
        return "\u2013"
    return ("+" if value > 0 else "\u2212" if value < 0 else "") + number(abs(value))


def _remark(outcome: Outcome, against: str | None) -> str:
    """What a reader must know: that seeds were not varied, or how small an effect could have been seen."""
    seeds = max(verdict.comparison.n for verdict in outcome.verdicts)
    if seeds < 2:
        return "Seeds were not varied: no verdict. Give the recipe several seeds, such as seeds: [0, 1, 2, 3, 4]."
    reasons = sorted({verdict.reason for verdict in outcome.verdicts if verdict.reason})
    with_it = f", each with {against}" if against else ""
    remark = f"Paired by {count(seeds, 'seed')}; p by Holm over {count(len(outcome.verdicts), 'pair')}{with_it}."
    span = detectable(outcome.verdicts)
    if seeds < FEW and span:
        remark += f" With so few seeds only differences of {span} or more would have been found with 80 % power."
    return " ".join([remark, *(f"{reason[0].upper()}{reason[1:]}." for reason in reasons)])


def detectable(verdicts: Sequence[Verdict], write: Callable[[float], str] = number) -> str:
    """The smallest differences that some pairs could have shown: 0.52, or 0.52 to 0.61; "" where none is known."""
    known = [verdict.detectable for verdict in verdicts if verdict.detectable is not None]
    return " to ".join(dict.fromkeys([write(min(known)), write(max(known))])) if known else ""


def sentences(run: RunData, most: int = 12) -> list[str]:
    """The verdicts on what the settings are compared by, one sentence each, for a terminal."""
    main = next((each for each in judged(run) if each.main), None)
    if main is None:
        return []
    lines = [
        f"  {second} {_is(word)} {first}: {difference} ({interval}), p {p}"
        for second, word, first, difference, interval, _, _, p in main.lines[:most]
    ]
    more = len(main.lines) - most
    return [
        f"verdicts, {main.name}:",
        *lines,
        *([f"  and {more} more pairs, in the report"] if more > 0 else []),
        f"  {main.remark}",
    ]


def _is(word: str) -> str:
    return {"better": "is better than", "worse": "is worse than"}.get(word, f"({word}) against")
