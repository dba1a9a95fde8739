"""Verdicts: the words are calibrated, the numbers are those of scipy and of closed forms."""

from __future__ import annotations

import json
import math
from itertools import chain, combinations

import numpy as np
import pytest
from scipy import stats

from limbeck.errors import UserError
from limbeck.lab.statistics.documents import documents_of, inner_variance
from limbeck.lab.statistics.outcomes import of_run
from limbeck.lab.statistics.verdicts import (
    compare,
    detectable_effect,
    hedges_correction,
    holm,
    paired_t,
    verdicts,
)
from limbeck.measure.evaluation import SUMS, document_rows
from limbeck.recipe.keys import MEASURES, METRICS

LOSS, SCORE = MEASURES["logit_loss"], MEASURES["f1"]
NOISES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy": lambda rng, shape: rng.standard_t(5, size=shape),
    "skewed": lambda rng, shape: rng.lognormal(size=shape),
}
PAIR = np.array([[2.31, 2.44, 2.29, 2.50, 2.40], [2.25, 2.41, 2.20, 2.41, 2.38]])


def by_seed(row) -> dict[int, float]:
    return dict(enumerate(map(float, row)))


def studies(noise: str, count: int, settings: int, seeds: int) -> np.ndarray:
    """Settings that do not differ, `[count, settings, seeds]`: what a seed does to all of them, and noise of their own."""
    rng = np.random.default_rng([seeds, settings, len(noise)])
    return 3 * rng.normal(size=(count, 1, seeds)) + NOISES[noise](rng, (count, settings, seeds))


# Calibration


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("noise", NOISES)
def test_settings_that_do_not_differ_are_inconclusive(noise, seeds):
    words = [compare(by_seed(a), by_seed(b), LOSS).word for a, b in studies(noise, 4000, 2, seeds)]
    assert words.count("inconclusive") >= 0.93 * len(words)
    if noise == "normal":
        assert words.count("inconclusive") == pytest.approx(0.95 * len(words), abs=0.012 * len(words))
    assert abs(words.count("better") - words.count("worse")) < 3.5 * math.sqrt(len(words) - words.count("inconclusive"))


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("shift", [0.0, 50.0], ids=["all alike", "one apart"])
def test_a_study_of_four_settings_makes_any_false_claim_in_one_of_twenty(seeds, shift):
    count, claims = 2500, 0
    for table in studies("normal", count, 4, seeds):
        table[3] += shift
        found = verdicts({name: by_seed(row) for name, row in zip("abcd", table, strict=True)}, LOSS)
        alike = found if shift == 0 else [verdict for verdict in found if verdict.second != "d"]
        claims += any(verdict.word != "inconclusive" for verdict in alike)
    assert 0.01 < claims / count <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)


def test_effects_of_four_standard_errors_are_found_with_ten_seeds():
    tables = studies("normal", 3000, 2, 10)
    tables[:, 1] -= 4 * math.sqrt(2 / 10)  # the difference of two unit noises, over ten seeds
    words = [compare(by_seed(a), by_seed(b), LOSS).word for a, b in tables]
    assert words.count("better") >= 0.8 * len(words)
    assert words.count("worse") == 0


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("confidence", [0.95, 1 - 0.05 / 6])
def test_the_detectable_effect_is_found_four_times_in_five(seeds, confidence):
    effect = detectable_effect(0.3, seeds, confidence)
    differences = np.random.default_rng(seeds).normal(effect, 0.3, size=(40_000, seeds))
    found = paired_t(differences)
    assert np.mean((found.p < 1 - confidence) & (found.mean > 0)) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_interval_covers_the_truth(seeds):
    differences = np.random.default_rng(seeds).normal(1.0, 0.2, size=(6000, seeds))
    intervals = np.array([compare(by_seed(0 * d), by_seed(d), LOSS).interval for d in differences])
    assert np.mean((intervals[:, 0] < 1) & (intervals[:, 1] > 1)) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("seeds", [4, 5, 10])
def test_hedges_takes_the_bias_from_the_effect(seeds):
    found = paired_t(np.random.default_rng(seeds).normal(0.8, 1.0, size=(200_000, seeds)))
    raw = np.mean(found.mean / found.spread)
    assert raw > 0.85
    assert raw * hedges_correction(seeds - 1) == pytest.approx(0.8, abs=0.01)


# One comparison


def test_a_comparison_is_the_paired_t_test_of_scipy():
    first, second = PAIR
    found, theirs = compare(by_seed(first), by_seed(second), LOSS), stats.ttest_rel(second, first)
    differences = second - first
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-12)
    assert (found.n, found.seeds) == (5, (0, 1, 2, 3, 4))
    assert found.mean == pytest.approx(differences.mean())
    assert found.spread == pytest.approx(stats.tstd(differences))
    assert found.effect == pytest.approx(differences.mean() / stats.tstd(differences))
    assert found.hedges == pytest.approx(found.effect * (1 - 3 / (4 * 4 - 1)), rel=6e-3)  # the usual approximation
    wide = compare(by_seed(first), by_seed(second), LOSS, confidence=0.999)
    assert wide.interval == pytest.approx(tuple(theirs.confidence_interval(0.999)), rel=1e-12)
    assert (found.word, wide.word) == ("better", "inconclusive")


def test_two_seeds_by_hand():
    # One degree of freedom is the Cauchy distribution: p = 1 - 2 atan(t) / pi with t = 3 / (sqrt 2 / sqrt 2)
    found = compare({0: 0.0, 1: 0.0}, {0: 2.0, 1: 4.0}, LOSS)
    assert found.p == pytest.approx(1 - 2 * math.atan(3) / math.pi)
    half = math.tan(math.pi * 0.95 / 2)
    assert found.interval == pytest.approx((3 - half, 3 + half))
    assert (found.word, found.hedges) == ("inconclusive", None)


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 10, 30, 200])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 1 - 0.05 / 190])
def test_the_detectable_effect_against_an_integral(seeds, confidence):
    effect = detectable_effect(2.0, seeds, confidence)
    quantiles = (np.arange(100_000) + 0.5) / 100_000
    spreads = np.sqrt(stats.chi2.ppf(quantiles, seeds - 1) / (seeds - 1))
    critical = stats.t.isf((1 - confidence) / 2, seeds - 1)
    power = stats.norm.sf(critical * spreads - effect / 2.0 * math.sqrt(seeds)).mean()
    assert power == pytest.approx(0.8, abs=1e-4)


def test_seeds_pair_by_number_and_their_order_is_nothing():
    first, second = map(by_seed, PAIR)
    found = compare(first, second, LOSS)
    assert compare(dict(reversed(first.items())), second, LOSS) == found
    renamed = compare({7 - s: v for s, v in first.items()}, {7 - s: v for s, v in second.items()}, LOSS)
    assert (renamed.p, renamed.interval) == (pytest.approx(found.p), pytest.approx(found.interval))
    assert compare({9: 1.0} | first, {8: 5.0} | second, LOSS) == found
    shuffled = {seed: PAIR[1][(seed + 2) % 5] for seed in first}
    assert compare(first, shuffled, LOSS).p > 10 * found.p


def test_swapping_the_settings_swaps_the_word():
    first, second = map(by_seed, PAIR)
    there, back = compare(first, second, LOSS), compare(second, first, LOSS)
    assert (there.word, back.word, there.p, there.mean) == ("better", "worse", back.p, -back.mean)
    assert back.interval == (-there.interval[1], -there.interval[0])
    assert (compare(first, second, SCORE).word, compare(second, first, SCORE).word) == ("worse", "better")


@pytest.mark.parametrize("scale", [1e-8, 1000.0, 3e12])
def test_the_unit_scales_the_interval_and_not_the_word(scale):
    one, other = (compare(by_seed(PAIR[0] * by), by_seed(PAIR[1] * by), LOSS) for by in (1.0, scale))
    assert (other.word, other.p, other.effect) == (one.word, pytest.approx(one.p), pytest.approx(one.effect))
    assert other.interval == pytest.approx([end * scale for end in one.interval])
    assert other.detectable == pytest.approx(one.detectable * scale)


# What has no spread


def test_one_seed_gives_no_verdict():
    found = compare({0: 2.0}, {0: 1.0, 1: 5.0}, LOSS)
    assert (found.word, found.reason, found.mean, found.p) == (None, "seeds were not varied", -1.0, None)
    apart = compare({0: 2.0}, {1: 5.0}, LOSS)
    assert (apart.word, apart.n, apart.mean) == (None, 0, None)
    assert "no seed in common" in apart.reason


def test_identical_settings_are_inconclusive():
    found = compare(by_seed(PAIR[0]), by_seed(PAIR[0]), LOSS)
    assert (found.word, found.effect, found.p, found.interval) == ("inconclusive", 0.0, 1.0, (0.0, 0.0))
    assert found.detectable is None
    (verdict,) = verdicts({"a": by_seed(PAIR[0]), "b": by_seed(PAIR[0])}, LOSS)
    assert (verdict.word, verdict.adjusted) == ("inconclusive", 1.0)


def test_one_difference_repeated_is_one_observation():
    first = by_seed(PAIR[0])
    second = {seed: value - 0.3 for seed, value in first.items()}
    assert len({second[seed] - first[seed] for seed in first}) > 1  # equal but for rounding
    found = compare(first, second, LOSS)
    assert (found.word, found.p, found.spread, found.mean) == (None, None, 0.0, pytest.approx(-0.3))
    assert "same in every seed" in found.reason
    (verdict,) = verdicts({"a": first, "b": second}, LOSS)
    assert (verdict.word, verdict.reason, verdict.adjusted) == (None, found.reason, None)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_seed_that_failed_is_not_left_out(lost):
    found = compare(by_seed(PAIR[0]), by_seed(PAIR[1]) | {2: lost, 4: lost}, LOSS)
    assert (found.word, found.p, found.reason) == (None, None, "no finite value in seeds 2, 4")


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_is_a_share(confidence):
    with pytest.raises(UserError, match="between 0 and 1"):
        compare({0: 1.0}, {0: 1.0}, LOSS, confidence)


# Holm, and all pairs


def test_holm_is_the_closed_test_of_bonferroni():
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 6):
        for _ in range(50):
            p = (rng.uniform(size=size) ** 3).round(3)  # some ties
            every = list(chain.from_iterable(combinations(range(size), n) for n in range(1, size + 1)))
            rejected_last = [max(min(1, len(s) * p[list(s)].min()) for s in every if i in s) for i in range(size)]
            assert holm(p.tolist()) == pytest.approx(rejected_last)
    assert holm([]) == []


def test_holm_steps_down():
    p = [0.011, 0.02, 0.04, 0.013]
    rejected, left = set(), sorted(range(4), key=p.__getitem__)
    while left and p[left[0]] < 0.05 / len(left):
        rejected.add(left.pop(0))
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted < 0.05} == rejected == {0, 1, 2, 3}.difference(left)
    assert rejected == {0, 3, 1, 2}


def test_verdicts_are_of_all_pairs_in_order_and_holm_decides():
    rng = np.random.default_rng(2)
    values = {name: by_seed(0.1 * rng.normal(size=4) + mean) for name, mean in zip("pqr", (0, 0.3, 5), strict=True)}
    found = verdicts(values, SCORE)
    assert [(v.first, v.second) for v in found] == [("p", "q"), ("p", "r"), ("q", "r")]
    assert [v.adjusted for v in found] == holm([v.comparison.p for v in found])
    assert [v.word for v in found[1:]] == ["better", "better"]
    for verdict in found:
        level = 1 - 0.05 / 3
        assert verdict.detectable == pytest.approx(detectable_effect(verdict.comparison.spread, 4, level))
        assert verdict.detectable > verdict.comparison.detectable > 0
    turned = verdicts(dict(reversed(values.items())), SCORE)
    assert [v.word for v in turned][:2] == ["worse", "worse"]


def test_a_pair_can_be_better_alone_and_inconclusive_in_company():
    alone = {"a": by_seed(PAIR[0]), "b": by_seed(PAIR[1])}
    assert verdicts(alone, LOSS)[0].word == compare(*alone.values(), LOSS).word == "better"
    company = {
        f"c{n}": by_seed(PAIR[0] + noise) for n, noise in enumerate(np.random.default_rng(0).normal(size=(4, 5)))
    }
    crowd = verdicts(alone | company, LOSS)[0]
    assert (crowd.comparison.word, crowd.word) == ("better", "inconclusive")
    assert crowd.adjusted == pytest.approx(15 * crowd.comparison.p)


def test_the_family_is_every_pair_with_seeds_whatever_its_numbers():
    values = {
        "a": by_seed(PAIR[0]),
        "b": by_seed(PAIR[1]),
        "lost": by_seed(PAIR[1]) | {0: math.nan},
        "single": {0: 1.0},
    }
    found = {(v.first, v.second): v for v in verdicts(values, LOSS)}
    assert found["a", "b"].adjusted == pytest.approx(3 * found["a", "b"].comparison.p)
    assert found["a", "lost"].reason == "no finite value in seeds 0"
    assert found["a", "single"].reason == "seeds were not varied"
    assert [v.word for pair, v in found.items() if {"lost", "single"} & set(pair)] == [None] * 5
    assert verdicts({"alone": by_seed(PAIR[0])}, LOSS) == []


# Documents


def documents(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and two settings' loss sums of documents, which are hard or easy for both."""
    tokens = rng.lognormal(4, 1, count).round() + 1
    hard = rng.normal(3, 1, count) + 0.3 * np.log(tokens)
    return tokens, *(tokens * (hard + shift + 0.2 * rng.normal(size=count)) for shift in (0, -0.05))


def test_inner_variation_against_a_bootstrap_over_documents():
    rng = np.random.default_rng(3)
    tokens, first, second = documents(rng, 400)
    drawn = rng.multinomial(400, np.full(400, 1 / 400), size=8000).astype(float)
    means = [drawn @ sums / (drawn @ tokens) for sums in (first, second)]
    tables = [dict(enumerate(zip(sums, tokens, strict=True))) for sums in (first, second)]
    one, pair = inner_variance(tables[0]), inner_variance(*tables)
    assert one.mean == pytest.approx(first.sum() / tokens.sum())
    assert one.error == pytest.approx(means[0].std(), rel=0.1)
    assert pair.mean == pytest.approx((second - first).sum() / tokens.sum())
    assert pair.error == pytest.approx((means[1] - means[0]).std(), rel=0.1)
    assert pair.error < one.error / 2  # what is hard for both cancels


def test_documents_of_one_length_have_the_error_of_a_mean():
    sums = np.array([3.0, 5.0, 4.0, 9.0])
    inner = inner_variance({n: (x, 2.0) for n, x in enumerate(sums)})
    assert inner.error == pytest.approx(stats.sem(sums / 2))
    assert inner.documents == 4
    same = {n: (float(x), 2.0) for n, x in enumerate(sums)}
    assert inner_variance(same, dict(reversed(same.items()))).error == 0
    assert inner_variance({0: (4.0, 2.0)}).error is None


def test_a_pair_must_have_the_same_documents():
    with pytest.raises(UserError, match="different documents"):
        inner_variance({0: (1.0, 1.0)}, {1: (1.0, 1.0)})


def test_documents_are_read_from_the_rows_of_an_evaluation():
    rows = document_rows({4: np.array([3.0, 6.0, 2.0, 1.0, 0.7, 1.0]), 2: np.array([1.0, 5.0, 1.0, 0.0, 0.0, 0.0])})
    assert documents_of(rows, MEASURES["logit_loss"]) == {2: (5.0, 1.0), 4: (6.0, 3.0)}
    assert documents_of(rows, MEASURES["label_loss"]) == {4: (0.7, 1.0)}  # the other has no label
    assert documents_of([*rows, *rows], MEASURES["agreement"]) == {2: (2.0, 2.0), 4: (4.0, 6.0)}


# Runs


def test_every_number_of_an_evaluation_has_a_measure():
    losses = [name for name in SUMS if name not in ("tokens", "labels")]
    assert set(MEASURES) == {*losses, *chain.from_iterable(METRICS.values())}
    assert {name for name, measure in MEASURES.items() if measure.lower_is_better} == {"logit_loss", "label_loss"}
    assert all(name == measure.name for name, measure in MEASURES.items())


def line(setting, seed, step=10, split="test", suffix="", **facts):
    name = f"{setting}-seed{seed}{suffix}"
    return {"step": step, "setting": setting, "seed": seed, "learner": name, "split": split, **facts}


def lines(folder) -> list[dict]:
    return [json.loads(text) for text in (folder / "evals.jsonl").read_text().splitlines()]


def test_a_run_is_compared_by_all_that_it_recorded(make_run):
    folder = make_run(seeds=(0, 1, 2), task="classification")
    outcomes = {o.measure.name: o for o in of_run(lines(folder))}
    assert list(outcomes) == ["logit_loss", "label_loss", "agreement", "label_accuracy", "accuracy", "f1", "matthews"]
    assert {o.step for o in outcomes.values()} == {40}
    # multi ends lower and higher, by formulas in which each seed adds its own part
    assert [outcomes[name].verdicts[0].word for name in ("logit_loss", "agreement")] == ["better", "better"]
    assert outcomes["logit_loss"].values["logit"] == {s: pytest.approx(9 * (1 + 0.01 * s) / 2.2) for s in range(3)}
    assert outcomes["accuracy"].values["multi"] == {s: pytest.approx(0.82 + 0.01 * s) for s in range(3)}
    assert "same in every seed" in outcomes["accuracy"].verdicts[0].reason  # 0.08 in each, by the formula
    untaught = of_run(lines(make_run("bar", teacher=False)))
    assert [o.measure.name for o in untaught] == ["label_loss", "label_accuracy"]


def test_a_single_seed_gives_values_and_no_word(make_run):
    outcome = of_run(lines(make_run(seeds=(0,))))[0]
    assert outcome.values["multi"].keys() == {0}
    assert [(v.word, v.reason) for v in outcome.verdicts] == [(None, "seeds were not varied")]


def test_peers_count_by_their_mean():
    rows = [line("peers", 0, suffix=f"-{n}", logit_loss=loss) for n, loss in (("a", 1.0), ("b", 4.0))]
    assert of_run(rows)[0].values == {"peers": {0: 2.5}}
    assert math.isnan(of_run([*rows, line("peers", 1, suffix="-a", logit_loss=None)])[0].values["peers"][1])


def test_the_last_common_step_the_last_stage_and_the_later_line_count():
    both = [line(s, 0, step, logit_loss=float(step)) for s in "ab" for step in (10, 20)]
    ahead = [line("a", 0, 30, logit_loss=0.0), line("b", 0, 30, split="train", logit_loss=0.0)]
    again = [line("b", 0, 20, logit_loss=7.0)]
    (outcome,) = of_run(both + ahead + again)
    assert (outcome.step, outcome.values) == (20, {"a": {0: 20.0}, "b": {0: 7.0}})
    staged = [row | {"stage": "first"} for row in both] + [line("a", 0, 5, logit_loss=1.0, stage="second")]
    (outcome,) = of_run(staged)
    assert (outcome.step, outcome.values) == (5, {"a": {0: 1.0}})
    with pytest.raises(UserError, match="no step"):
        of_run([line("a", 0, 10, logit_loss=1.0), line("b", 0, 20, logit_loss=1.0)])
    assert of_run([]) == of_run([line("a", 0, split="train", logit_loss=1.0)]) == []


def test_a_setting_without_a_measure_is_named_and_one_that_failed_stays():
    rows = [line(s, n, logit_loss=PAIR[int(s == "b")][n], label_loss=2.0 + n) for s in "ab" for n in range(3)]
    rows += [line("plain", n, logit_loss=None, label_loss=2.0 + n) for n in range(3)]
    logit, label = of_run(rows)
    assert (logit.missing, list(logit.values), len(logit.verdicts)) == (("plain",), ["a", "b"], 1)
    assert (label.missing, len(label.verdicts)) == ((), 3)
    rows[1]["logit_loss"] = None
    assert of_run(rows)[0].verdicts[0].reason == "no finite value in seeds 1"
