"""Studies as words: which arms and settings a recipe asks for, and what is refused with which line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kernel import answer, lay_out, recipe

from limbeck.errors import UserError
from limbeck.recipe import arms, load
from limbeck.recipe.settings import Setting
from limbeck.recipe.study_keys import StudyKeys

KL: dict[str, Any] = {"loss": "forward_kl"}
HIDDEN: dict[str, Any] = {"loss": "mse", "tap": "hidden"}
LABEL: dict[str, Any] = {"loss": "cross_entropy", "name": "label"}


def words(settings: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A recipe that nothing is read for."""
    return {"name": "x", "models": {"teacher": "embedded"}, "settings": settings or {"kl": {"terms": [KL]}}, **more}


def settings_of(table: dict[str, Any], *overrides: str) -> dict[str, Setting]:
    """The settings of a study of one arm."""
    (arm,) = arms.asked(table, overrides).arms()
    return arm.last.chosen


def labels(setting: Setting) -> list[str]:
    return [term.label for term in setting.terms]


# settings that are added


def test_two_terms_are_ablated_without_each() -> None:
    found = settings_of(words({"both": {"terms": [KL, HIDDEN]}, "one": {"terms": [KL]}}, ablate="terms"))
    assert {name: labels(setting) for name, setting in found.items()} == {
        "both": ["logit", "hidden"],
        "one": ["logit"],
        "both-without-logit": ["hidden"],
        "both-without-hidden": ["logit"],
    }


def test_four_terms_are_ablated_both_ways() -> None:
    terms = [KL | {"temperature": 2, "weight": 0.5}, HIDDEN, HIDDEN | {"tap": "embedding"}, LABEL]
    found = settings_of(words({"all": {"terms": terms, "balance": "gradient"}}, ablate="terms"))
    every = ["logit", "hidden", "embedding", "label"]
    assert list(found) == ["all", *(f"all-without-{it}" for it in every), *(f"all-only-{it}" for it in every)]
    for label in every:
        assert labels(found[f"all-without-{label}"]) == [it for it in every if it != label]
        assert labels(found[f"all-only-{label}"]) == [label]
    assert all(setting.balance == "gradient" for setting in found.values()), "the rest of the setting stays"
    (kept,) = found["all-only-logit"].terms
    assert (kept.parameters, kept.weight) == ({"temperature": 2}, 0.5)


@pytest.mark.parametrize(
    ("cast", "term"),
    [
        ({"peers": 2, "alternate": True}, KL | {"teacher": "peers"}),
        ({"ema": 0.9}, KL | {"teacher": "ema"}),
        ({"exits": [1]}, KL | {"tap": "exit", "teacher": "self"}),
    ],
)
def test_a_cast_that_nobody_needs_is_dropped(cast: dict[str, Any], term: dict[str, Any]) -> None:
    found = settings_of(words({"tied": {"terms": [LABEL, KL, term | {"name": "tie"}], **cast}}, ablate="terms"))
    for name in ("tied-without-tie", "tied-only-label", "tied-only-logit"):
        assert (found[name].peers, found[name].alternate, found[name].ema, found[name].exits) == (1, False, None, ())
    for name in ("tied-without-label", "tied-only-tie"):
        kept = found[name].model_dump(mode="json")
        assert {word: kept[word] for word in cast} == cast


def test_only_some_settings_are_ablated() -> None:
    table = words({"a": {"terms": [KL, HIDDEN]}, "b": {"terms": [KL, LABEL]}}, ablate="terms", only="b")
    assert list(settings_of(table)) == ["b", "b-without-logit", "b-without-label"]


@pytest.mark.parametrize(
    ("more", "loss"),
    [
        ({}, "cross_entropy"),
        ({"data": {"task": {"kind": "classification"}}}, "cross_entropy"),
        ({"data": {"task": {"kind": "regression"}}}, "squared_error"),
    ],
)
def test_no_teacher_learns_from_labels(more: dict[str, Any], loss: str) -> None:
    terms = [KL] if loss == "cross_entropy" else [{"loss": "squared_error"}]
    found = settings_of(words({"a": {"terms": terms}}, baselines=["no-teacher"], ablate="terms", **more))
    assert list(found) == ["a", "no-teacher"]
    assert [(term.loss, term.label) for term in found["no-teacher"].terms] == [(loss, "label")]


def test_what_is_not_trained_is_no_setting() -> None:
    """Shown beside the settings by what the evaluations have: once each, in the order that was asked for."""
    table = words(baselines=["teacher", "no-teacher", "initial", "teacher"])
    assert list(settings_of(table)) == ["kl", "no-teacher"]
    asked = arms.asked(table)
    assert asked.keys.shown == ("teacher", "initial") and not asked.keys.resolves
    assert asked.arms()[0].last == arms.asked(words(baselines=["no-teacher"])).arms()[0].last, "the run is the same one"


# arms


def test_a_grid_in_its_order() -> None:
    table = words(vary={"train.lr": [1e-3, 1e-5], "settings.kl.terms.0.temperature": [1, 2]}, seeds=[0, 1])
    found = arms.asked(table).arms()
    names = [f"lr={lr},temperature={t}" for lr in ("0.001", "1.0e-05") for t in (1, 2)]
    assert [arm.name for arm in found] == names
    assert [arm.shown for arm in found] == [{"kl": f"kl {name}"} for name in names]
    values = [(arm.last.train.lr, arm.last.settings["kl"].terms[0].parameters["temperature"]) for arm in found]
    assert values == [(1e-3, 1), (1e-3, 2), (1e-5, 1), (1e-5, 2)]


def test_words_of_one_end_are_told_apart() -> None:
    both = {"a": {"terms": [KL]}, "b": {"terms": [KL]}}
    table = words(both, vary={f"settings.{it}.terms.0.weight": [1, 2] for it in both} | {"train.lr": [0.1]})
    assert arms.asked(table).arms()[1].name == "a.terms.0.weight=1,b.terms.0.weight=2,lr=0.1"


def test_a_sample_is_drawn_without_repetition() -> None:
    def drawn(**sample: int) -> list[tuple[float, int]]:
        table = words(vary={"train.lr": [0.1, 0.2, 0.3], "train.steps": [1, 2, 3]}, sample=sample)
        return [(arm.last.train.lr, arm.last.train.steps) for arm in arms.asked(table).arms()]

    every = drawn(count=9)
    assert len(every) == 9 and drawn(count=20) == every
    samples = [drawn(count=4, seed=seed) for seed in range(5)]
    for sample in samples:
        assert len(set(sample)) == 4 and sample == sorted(sample, key=every.index), "in the order of the grid"
    assert samples[0] == drawn(count=4) and len({tuple(sample) for sample in samples}) > 1


def test_arms_lie_apart_and_share_equal_stages() -> None:
    table = words(
        stages=[{"stage": "first"}, {"models": {"student": {"init": "$previous"}}}],
        vary={"stages[1].train.lr": [0.1, 0.2], "stages[0].train.steps": [3, 4]},
        out="here",
    )
    found = arms.placed_all(arms.asked(table).arms(), Path("here"))
    assert [arm.last.run_dir for arm in found] == [f"here/arms/0{number}" for number in (1, 2, 3, 4)]
    first = [f"here/arms/0{number}/stages/first" for number in (1, 2, 1, 2)]
    assert [arm.tables[0].run_dir for arm in found] == first


def test_trials_are_equal_for_all_settings() -> None:
    table = words(
        {"a": {"terms": [KL]}, "b": {"terms": [HIDDEN]}},
        tune={"vary": {"train.lr": [0.1, 0.2]}, "steps": 5},
        seeds=[3, 4],
        out="here",
    )
    asked = arms.asked(table)
    assert [list(arm.last.chosen) for arm in asked.arms()] == [["a", "b"]]
    trials = [arm.last for _, arm in asked.trials()]
    assert [(it.train.lr, it.train.steps, it.seeds, it.run_dir) for it in trials] == [
        (lr, 5, (3,), f"here/tuning/0{number}") for number, lr in ((1, 0.1), (2, 0.2))
    ]
    assert all(list(it.chosen) == ["a", "b"] and it.data.fold == "validation" for it in trials)
    more = arms.asked(table, ["tune.seeds=[7, 8]"]).trials()
    assert {arm.last.seeds for _, arm in more} == {(7, 8)}


def test_words_of_a_study_on_the_command_line() -> None:
    table = words({"a": {"terms": [KL, HIDDEN]}})
    given = ["ablate=terms", "together=1", "vary={train.lr: [1e-3, 1e-4]}", "train.steps=7", "baselines=[no-teacher]"]
    asked = arms.asked(table, given)
    assert asked.keys.together == 1 and asked.keys.resolves
    assert [(arm.last.train.lr, arm.last.train.steps) for arm in asked.arms()] == [(1e-3, 7), (1e-4, 7)]
    assert list(asked.arms()[0].last.chosen) == ["a", "no-teacher", "a-without-logit", "a-without-hidden"]
    assert list(table) == ["name", "models", "settings"], "the table that was given is as it was"
    plain = arms.asked(table)
    assert not plain.keys.resolves and plain.arms()[0].last == load.load(table), "a recipe without them is as it was"


# what is refused

TWO = {"a": {"terms": [KL, HIDDEN]}}
GRID = {"train.lr": [0.1, 0.2]}
STAGED = [{"stage": "first", "settings": TWO | {"b": TWO["a"]}}, {"models": {"student": {"init": "$previous"}}}]
REFUSED: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    # words
    ({"tune": {"vary": GRID, "stepz": 3}}, (), "tiny.yaml: tune.stepz: unknown key; did you mean 'steps'?"),
    ({"sample": {"count": 1, "sede": 3}, "vary": GRID}, (), "tiny.yaml: sample.sede: unknown key; did you mean 'seed'?"),
    ({"baseline": ["no-teacher"]}, (), "tiny.yaml: baseline: unknown key; did you mean 'baselines'?"),
    ({}, ("abalte=terms",), "tiny.yaml: abalte: unknown key; did you mean 'ablate'?"),
    ({"baselines": ["noteacher"]}, (), "tiny.yaml: baselines[0]: must be 'no-teacher', 'initial' or 'teacher', not 'noteacher'"),
    ({"ablate": "layers"}, (), "tiny.yaml: ablate: must be 'terms'"),
    ({"equal": "steps"}, (), "tiny.yaml: equal: must be 'flops' or 'seconds'"),
    ({"together": 0}, (), "tiny.yaml: together: must be above 0, not 0"),
    ({}, ("together=x",), "tiny.yaml: together: must be a whole number, not 'x'"),
    ({"vary": 3}, (), "tiny.yaml: vary: must be a table of keys and values, not 3"),
    ({"vary": {"train.lr": 3}}, (), "tiny.yaml: vary['train.lr']: must be a list such as [1, 2], not 3"),
    # grids
    ({"vary": {"train.lrr": [1, 2]}}, (), "tiny.yaml: train.lrr: unknown key; did you mean 'lr'?"),
    ({"vary": {"trian.lr": [1, 2]}}, (), "trian.lr: there is no 'trian'; did you mean 'train'?"),
    ({"vary": {"train.lr": [-1]}}, (), "tiny.yaml: train.lr: must be above 0, not -1"),
    ({"vary": {"train.lr": []}}, (), "tiny.yaml: vary.train.lr: give different values, such as [1, 2]"),
    ({"vary": {"train.lr": [0.1, 1e-1]}}, (), "tiny.yaml: vary.train.lr: give different values, such as [1, 2]"),
    ({"vary": {"out": ["a", "b"]}}, (), "tiny.yaml: vary.out: arms lie in one folder"),
    ({"vary": {"train.threads": [1, 2]}}, (), "tiny.yaml: vary: train.threads is one for all arms; run the recipe once for"),
    ({"sample": {"count": 2}}, (), "tiny.yaml: sample: there is nothing to draw from; set vary"),
    # tuning
    ({"tune": {}}, (), "tiny.yaml: tune.vary: missing; say which keys are tried"),
    ({"tune": {"sample": {"count": 2}}}, (), "tiny.yaml: tune.sample: there is nothing to draw from; set tune.vary"),
    ({"tune": {"vary": GRID}, "vary": GRID}, (), "tiny.yaml: tune: settings that are tuned differ already"),
    ({"tune": {"vary": GRID}, "equal": "flops"}, (), "tiny.yaml: tune: settings that are tuned differ already"),
    ({"tune": {"vary": {"train.lr": []}}}, (), "tiny.yaml: tune.vary.train.lr: give different values"),
    ({"tune": {"vary": GRID, "seeds": [1, 1]}}, (), "seeds: one seed stands twice: [1, 1]; give each once"),
    ({"tune": {"vary": GRID, "seeds": []}}, (), "seeds: is empty; give at least one"),
    ({"tune": {"vary": {"train.lrr": [1]}}}, (), "tiny.yaml: train.lrr: unknown key"),
    # names, and what later stages take
    ({"settings": TWO | {"a-without-logit": TWO["a"]}, "ablate": "terms"}, (), "settings.a-without-logit: baselines and ablate make"),
    ({"settings": TWO | {"no-teacher": TWO["a"]}, "baselines": ["no-teacher"]}, (), "settings.no-teacher: baselines and ablate"),
    ({"settings": TWO | {"initial": TWO["a"]}, "baselines": ["initial"]}, (), "settings.initial: baselines and ablate make"),
    ({"settings": {"a": {"terms": [LABEL]}}, "models": {"student": {"family": "bert", "tokenizer": "teacher"}}, "baselines": ["teacher"]}, (), "baselines: there is no teacher to show"),
    ({"stages": STAGED, "settings": TWO, "baselines": ["no-teacher"]}, (), "the stage first trained a, b and no no-teacher; say which"),
    ({"stages": STAGED, "settings": TWO, "equal": "seconds"}, (), "equal: seconds are measured before anything trains"),
    # what needs the models: said before the first arm trains
    ({"vary": {"train.batch_size": [4, 5], "train.accumulate": [2]}}, (), "train.batch_size: 5 blocks cannot be split"),
    ({"vary": {"data.max_length": [10, 33]}}, (), "data.max_length: 33 tokens are more than the 32 positions"),
    ({"vary": {"data.corpus": ["corpus.txt", "nope.txt"]}}, (), "nope.txt: no such file or folder"),
    ({"tune": {"vary": {"data.max_length": [10, 33]}}}, (), "data.max_length: 33 tokens are more than the 32 positions"),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus."""
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.fixture
def limbeck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world: Path) -> Callable[..., Any]:
    """Runs a command on a recipe in this process: (status, standard output, standard error)."""
    monkeypatch.chdir(world)

    def command(table: dict[str, Any], *given: str) -> tuple[int, str, str]:
        (world / "tiny.yaml").write_text(yaml.safe_dump(recipe(world, world / "run") | table), encoding="utf-8")
        return answer(monkeypatch, capsys, *given)

    return command


@pytest.mark.parametrize(("table", "overrides", "message"), REFUSED, ids=[message[-60:] for _, _, message in REFUSED])
def test_mistakes(table: dict[str, Any], overrides: tuple[str, ...], message: str, limbeck: Any, world: Path) -> None:
    """One line, exit status 2, from `check` and from `run` alike, before anything is trained or written."""
    for command in ("check", "run"):
        status, out, err = limbeck(table, command, "tiny.yaml", *overrides)
        assert (status, out) == (2, "")
        line = err.splitlines()[-1]
        assert line.startswith("limbeck: error: ") and message in line and len(line) < 450
        assert "trial" not in err and "arm 1" not in err, "nothing has begun"
    assert not (world / "run").exists()


def test_check_shows_the_arms(limbeck: Any, world: Path) -> None:
    status, out, err = limbeck({"vary": GRID, "equal": "flops"}, "check", "tiny.yaml", "baselines=[no-teacher]")
    assert (status, err) == (0, "") and not (world / "run").exists()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[lines.index("arms settings updates") :] == [
        "arms settings updates",
        *(f"lr={lr} logit, multi, no-teacher 6" for lr in (0.1, 0.2)),
        "updates at equal flops are counted when it runs",
    ]
    status, out, _ = limbeck({"tune": {"vary": GRID}}, "check", "tiny.yaml")
    assert status == 0 and "tuned first: 2 trials of every setting, on a validation part" in out


def test_a_recipe_object_takes_words_too(world: Path) -> None:
    from limbeck import api

    one = load.load(recipe(world, world / "run"))
    assert any("lr=0.001" in line for line in api.check(one, ["vary={train.lr: [1e-3]}", "equal=flops"]))


def test_the_schema_knows_the_words() -> None:
    schema = json.loads(json.dumps(arms.schema()))
    assert set(StudyKeys.model_fields) <= set(schema["properties"])
    assert {"Tune", "Sample", "Stage"} <= set(schema["$defs"])
    assert not set(StudyKeys.model_fields) & set(schema["$defs"]["Stage"]["properties"]), "they belong to the whole"
    with pytest.raises(UserError, match=r"stages\[0\]: ablate: unknown key"):
        arms.asked(words(stages=[{"ablate": "terms"}])).arms()


def test_dots_reach_into_the_words_of_a_study() -> None:
    dotted = ["vary.train.lr=[1e-3, 1e-4]", "vary.settings.logit.terms[0].weight=[1, 2]", "sample.count=3"]
    whole = ["vary={train.lr: [1e-3, 1e-4], 'settings.logit.terms[0].weight': [1, 2]}", "sample={count: 3}"]
    assert arms.asked("quickstart", dotted).keys == arms.asked("quickstart", whole).keys
    tuned = arms.asked("quickstart", ["tune.vary.train.lr=[1e-3, 1e-4]", "tune.steps=5"]).keys.tune
    assert tuned is not None and (tuned.steps, tuned.vary) == (5, {"train.lr": (1e-3, 1e-4)})
    for override, message in (
        ("vary.train.lr=1e-3", "vary['train.lr']: must be a list such as"),
        ("vary.train.lr=[1", "vary: '[1' is not YAML"),
        ("tune.stepz=3", "tune.stepz: unknown key; did you mean 'steps'?"),
    ):
        with pytest.raises(UserError) as caught:
            arms.asked("quickstart", [override])
        assert message in str(caught.value), override
