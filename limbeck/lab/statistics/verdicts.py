"""Verdicts on pairs of settings, from one value per setting and seed.

Settings of one seed share data and initial parameters, so a pair is compared by its differences within seeds: Student's
t-test (1908) on them, and Holm's correction (1979) over all pairs. How documents vary is told beside it and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import chdtri, gammaln, nctdtr, ndtri, stdtr, stdtrit

from limbeck.errors import UserError
from limbeck.recipe.keys import Measure

Word = Literal["better", "worse", "inconclusive"]
POWER = 0.8  # with which `detectable` would have been found
ONE_SEED = "seeds were not varied"
NO_SEED = "the settings have no seed in common"
NO_SPREAD = "the difference is the same in every seed: the seeds did not vary it"


@dataclass(frozen=True)
class Comparison:
    """The second setting against the first, by `compare`. All numbers are None where there is no test.

    seeds: those that both settings have. mean, spread: average and standard deviation (n - 1) of the differences
    second - first, in units of the measure, as are interval (t, for this pair alone) and detectable (the smallest true
    difference that this many seeds with this spread find with 80 % power; None at spread 0, which says nothing of it).
    p: two-sided. effect: Cohen's d_z = mean / spread. hedges: the same without its bias in small samples; None for two
    seeds. word: by this p alone; None for the given reason.
    """

    measure: Measure
    confidence: float
    seeds: tuple[int, ...]
    mean: float | None = None
    spread: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    effect: float | None = None
    hedges: float | None = None
    detectable: float | None = None
    word: Word | None = None
    reason: str = ""

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.seeds)


@dataclass(frozen=True)
class Verdict:
    """The word of the second setting against the first, in the company of all other pairs.

    adjusted: p by Holm, which decides. detectable: as in `Comparison`, at the strictest level that Holm may ask for.
    word: None for the given reason.
    """

    first: str
    second: str
    comparison: Comparison
    adjusted: float | None
    detectable: float | None
    word: Word | None
    reason: str = ""


class Paired(NamedTuple):
    """What `paired_t` finds, each `[...]`."""

    mean: np.ndarray
    spread: np.ndarray  # standard deviation (n - 1)
    error: np.ndarray  # of the mean
    p: np.ndarray  # two-sided


def paired_t(differences: np.ndarray) -> Paired:
    """Student's t-test on differences `[..., n]`, n >= 2, which are not all equal: t = mean / (spread / sqrt n).

    >>> paired_t(np.array([1.0, 2.0, 3.0])).p.round(4).item()
    0.0742
    """
    n = differences.shape[-1]
    mean, spread = differences.mean(-1), differences.std(-1, ddof=1)
    error = spread / math.sqrt(n)
    return Paired(mean, spread, error, 2 * stdtr(n - 1, -np.abs(mean) / error))


def compare(
    first: Mapping[int, float], second: Mapping[int, float], measure: Measure, confidence: float = 0.95
) -> Comparison:
    """Compares two settings over the seeds that both have.

    With d_i = second_i - first_i, i = 1..n: mean d, interval d +- t(n - 1) s / sqrt n, effect d / s. Three cases have no
    spread to test by. One seed: no word. A value that is not finite: no word, for to leave that seed out would favour
    who failed. All d_i equal but for rounding: inconclusive with p = 1 if they are 0, else no word, since equal
    differences are one observation repeated.

    Args:
        first, second: seed -> value, in units of the measure.
        measure: tells which direction is better.
        confidence: of the interval; its complement is the level of the test.

    Raises:
        UserError: confidence is not between 0 and 1.

    Sources: Student 1908, The probable error of a mean; Cohen 1988, Statistical power analysis for the behavioral sciences;
    Hedges 1981, Distribution theory for Glass's estimator of effect size and related estimators.

    >>> from limbeck.recipe.keys import MEASURES
    >>> found = compare({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.5, 1: 2.4, 2: 3.6}, MEASURES["logit_loss"])
    >>> found.word, round(found.mean, 3), [round(end, 3) for end in found.interval]
    ('better', -0.5, [-0.748, -0.252])
    """
    if not 0 < confidence < 1:
        raise UserError(f"confidence {confidence}: give a share between 0 and 1, such as 0.95")
    seeds = tuple(sorted(first.keys() & second.keys()))
    bare = Comparison(measure, confidence, seeds)
    values = np.array([[each[seed] for seed in seeds] for each in (first, second)], dtype=np.float64)
    lost = [seed for seed, pair in zip(seeds, values.T, strict=True) if not np.isfinite(pair).all()]
    if lost:
        return replace(bare, reason=f"no finite value in seeds {', '.join(map(str, lost))}")
    if len(seeds) < 2:
        mean = float(values[1, 0] - values[0, 0]) if seeds else None
        return replace(bare, mean=mean, reason=ONE_SEED if seeds else NO_SEED)
    differences = values[1] - values[0]
    rounding = 4 * np.finfo(np.float64).eps * np.abs(values).max()
    if np.ptp(differences) > rounding:
        return _tested(bare, differences)
    if np.abs(differences).max() > rounding:
        return replace(bare, mean=float(differences.mean()), spread=0.0, reason=NO_SPREAD)
    nothing = {"mean": 0.0, "spread": 0.0, "interval": (0.0, 0.0), "p": 1.0, "effect": 0.0, "hedges": 0.0}
    return replace(bare, **nothing, word="inconclusive")


def _tested(bare: Comparison, differences: np.ndarray) -> Comparison:
    n, confidence = len(differences), bare.confidence
    mean, spread, error, p = (float(number) for number in paired_t(differences))
    half = _quantile(n - 1, confidence) * error
    return replace(
        bare,
        mean=mean,
        spread=spread,
        interval=(mean - half, mean + half),
        p=p,
        effect=mean / spread,
        hedges=hedges_correction(n - 1) * mean / spread if n > 2 else None,
        detectable=detectable_effect(spread, n, confidence),
        word=_word(p, mean, bare),
    )


def _word(p: float, mean: float, comparison: Comparison) -> Word:
    if p >= 1 - comparison.confidence:
        return "inconclusive"
    return "better" if (mean < 0) == comparison.measure.lower_is_better else "worse"


@cache
def _quantile(freedom: int, confidence: float) -> float:
    return float(-stdtrit(freedom, (1 - confidence) / 2))


@cache
def hedges_correction(freedom: int) -> float:
    """What makes Cohen's d unbiased: Gamma(f / 2) / (sqrt(f / 2) Gamma((f - 1) / 2)), f >= 2 degrees of freedom (Hedges 1981).

    >>> round(hedges_correction(2), 4), round(hedges_correction(9), 4)
    (0.5642, 0.9139)
    """
    return float(np.exp(gammaln(freedom / 2) - gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2))


def detectable_effect(spread: float, n: int, confidence: float = 0.95, power: float = POWER) -> float:
    """The smallest true difference that a paired t-test finds, with the right sign, with this power.

    That is c s / sqrt n, where the t of n - 1 degrees and noncentrality c exceeds the critical value with this probability.

    Args:
        spread: standard deviation s of the differences within seeds, in units of the measure.
        n: seeds, at least 2.
        confidence: of the test, two-sided.
        power: above half of 1 - confidence.

    >>> [round(detectable_effect(1.0, n), 2) for n in (2, 3, 5, 10)]
    [11.55, 3.26, 1.68, 1.0]
    """
    return _noncentrality(n - 1, confidence, power) * spread / math.sqrt(n)


@cache
def _noncentrality(freedom: int, confidence: float, power: float) -> float:
    """The c of `detectable_effect`: below a bound at which spread or mean are unlucky with half of 1 - power each."""
    critical, half = _quantile(freedom, confidence), (1 - power) / 2
    bound = critical * math.sqrt(chdtri(freedom, half) / freedom) - float(ndtri(half))
    return root_scalar(lambda shift: 1 - nctdtr(freedom, shift, critical) - power, bracket=(0.0, bound)).root


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: of the k-th smallest of m, the largest (m - j + 1) p_(j) over j <= k, at most 1.

    Whoever calls those below 0.05 different makes any false claim in at most 5 % of studies, however the tests
    depend on each other (Holm 1979, A simple sequentially rejective multiple test procedure).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted.tolist()


def verdicts(
    values: Mapping[str, Mapping[int, float]], measure: Measure, confidence: float = 0.95, against: str | None = None
) -> list[Verdict]:
    """Verdicts on all pairs of settings, in order, or on each against one of them.

    Holm's family is every pair with two seeds or more in common, so that its size does not hang on the numbers: a pair without
    a test counts as p = 1 in it. An interval is of its pair alone, so one that excludes 0 can be inconclusive here.

    Args:
        values: setting -> seed -> value, in units of the measure; nan where there is none.
        measure, confidence: as in `compare`.
        against: a setting, named before the numbers are seen: the pairs are then its own, and the family is smaller. No
            verdict where it has no value.

    >>> seeds = {"a": {0: 2.0, 1: 3.0, 2: 4.0}, "b": {0: 1.5, 1: 2.4, 2: 3.6}, "c": {0: 1.9, 1: 3.0, 2: 4.1}}
    >>> from limbeck.recipe.keys import MEASURES
    >>> for verdict in verdicts(seeds, MEASURES["logit_loss"]):
    ...     print(verdict.second, "against", verdict.first, verdict.word, round(verdict.adjusted, 3))
    b against a better 0.039
    c against a inconclusive 1.0
    c against b worse 0.039
    """
    pairs = [pair for pair in combinations(values, 2) if against is None or against in pair]
    return of_pairs([(a, b) if b != against else (b, a) for a, b in pairs], values, measure, confidence)


def of_pairs(
    pairs: Sequence[tuple[str, str]],
    values: Mapping[str, Mapping[int, float]],
    measure: Measure,
    confidence: float = 0.95,
) -> list[Verdict]:
    """Verdicts on these pairs (first, second) alone, chosen before the numbers are seen; they are Holm's family, as in `verdicts`."""
    compared = {pair: compare(values[pair[0]], values[pair[1]], measure, confidence) for pair in pairs}
    family = {pair: 1.0 if found.p is None else found.p for pair, found in compared.items() if found.n > 1}
    adjusted = dict(zip(family, holm(list(family.values())), strict=True))
    strictest = 1 - (1 - confidence) / max(len(family), 1)
    return [_verdict(pair, found, adjusted.get(pair), strictest) for pair, found in compared.items()]


def _verdict(pair: tuple[str, str], found: Comparison, adjusted: float | None, strictest: float) -> Verdict:
    if found.p is None or found.mean is None or adjusted is None:
        return Verdict(*pair, found, None, None, None, found.reason)
    detectable = detectable_effect(found.spread, found.n, strictest) if found.spread else None
    return Verdict(*pair, found, adjusted, detectable, _word(adjusted, found.mean, found))
