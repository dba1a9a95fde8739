"""The words and the tables of the section on reasons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from limbeck.lab import names
from limbeck.lab.data.reasons import ToldReasons, mean
from limbeck.lab.data.run import Row, RunData
from limbeck.lab.figures.captions import LINES, Caption
from limbeck.lab.numbers import coefficient, count, number, percent

MOST = 45  # pairs that a table shows
NONE = "\u2013"


class Table(NamedTuple):
    """Headings, and lines of text that each begin with a name; and a remark on all of them."""

    headings: list[str]
    lines: list[list[str]]
    remark: str


def introduction(why: ToldReasons) -> str:
    """Where and on how much this was measured."""
    rows = [row for lines in why.learners.values() for row in lines]
    tokens, states = (max(int(row.get(name) or 0) for row in rows) for name in ("tokens", "states"))
    what = "row" if why.run.task else "token"
    steps = sorted({int(row["step"]) for row in rows})
    when = f"step {steps[0]:,}" + (f" to {steps[-1]:,}, the last of each run," if len(steps) > 1 else "")
    said = f"Measured at {when} on {count(tokens, 'fixed ' + what)} that no student was trained on"
    seeds = max(map(len, why.learners.values()))
    over = f" Every number is a mean over {count(seeds, 'seed')}." if seeds > 1 else ""
    return f"{said}; layers are compared by what they hold at {count(states, 'token')}.{over}"


def pulls(run: RunData) -> Table | None:
    """For each setting of several terms: shares of the gradient, and cosines of every two terms, at the last probe."""
    probes = {setting: _probes(run, setting) for setting in run.settings}
    probes = {setting: found for setting, found in probes.items() if any(len(row) > 1 for row, _ in found)}
    if not probes:
        return None
    terms = list(dict.fromkeys(term for found in probes.values() for cosines, _ in found for term in cosines))
    lines = []
    for setting, found in probes.items():
        for one in (term for term in terms if term in found[0][0]):
            share = _average([shares.get(one) for _, shares in found])
            beside = [_average([cosines.get(one, {}).get(other) for cosines, _ in found]) for other in terms]
            cells = [
                NONE if it is None or one == other else _signed(it) for it, other in zip(beside, terms, strict=True)
            ]
            lines.append([setting, one, NONE if share is None else percent(share), *cells])
    remark = (
        "Share: the norm of this term's weighted gradient over the sum of those norms. The other "
        "columns are the cosine between the gradients of two terms: 1, they pull in the same direction; 0, they have "
        "nothing to do with each other; below 0, what helps one hurts the other."
    )
    return Table(["setting", "term", "share", *(f"with {term}" for term in terms)], lines, remark)


def couples(why: ToldReasons) -> Table | None:
    """Every pair of settings of one seed: how far the two went apart, the mean over the seeds."""
    order = why.run.settings
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in why.pairs:
        pair = sorted((why.labels[learner] for learner in row["learners"]), key=order.index)
        found.setdefault(tuple(pair), []).append(row)
    if not found:
        return None
    pairs = [pair for pair in combinations(order, 2) if pair in found]
    lines = [[*pair, *_apart(found[pair])] for pair in pairs[:MOST]]
    said = names.of(why.run)
    headings = ["setting", "and", "same answer", f"symmetric KL{said.of_unit}", "rise of the loss between them"]
    remark = (
        f"Same answer: the share of {'rows' if why.run.task else 'places'} at which both say the same. Rise: the loss on the "
        "straight line between the weights of the two rises by so much above its ends; about 0 means that both lie in "
        "one valley, as only students that began with the same weights can be expected to."
    )
    if len(pairs) > MOST:
        remark += f" The first {MOST} of {len(pairs)} pairs are shown."
    measured = [i for i in range(len(headings)) if i < 2 or any(line[i] != NONE for line in lines)]
    return Table([headings[i] for i in measured], [[line[i] for i in measured] for line in lines], remark)


def caption(name: str, why: ToldReasons) -> Caption:
    """The words around one figure of reasons."""
    loss = names.of(why.run).logit_loss
    title, alt, reading = (part.replace("{logit_loss}", loss) for part in CAPTIONS[name])
    if name == "reasons-cka":
        alt, reading = f"{alt} {_highest(why)}", f"{reading} {_from_start(why)}".strip()
    return Caption(title, alt, reading)


CAPTIONS = {
    "reasons-cka": Caption(
        "What the layers have in common with the teacher's",
        "Heat maps of linear CKA, student layers by teacher layers, one for each setting.",
        "Each cell compares one layer of the student with one of the teacher (linear CKA): 1 means that both hold the "
        "same information, up to rotation and scale. Layer 0 is the embedding. A bright band from the lower left to the "
        "upper right means that the layers of the student follow those of the teacher in order. Unrelated models are not "
        "at 0.",
    ),
    "reasons-rank": Caption(
        "Directions in use, by layer",
        "Line chart of the effective rank against the layer, one line per setting, and the teacher, dashed.",
        LINES
        + "The effective rank says how many directions a layer really uses; it is at most the width of the layer. "
        "A line that falls to a few means that the layer has collapsed. Widths differ, so compare settings with each "
        "other, and with the teacher only the shape.",
    ),
    "reasons-calibration": Caption(
        "How far predictions can be trusted",
        "Reliability diagram: accuracy against confidence, one line per setting, and the teacher, dashed.",
        "Predictions are sorted by their confidence into 15 bins. On the dotted line a model is right as often as it "
        "says; below it, it is too sure of itself; above it, not sure enough. ECE is the mean distance from that line "
        "(expected calibration error); 0 is best. Bins with few predictions are noisy.",
    ),
    "reasons-frequency": Caption(
        "Where the students differ from the teacher: rare tokens and frequent ones",
        "Two line charts against how often a token stands in the training text: agreement and {logit_loss}.",
        LINES + "Tokens are sorted by how often they stand in the training text, each bin reaching to the next number. "
        "Left, the share of places at which student and teacher put the same token first; right, the {logit_loss}, lower "
        "is closer to the teacher. A gap at the left end only means that a setting fails at rare tokens.",
    ),
    "reasons-place": Caption(
        "Where the students differ from the teacher: early and late in a block",
        "Two line charts against the place in the block, in eighths: agreement and {logit_loss}.",
        LINES
        + "Places from the beginning (1) to the end (8) of a block. A student that falls behind towards the end makes "
        "less use of what stands before than its teacher does.",
    ),
}


def _highest(why: ToldReasons) -> str:
    said = []
    for setting, rows in why.learners.items():
        grid = mean(rows, "cka")
        if grid is not None and np.isfinite(grid).any():
            mine, theirs = np.unravel_index(int(np.nanargmax(grid)), grid.shape)
            most = f"highest {coefficient(float(np.nanmax(grid)))} at student layer {mine} and teacher layer {theirs}"
            said.append(f"{setting}: mean {coefficient(float(np.nanmean(grid)))}, {most}.")
    return " ".join(said)


def _from_start(why: ToldReasons) -> str:
    """The mean of the grid at step 0 and now; nothing where step 0 was not measured, or is the last one."""
    said = []
    for setting, rows in why.learners.items():
        then, now = mean(why.before.get(setting, []), "cka"), mean(rows, "cka")
        if then is not None and now is not None and why.step > 0 and np.isfinite(then).any() and np.isfinite(now).any():
            said.append(f"{setting} {coefficient(float(np.nanmean(then)))} and {coefficient(float(np.nanmean(now)))}")
    return f"Mean of all cells at step 0, before any training here, and now: {'; '.join(said)}." if said else ""


def _probes(run: RunData, setting: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Cosines and shares at the last probe of each seed that had one."""
    found = []
    for seed in run.seeds(setting):
        probed = [row for row in run.metrics[setting, seed] if isinstance(row.get("gradient_cosines"), dict)]
        found += [(row["gradient_cosines"], row.get("gradient_share") or {}) for row in probed[-1:]]
    return found


def _apart(rows: Sequence[Row]) -> list[str]:
    agreement, apart = (_average([row.get(name) for row in rows]) for name in ("agreement", "symmetric_kl"))
    lines = [row["barrier"] for row in rows if row.get("barrier")]
    rise = _average([line.get("barrier") for line in lines])
    return [
        NONE if agreement is None else percent(agreement),
        NONE if apart is None else number(apart),
        number(rise) if rise is not None else "not finite" if lines else NONE,
    ]


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212") if abs(value) >= 0.005 else "0.00"
