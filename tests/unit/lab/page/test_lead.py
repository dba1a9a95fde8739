"""What the page and the terminal begin with says what the verdicts say."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_judged import FAR, NEAR, run_of, spoiled

from limbeck.lab.data.run import read
from limbeck.lab.page import report
from limbeck.lab.page.lead import lead, listed
from limbeck.lab.page.verdicts import judged, main_outcome
from limbeck.lab.terminal import results

MakeRun = Callable[..., Path]
Values = dict[str, list[float]]


def several(make_run: MakeRun, values: Values, name: str = "run") -> Path:
    """A run of settings with these held-out logit losses by seed."""
    (seeds,) = {len(each) for each in values.values()}
    folder = make_run(name, settings=tuple(values), seeds=tuple(range(seeds)))
    return spoiled(folder, {(it, seed): each for it, them in values.items() for seed, each in enumerate(them)})


def test_better_and_worse_are_the_words_of_the_verdict(make_run: MakeRun) -> None:
    assert lead(read(run_of(make_run, FAR))) == (
        "multi is better than logit: held-out logit loss 2.084 against 3.100 (5 seeds, p < 0.001 after Holm)."
    )
    swapped = {seed: pair[::-1] for seed, pair in FAR.items()}
    assert lead(read(run_of(make_run, swapped, "swapped"))).startswith("logit is better than multi: ")


def test_without_a_verdict_nobody_leads(make_run: MakeRun) -> None:
    """The mean of multi is the lower one, and no word says so; what the seeds could have shown is there."""
    folder = run_of(make_run, NEAR)
    (verdict,) = next(each for each in judged(read(folder)) if each.main).lines
    assert verdict[1] == "inconclusive" and verdict[3].startswith("\u2212")
    outcome = main_outcome(read(folder))
    assert outcome is not None and outcome.verdicts[0].detectable is not None
    said = lead(read(folder))
    assert said == (
        f"No verdict between logit and multi: held-out logit loss 3.100 and 3.080 (5 seeds, p {verdict[-1]} after Holm). "
        f"With 5 seeds, the test finds a true difference of {outcome.verdicts[0].detectable:#.4g} or more with 80 % power."
    )
    page = report.write(folder).read_text(encoding="utf-8")
    first = page.partition('<p class="finding">')[2].partition("</p>")[0]
    assert first == said and "better" not in first and "lower" not in first


def test_one_seed_is_no_verdict_and_the_remedy_is_named(make_run: MakeRun) -> None:
    assert lead(read(run_of(make_run, {0: FAR[0]}))) == (
        "No verdict between logit and multi: held-out logit loss 3.000 and 2.000 (1 seed, which cannot tell a difference "
        "from chance). Give the recipe several seeds, such as seeds: [0, 1, 2, 3, 4]."
    )


def test_of_three_settings_it_is_said_who_is_better_than_whom(make_run: MakeRun) -> None:
    best, middle, last = [1.0, 1.1, 1.21], [2.0, 2.12, 2.2], [3.0, 3.1, 3.25]
    chain = lead(read(several(make_run, {"labels": last, "multi": best, "logit": middle}, "chain")))
    assert chain.startswith("multi is better than logit and labels; logit is better than labels. Held-out logit loss: ")
    assert (
        "multi 1.103, logit 2.107, labels 3.117 (3 seeds, p < 0.001 after Holm)." in chain and "No verdict" not in chain
    )
    near = [2.3, 1.9, 2.2]
    open_end = lead(read(several(make_run, {"logit": middle, "near": near, "multi": best}, "open")))
    assert open_end.startswith("multi is better than logit and near. ")
    assert open_end.endswith(" No verdict between logit and near.")
    noisy = {"a": [3.0, 2.0, 2.5], "b": [2.1, 3.0, 2.4], "c": [2.6, 2.2, 3.1]}
    nobody = lead(read(several(make_run, noisy, "noisy")))
    assert nobody.startswith(
        "No verdict between any two of a, b and c: held-out logit loss a 2.500, b 2.500, c 2.633 (3 seeds, "
    )
    assert "p at least " in nobody or "p 1.000 after Holm" in nobody


def test_many_settings_are_told_in_short(make_run: MakeRun) -> None:
    draws = random.Random(0)
    values = {f"s{i}": [1.0 + i + draws.uniform(0.0, 0.05) for _ in range(4)] for i in range(8)}
    said = lead(read(several(make_run, values)))
    assert said.startswith("s0 is better than s1, s2, s3, s4, s5, s6 and 1 more; s1 is better than ")
    assert "; the table has the others. Held-out logit loss: s0 1.0" in said and ", and 2 more (4 seeds, " in said


@pytest.mark.parametrize(("names", "text"), [("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")])
def test_names_in_a_row(names: str, text: str) -> None:
    assert listed(names) == text


def test_the_terminal_begins_with_it(make_run: MakeRun) -> None:
    run = read(run_of(make_run, FAR))
    first, empty, head, *_, verdict, remark = results.text(run).splitlines()
    assert (first, empty) == (lead(run), "")
    assert head.split()[-2:] == ["logit", "multi"]
    assert verdict.strip().startswith("multi is better than logit: ") and remark.strip().startswith("Paired by 5 seeds")


def test_a_single_setting_is_not_compared(make_run: MakeRun) -> None:
    run: Any = read(make_run(settings=("logit",)))
    assert lead(run) == ""
    assert results.text(run).startswith(
        "After 40 steps, the mean held-out logit loss is 4.111 nats per token for logit.\n"
    )
