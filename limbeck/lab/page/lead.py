"""What a comparison of settings found, in the words that the page and the terminal begin with: those of the verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from limbeck.lab.data.run import RunData
from limbeck.lab.names import NamedMeasure, compared
from limbeck.lab.numbers import Spread, count
from limbeck.lab.page.verdicts import detectable, main_outcome, p_value
from limbeck.lab.statistics.outcomes import Outcome
from limbeck.lab.statistics.verdicts import ONE_SEED, Verdict

CLAUSES, NAMED, OPEN = 3, 6, 2  # what a sentence can hold: clauses, settings by name, pairs by name
SEVERAL = "Give the recipe several seeds, such as seeds: [0, 1, 2, 3, 4]."


def lead(run: RunData) -> str:
    """Which setting is better than which, or that there is no verdict and why; "" where nothing is compared.

    Two settings: "multi is better than logit: held-out logit loss 1.612 against 1.921 (3 seeds, p 0.003 after Holm)."
    """
    outcome = main_outcome(run)
    if outcome is None:
        return ""
    measure = compared(run)
    decided = [verdict for verdict in outcome.verdicts if verdict.word in ("better", "worse")]
    said = _decided(outcome, decided, measure) if decided else _undecided(outcome, measure, run.against)
    return " ".join([*said, *lost(outcome.missing, measure)])


def lost(names: Sequence[str], measure: NamedMeasure) -> list[str]:
    """A sentence on the settings whose numbers are not finite, or not defined."""
    return [f"The held-out {measure.name} of {listed(names)} is {measure.write(math.nan)}."] if names else []


def listed(names: Iterable[str]) -> str:
    """a; a and b; a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _decided(outcome: Outcome, decided: Sequence[Verdict], measure: NamedMeasure) -> list[str]:
    """Who is better than whom, what they reached, and which pairs are open."""
    beaten: dict[str, list[str]] = {}
    for verdict in decided:
        pair = (verdict.second, verdict.first)
        winner, loser = pair if verdict.word == "better" else pair[::-1]
        beaten.setdefault(winner, []).append(loser)
    means = _ranked(outcome, measure)
    winners: dict[tuple[str, ...], list[str]] = {}
    for winner in (name for name in means if name in beaten):
        winners.setdefault(tuple(name for name in means if name in beaten[winner]), []).append(winner)
    clauses = [
        f"{_short(who)} {'is' if len(who) == 1 else 'are'} better than {_short(whom)}" for whom, who in winners.items()
    ]
    more = "; the table has the others" if len(clauses) > CLAUSES else ""
    facts = f"({_seeds(decided)}, {_p(decided, most=True)} after Holm)"
    undecided = _open([verdict for verdict in outcome.verdicts if verdict not in decided])
    if len(outcome.values) == 2:
        best, other = means.values()
        return [f"{clauses[0]}: held-out {measure.name} {best} against {other} {facts}."]
    return [f"{'; '.join(clauses[:CLAUSES])}{more}.", f"Held-out {measure.name}: {_each(means)} {facts}.", *undecided]


def _undecided(outcome: Outcome, measure: NamedMeasure, against: str | None) -> list[str]:
    """That no pair has a verdict, what the settings reached, and what the seeds could have shown."""
    means, verdicts = _ranked(outcome, measure), outcome.verdicts
    names = list(outcome.values)
    several = len(names) > 2
    who = f"any two of {listed(names)}" if several else listed(names)
    who = f"any two of the {len(names)} settings" if len(names) > NAMED else who
    who = f"{against} and any other setting" if several and against else who
    reached = _each(means) if several else listed(means[name] for name in names)
    reasons = list(dict.fromkeys(verdict.reason for verdict in verdicts if verdict.reason))
    tested = [verdict for verdict in verdicts if verdict.adjusted is not None]
    facts = [_seeds(verdicts), f"{_p(tested, most=False)} after Holm"] if tested else [_seeds(verdicts), *reasons]
    facts = ["1 seed, which cannot tell a difference from chance"] if reasons == [ONE_SEED] else facts
    found = [f"No verdict between {who}: held-out {measure.name} {reached} ({', '.join(facts)})."]
    span = detectable(verdicts, measure.gap)
    power = f"With {_seeds(verdicts)}, the test finds a true difference of {span} or more with 80 % power."
    return [*found, *([SEVERAL] if reasons == [ONE_SEED] else []), *([power] if span else [])]


def _ranked(outcome: Outcome, measure: NamedMeasure) -> dict[str, str]:
    """Setting -> its mean as written, the best first, and last what is not finite."""
    means = {name: Spread(seeds).mean for name, seeds in outcome.values.items()}
    ranked = sorted(means, key=lambda name: (means[name] != means[name], -measure.better * means[name]))
    return {name: measure.write(means[name]) for name in ranked}


def _short(names: Sequence[str]) -> str:
    """`listed`; of many the first ones."""
    return listed(names if len(names) <= NAMED else [*names[:NAMED], f"{len(names) - NAMED} more"])


def _each(means: Mapping[str, str]) -> str:
    """multi 1.612, logit 1.921; of many the best ones."""
    said = [f"{name} {mean}" for name, mean in means.items()]
    return ", ".join(said[:NAMED]) + (f", and {len(said) - NAMED} more" if len(said) > NAMED else "")


def _seeds(verdicts: Sequence[Verdict]) -> str:
    known = sorted({verdict.comparison.n for verdict in verdicts})
    return count(known[0], "seed") if len(known) == 1 else f"{known[0]} to {count(known[-1], 'seed')}"


def _p(verdicts: Sequence[Verdict], most: bool) -> str:
    """p 0.012, p < 0.001; of several pairs p at most 0.012, or at least."""
    known = sorted(verdict.adjusted for verdict in verdicts if verdict.adjusted is not None)
    low, high = p_value(known[0]), p_value(known[-1])
    if low == high or (most and high.startswith("<")):
        return f"p {high}"
    return f"p at most {high}" if most else f"p at least {low}"


def _open(verdicts: Sequence[Verdict]) -> list[str]:
    """The pairs without a verdict."""
    if not verdicts:
        return []
    if len(verdicts) > OPEN:
        return [f"No verdict on the other {len(verdicts)} pairs."]
    return [f"No verdict between {', nor between '.join(listed([it.first, it.second]) for it in verdicts)}."]
