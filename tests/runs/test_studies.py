"""Studies of several arms, tiny ones: each arm is the run that it would be alone; what is resolved once stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel import recipe
from runfiles import hashes, untimed, weights

import limbeck
from limbeck.assemble import costs, design
from limbeck.errors import UserError
from limbeck.recipe import arms
from limbeck.recipe.load import load
from limbeck.running import arms as studies
from limbeck.running import disk_space, stages
from limbeck.system.files import read_json
from limbeck.text.heldout import separate

Train = Callable[..., limbeck.Run]
RATES = {"train.lr": [1e-2, 1e-3]}
SHORT = {"steps": 3, "eval_every": 3}


def told(run: limbeck.Run) -> dict[str, Any]:
    """What study.json says."""
    return read_json(run.folder / "study.json")


def by_setting(run: limbeck.Run) -> dict[str, list[dict[str, Any]]]:
    """The evaluations of every setting of a run or of a study."""
    rows = [row for one in run.arms.values() or [run] for row in untimed(one.evals)]
    return {
        name: [row for row in rows if row["setting"] == name] for name in dict.fromkeys(it["setting"] for it in rows)
    }


def exported(run: limbeck.Run) -> dict[str, bytes]:
    """The weights of every student of a run or of a study whose settings stand once."""
    return {name: weights(one, name) for one in run.arms.values() or [run] for name in one.students}


def count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """The calls of a function of `studies` or `chain`, as they come."""
    calls: list[Any] = []
    place: Any = studies if hasattr(studies, name) else stages
    whole = getattr(place, name)

    def counted(*given: Any, **more: Any) -> Any:
        calls.append(given[0])
        return whole(*given, **more)

    monkeypatch.setattr(place, name, counted)
    return calls


# an arm is the run that it would be alone


def test_every_arm_is_the_run_alone(train: Train) -> None:
    terms = {"logit": {"terms": [{"loss": "forward_kl", "temperature": 2.0}]}}
    label = [{"loss": "cross_entropy", "name": "label"}]
    two = [{"loss": "forward_kl"}, {"loss": "mse", "tap": "embedding"}]
    settings = {**terms, "two": {"terms": two}}
    study = train("study", 0.1, settings=settings, baselines=["no-teacher"], ablate="terms", vary=RATES, train=SHORT)
    assert list(study.arms) == ["arms/01", "arms/02"]
    plain = settings | {
        "no-teacher": {"terms": label},
        "two-without-logit": {"terms": two[1:]},
        "two-without-embedding": {"terms": two[:1]},
    }
    for arm, lr in zip(study.arms.values(), RATES["train.lr"], strict=True):
        alone = train(f"alone-{lr}", 0.1, settings=plain, train=SHORT | {"lr": lr})
        assert list(by_setting(alone)) == list(plain)
        assert by_setting(arm) == by_setting(alone) and exported(arm) == exported(alone)
        assert untimed(arm.metrics) == untimed(alone.metrics)


def test_together_changes_no_bit(train: Train, through: limbeck.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = train("apart", 0.1, together=1)
    assert [arm["settings"] for arm in told(apart)["arms"]] == [{"logit": "logit"}, {"multi": "multi"}]
    assert by_setting(apart) == by_setting(through) and exported(apart) == exported(through)
    both = train("both", 0.1, together=2)
    assert not both.arms and exported(both) == exported(through), "all at once is a run like any other"


def test_what_does_not_fit_into_memory_is_trained_apart(
    train: Train, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = max(
        costs.of_study(design.design(load(recipe(world, tmp_path, only=[name])))).memory for name in ("logit", "multi")
    )
    monkeypatch.setattr(disk_space, "free_memory", lambda world: 1.01 * alone)
    run = train("small", train=SHORT)
    assert list(run.arms) == ["arms/01", "arms/02"]
    monkeypatch.setattr(disk_space, "free_memory", lambda world: math.inf)
    before = hashes(run.folder / "arms")
    assert list(train("small", train=SHORT).arms) == ["arms/01", "arms/02"], "once split, it stays so"
    assert hashes(run.folder / "arms") == before


# equal cost


def test_equal_flops(train: Train) -> None:
    run = train("flops", equal="flops", vary={"models.student.layers": [2, 1]}, train={"eval_every": 100})
    counted = {}
    for arm, said in zip(run.arms.values(), told(run)["arms"], strict=True):
        (shown,) = said["settings"].values()
        last = arm.metrics[-1]
        assert last["step"] == said["steps"] == arm.evals[-1]["step"]
        counted[shown] = (last["flops"], last["flops"] / last["step"])
    assert list(counted) == [f"{name} layers={layers}" for layers in (2, 1) for name in ("logit", "multi")]
    budget = counted["logit layers=2"][0]
    assert budget == 6 * counted["logit layers=2"][1], "the first setting of the first arm keeps train.steps"
    assert all(abs(total - budget) <= price for total, price in counted.values())
    assert len({said["steps"] for said in told(run)["arms"]}) > 1


@pytest.mark.slow
def test_equal_seconds_are_measured_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = iter([{"logit": 1.0, "multi": 2.0}])
    monkeypatch.setattr(studies, "_seconds", lambda *given: next(prices))
    run = train("seconds", equal="seconds")
    assert {name: arm["steps"] for arm in told(run)["arms"] for name in arm["settings"]} == {"logit": 6, "multi": 3}
    written = (run.folder / "study.json").read_bytes()

    def fails(*given: Any) -> dict[str, float]:
        raise AssertionError("measured again")

    monkeypatch.setattr(studies, "_seconds", fails)
    again = train("seconds", equal="seconds")
    assert (again.folder / "study.json").read_bytes() == written
    with pytest.raises(AssertionError, match="measured again"):
        train("others", equal="seconds")


@pytest.mark.slow
def test_seconds_are_measured(train: Train) -> None:
    run = train("measured", equal="seconds", train={"steps": 2})
    steps = {name: arm["steps"] for arm in told(run)["arms"] for name in arm["settings"]}
    assert steps["logit"] == 2 and steps["multi"] >= 1
    assert {row["step"] for arm in run.arms.values() for row in arm.metrics} == {*range(1, 1 + max(steps.values()))}


# it goes on


class Killed(BaseException):
    """What a test throws between two arms."""


def test_killed_between_arms_it_goes_on(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("whole", 0.1, vary=RATES, train=SHORT)
    with monkeypatch.context() as patch:
        trained, real = [], stages.train

        def dies(tables: Any, *given: Any) -> None:
            if trained:
                raise Killed
            trained.append(real(tables, *given))

        patch.setattr(stages, "train", dies)
        with pytest.raises(Killed):
            train("killed", 0.1, vary=RATES, train=SHORT)
    folder = whole.folder.parent / "killed"
    before = hashes(folder / "arms" / "01")
    assert not (folder / "arms" / "02").exists()
    run = train("killed", 0.1, vary=RATES, train=SHORT)
    assert hashes(folder / "arms" / "01") == before, "a finished arm is left alone"
    for mine, theirs in zip(run.arms.values(), whole.arms.values(), strict=True):
        assert exported(mine) == exported(theirs) and by_setting(mine) == by_setting(theirs)
    calls = count(monkeypatch, "_train")
    train("killed", 0.1, vary=RATES, train=SHORT, report_to=[])
    assert calls == [], "a finished study trains nothing"


def test_trackers_are_no_part_of_a_study(train: Train, world: Path, tmp_path: Path) -> None:
    asked = [arms.asked(recipe(world, tmp_path / "x", vary=RATES, report_to=names)) for names in ([], ["tensorboard"])]
    assert len({studies.key(one.keys, one.arms()) for one in asked}) == 1


def test_a_folder_with_something_else_is_refused(train: Train, tmp_path: Path, through: limbeck.Run) -> None:
    study = train("study", only=["logit"], vary=RATES, train=SHORT)
    before = hashes(tmp_path)
    for more in ({"vary": {"train.lr": [1e-2, 1e-4]}}, {"vary": RATES, "seeds": [3]}, {}):
        with pytest.raises(
            UserError, match="study: holds another study; choose another folder with out=DIR, or remove"
        ):
            train("study", only=["logit"], train=SHORT, **more)
    for more in ({"vary": RATES}, {"together": 1}, {"tune": {"vary": RATES}}):
        with pytest.raises(
            UserError, match="through: holds a single run; choose another folder with out=DIR, or remove"
        ):
            train(str(through.folder), 0.1, **more)
    assert not (through.folder / "tuning").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="other: is there and is no study; choose another folder with out=DIR"):
        train("other", vary=RATES)
    (tmp_path / "other" / "letter.txt").unlink()
    assert hashes(tmp_path) == before
    (study.folder / "study.json").write_text('{"key": ')
    with pytest.raises(UserError, match=r"study.json: is damaged; restore it, or choose another folder with out=DIR"):
        train("study", only=["logit"], vary=RATES, train=SHORT)


# stages


@pytest.mark.slow
def test_equal_stages_are_trained_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [
        {"stage": "hints", "settings": {"x": {"terms": [{"loss": "mse", "tap": "hidden"}]}}},
        {"settings": {"x": {"terms": [{"loss": "forward_kl"}]}}, "models": {"student": {"init": "$previous"}}},
    ]
    calls = count(monkeypatch, "_train")
    run = train("staged", stages=stages, vary={"stages[1].train.lr": [1e-2, 1e-3]}, train=SHORT)
    assert [plan.recipe.stage for plan in calls] == ["hints", "stage-2", "stage-2"]
    assert (run.folder / "arms/01/stages/hints").is_dir() and not (run.folder / "arms/02/stages").exists()
    alone = train("alone", stages=[stages[0], stages[1] | {"train": {"lr": 1e-3}}], train=SHORT)
    assert exported(run.arms["arms/02"]) == exported(alone)
    assert len({exported(one)["x-seed0"] for one in run.arms.values()}) == 2


# data


@pytest.mark.slow
def test_a_ladder_of_data(train: Train) -> None:
    run = train("ladder", only=["logit"], vary={"data.max_bytes": [1500, 3000]}, train=SHORT)
    facts = [arm.manifest["data"] for arm in run.arms.values()]
    assert facts[0]["documents"] < facts[1]["documents"]
    alone = train("alone", only=["logit"], data=_data(run, max_bytes=1500), train=SHORT)
    assert exported(alone) == exported(run.arms["arms/01"])


def _data(run: limbeck.Run, **more: Any) -> dict[str, Any]:
    """What a run said of its text, with other words."""
    arm = next(iter(run.arms.values()))
    return load(str(arm.folder / "recipe.yaml")).data.model_dump(mode="json") | more


# tuning


@pytest.mark.slow
def test_the_best_on_the_validation_part_is_compared(train: Train, world: Path) -> None:
    rates = [1e-4, 1e-2, 3e-3]
    run = train("tuned", tune={"vary": {"train.lr": rates}, "steps": 4}, seeds=[0, 1], train=SHORT)
    trials = [limbeck.Run(run.folder / "tuning" / f"0{number}") for number in (1, 2, 3)]
    assert [load(str(trial.folder / "recipe.yaml")).train.lr for trial in trials] == rates
    for name in ("logit", "multi"):
        found = []
        for trial in trials:
            rows = [it for it in trial.evals if (it["setting"], it["step"], it["split"]) == (name, 4, "test")]
            assert [it["seed"] for it in rows] == [0], "the same trials, of the first seed"
            found.append(rows[0]["logit_loss"])
        best = rates[found.index(min(found))]
        said = told(run)["tuned"][name]
        assert said["chosen"] == {"train.lr": best} and list(said["losses"].values()) == found
        arm = next(it for it in told(run)["arms"] if name in it["settings"])
        compared = load(str(run.folder / arm["folder"] / "recipe.yaml"))
        assert (compared.train.lr, compared.data.fold, compared.seeds) == (best, "test", (0, 1))
        assert arm["settings"][name] == name
    alone = train("alone", seeds=[0, 1], train=SHORT | {"lr": 1e-2}, only=["logit"])
    (arm,) = (it for it in run.arms.values() if "logit-seed0" in it.students)
    assert told(run)["tuned"]["logit"]["chosen"] == {"train.lr": 1e-2}
    assert by_setting(alone)["logit"] == by_setting(arm)["logit"]


def test_the_lowest_loss_is_chosen_for_each_setting(
    monkeypatch: pytest.MonkeyPatch, world: Path, tmp_path: Path
) -> None:
    """Two settings with different best trials, one that is not finite, and a tie, which the first one wins."""
    asked = arms.asked(recipe(world, tmp_path / "x", tune={"vary": {"train.lr": [1, 2, 3]}}))
    trials = asked.trials()
    losses = iter([{"logit": 3.0, "multi": math.inf}, {"logit": 1.0, "multi": 2.0}, {"logit": 1.0, "multi": 1.5}])
    monkeypatch.setattr(studies, "_losses", lambda folder: next(losses))
    found, said = studies.tuned(asked, trials)
    assert {name: arm.last.train.lr for arm in found for name in arm.last.chosen} == {"logit": 2, "multi": 3}
    assert said["logit"] == {"chosen": {"train.lr": 2}, "losses": {"lr=1": 3.0, "lr=2": 1.0, "lr=3": 1.0}}


def parts(table: dict[str, Any]) -> dict[str, set[str]]:
    """Part -> texts, of the data of a recipe."""
    found: dict[str, set[str]] = {}
    for part, _, text in separate(load(table).data):
        found.setdefault(part, set()).add(text)
    return found


@pytest.fixture
def apart(world: Path) -> Iterator[str]:
    """A held-out corpus of its own, of which some documents are training text as well."""
    path, texts = world / "apart.txt", (world / "corpus.txt").read_text().split("\n\n")
    path.write_text("\n\n".join([*texts[:9], "ba be bi bo bu", "da de di do du"]))
    yield str(path)
    path.unlink()


@pytest.mark.parametrize("own", [False, True])
def test_trials_never_read_the_test(own: bool, world: Path, tmp_path: Path, apart: str) -> None:
    table = recipe(world, tmp_path / "x", tune={"vary": RATES})
    data = table["data"] | ({"heldout": apart} if own else {"heldout": 0.3})
    asked = arms.asked(table | {"data": data})
    (test,) = (parts(arm.last.model_dump(mode="json")) for arm in asked.arms())
    whole = set((world / "corpus.txt").read_text().split("\n\n"))
    for _, arm in asked.trials():
        trial = parts(arm.last.model_dump(mode="json"))
        read = trial["train"] | trial["heldout"]
        assert trial["heldout"] and trial["train"] and test["heldout"]
        assert not test["heldout"] & read, "no document of the test is trained on, or measured"
        assert not trial["heldout"] & trial["train"]
        assert read | test["heldout"] >= whole, "all other text is used"


@pytest.mark.slow
def test_what_a_trial_holds_is_its_part(train: Train, world: Path) -> None:
    """The tokenised text of a trial has as many documents as the parts say."""
    run = train("counted", only=["logit"], tune={"vary": {"train.lr": [1e-2]}}, train=SHORT)
    trial = limbeck.Run(run.folder / "tuning" / "01")
    said, (compared,) = trial.manifest["data"], [arm.manifest["data"] for arm in run.arms.values()]
    mine = [part for part, _, _ in separate(load(str(trial.folder / "recipe.yaml")).data)]
    assert (said["documents"], said["heldout_documents"]) == (mine.count("train"), mine.count("heldout"))
    assert said["heldout_sha256"] != compared["heldout_sha256"] and said["sha256"] != compared["sha256"]
