"""Staged recipes as words: what they become, what is refused with which line, what `check` and the schema say of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kernel import SPECIALS, WORDS, answer, lay_out, recipe
from schemas import fits

from limbeck.errors import UserError
from limbeck.recipe import arms, stage_texts, stages
from limbeck.recipe.identity import text
from limbeck.recipe.load import built_in
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.settings import Setting
from limbeck.system import hub

KL: dict[str, Any] = {"terms": [{"loss": "forward_kl"}]}
HINT: dict[str, Any] = {"terms": [{"loss": "mse", "tap": "hidden"}]}
INIT = {"student": {"init": "$previous"}}


def words(*listed: Any, **more: Any) -> dict[str, Any]:
    """A staged recipe that nothing is read for."""
    return {"name": "staged", "models": {"teacher": "embedded"}, "settings": {"kl": KL}, "stages": list(listed), **more}


# what they become


def test_a_stage_stands_over_the_shared_keys() -> None:
    shared = {
        "models": {
            "teacher": {"source": "org/name", "revision": "v2"},
            "student": {"layers": 2, "from_layers": {1: 1}},
        },
        "train": {"steps": 7, "lr": 0.1},
        "data": {"corpus": "a.txt", "masking": {"mode": "static"}, "unlabelled": {"corpus": "b.txt", "share": 0.5}},
        "settings": {"a": KL, "b": HINT},
        "seeds": [3, 4],
        "question": "why?",
        "out": "somewhere",
    }
    own = {
        "models": {"teacher": {"source": "other/name"}, "student": {"hidden": 32, "from_layers": {2: 4}}},
        "train": {"lr": 0.2},
        "data": {"masking": {"probability": 0.3}, "unlabelled": None},
        "settings": {"c": KL},
        "seeds": [3],
    }
    first, second = stages.expand(words({}, own, **shared))
    assert (first.stage, second.stage) == ("stage-1", "stage-2")
    assert (first.run_dir, second.run_dir) == ("somewhere/stages/stage-1", "somewhere")
    assert list(first.settings) == ["a", "b"] and list(second.settings) == ["c"], "settings are replaced"
    assert [(one.train.steps, one.train.lr) for one in (first, second)] == [(7, 0.1), (7, 0.2)]
    assert (second.data.corpus, second.data.masking.mode, second.data.masking.probability) == ("a.txt", "static", 0.3)
    assert first.data.unlabelled is not None and second.data.unlabelled is None
    assert (second.models.student.layers, second.models.student.hidden) == (2, 32)
    assert second.models.student.from_layers == {2: 4}, "a layer map is one value"
    assert [(it.source, it.revision) for it in first.models.members] == [("org/name", "v2")]
    assert [(it.source, it.revision) for it in second.models.members] == [("other/name", None)], "so is a model"
    assert (first.seeds, second.seeds) == ((3, 4), (3,))
    assert {one.name for one in (first, second)} == {"staged"} and {one.question for one in (first, second)} == {"why?"}


def test_an_ensemble_gives_way_to_a_model_and_back() -> None:
    both = {"teacher": {"ensemble": ["org/a", "org/b"], "average": "logits"}}
    for shared, own, counts in ((both, {"teacher": {"source": "org/c"}}, (2, 1)), ({"teacher": "x/y"}, both, (1, 2))):
        found = stages.expand(words({}, {"models": own}, models=shared))
        assert tuple(len(one.models.members) for one in found) == counts


def test_previous_is_the_stage_before() -> None:
    kinds: list[dict[str, Any]] = [
        {"teacher": "$previous", **INIT},
        {"teacher": {"ensemble": ["$previous/kl", "$stage-1"]}, "teachers": {"old": "$stage-2"}},
        {"teachers": {"one": {"source": "$previous"}}},
    ]
    found = stages.expand(words({}, *({"models": models} for models in kinds)))
    said = [[member.source for member in one.models.members] for one in found]
    assert said == [["embedded"], ["$stage-1"], ["$stage-2/kl", "$stage-1"], ["embedded"]]
    assert [one.models.student.init for one in found] == ["random", "$stage-1", "random", "random"]
    assert found[2].models.teachers["old"].source == "$stage-2" and found[3].models.teachers["one"].source == "$stage-3"


def test_whose_student_is_meant() -> None:
    (one,) = stages.expand(
        {"name": "x", "models": {"teacher": "embedded"}, "settings": {"a": KL, "b": KL}, "seeds": [0, 1]}
    )
    single = one.model_copy(update={"only": ("b",), "seeds": (5,)})
    peers = one.model_copy(
        update={"settings": {"a": Setting.model_validate({**KL, "peers": 1}), "b": one.settings["b"]}}
    )
    assert stages.student_of(one, "$x", "a", 1) == "a-seed1", "the setting of the same name, the same seed"
    assert stages.student_of(one, "$x/b", "a", 0) == "b-seed0"
    assert stages.student_of(single, "$x", "a", 1) == "b-seed5", "its only setting, its only seed"
    assert stages.student_of(peers, "$x", "b", 1) == "b-seed1"
    assert [stage_texts.stage_of(said) for said in ("$x", "$x/b", "x/b", "")] == ["x", "x", None, None]


def test_overrides_stand_over_the_file_and_those_of_one_stage_over_all() -> None:
    table = words({"train": {"steps": 1}}, {"stage": "b", "settings": {"kl": HINT}}, train={"steps": 2, "lr": 0.5})
    before = copy.deepcopy(table)

    def steps(*overrides: str) -> list[int]:
        return [one.train.steps for one in stages.expand(table, overrides)]

    assert steps() == [1, 2]
    assert steps("train.steps=7") == [7, 7]
    assert steps("stages[0].train.steps=5") == [5, 2]
    assert steps("stages.1.train.steps=5") == [1, 5]
    for both in (("train.steps=7", "stages[0].train.steps=5"), ("stages[0].train.steps=5", "train.steps=7")):
        assert steps(*both) == [5, 7]
    weights = ("stages[0].settings.kl.terms.0.weight=3", "seeds=[8]", "out=there", "stages[1].models.teacher=$previous")
    first, second = stages.expand(table, weights)
    assert (first.settings["kl"].terms[0].weight, second.settings["kl"].terms[0].weight) == (3, 1)
    assert first.seeds == second.seeds == (8,) and first.run_dir == "there/stages/stage-1"
    assert second.models.members[0].source == "$stage-1"
    assert len(stages.expand(table, ["stages=[{stage: only}]"])) == 1
    assert stages.expand(table, ["stages[0]={stage: other}", "stages[0].train.lr=3"])[0].train.lr == 3
    assert table == before, "the table that was given is as it was"


def test_overrides_do_not_go_into_a_table_that_a_stage_is_without() -> None:
    """`data.task.label=stars` is no wish for a task in a stage that reads running text."""
    general, task = {"data": {"task": None}}, {"kind": "classification", "label": "label"}
    table = words(general, {"stage": "b"}, {"stage": "c", "data": {"task": {"augment": None}}})
    table["data"] = table.get("data", {}) | {"task": task}
    overrides = ("data.task.label=stars", "data.task.augment.copies=2")
    first, second, third = stages.expand(table, overrides)
    assert first.data.task is None and second.data.task and third.data.task
    assert [second.data.task.label, third.data.task.label] == ["stars", "stars"]
    assert second.data.task.augment and second.data.task.augment.copies == 2 and third.data.task.augment is None
    first, *_ = stages.expand(table, [*overrides, "stages[0].data.task.kind=regression"])
    assert first.data.task and first.data.task.kind == "regression", "its own go where they say"


def test_a_single_stage_is_the_recipe_itself() -> None:
    (staged,) = stages.expand(words({"stage": "train", "train": {"steps": 3}}))
    (plain,) = stages.expand(
        {**{word: value for word, value in words().items() if word != "stages"}, "train": {"steps": 3}}
    )
    assert staged == plain


def test_what_a_run_writes_is_read_as_the_same(tmp_path: Path) -> None:
    models = {"teacher": "$previous", "student": {"init": "$a", "layers": 2}}
    found = stages.expand(
        words(
            {"stage": "a"}, {"stage": "b", "settings": {"h": KL}}, {"models": models}, seeds=[0, 1], out=str(tmp_path)
        )
    )
    for count in (1, 2, 3):
        path = tmp_path / "recipe.yaml"
        path.write_text(text(found[:count]), encoding="utf-8")
        again = stages.expand(path)
        assert again[-1] == found[count - 1], "a run's own recipe, and its folder"
        assert [one.model_copy(update={"out": None}) for one in again] == [
            one.model_copy(update={"out": None}) for one in found[:count]
        ]


# what is refused

A, B = {"stage": "a"}, {"stage": "b"}
REFUSED: list[tuple[Any, tuple[str, ...], str]] = [
    # the list
    (3, (), "tiny.yaml: stages: must be a list of tables, one for each stage, not 3"),
    ([], (), "tiny.yaml: stages: must be a list of tables"),
    ({"a": {}}, (), "tiny.yaml: stages: must be a list of tables"),
    ([3], (), "tiny.yaml: stages[0]: must be a table of keys and values, not 3"),
    ([A, "b"], (), "tiny.yaml: stages[1]: must be a table of keys and values, not 'b'"),
    ([A, B], ("stages=3",), "tiny.yaml: stages: must be a list"),
    ([A, B], ("stages[1]=3",), "tiny.yaml: stages[1]: must be a table"),
    # names
    ([A, A], (), "tiny.yaml: stages[1].stage: a: another stage has this name; choose another name"),
    ([A, {"stage": "stage-1"}, {}], ("stages[0].stage=stage-3",), "stages[2].stage: stage-3: another stage has this"),
    ([{"stage": "previous"}], (), "stages[0].stage: previous: $previous is the stage before; choose another name"),
    ([{"stage": "../a"}], (), "stages[0]: stage: '../a' is no name: use letters"),
    ([{"stage": 3}], (), "stages[0]: stage: must be text, not 3; put it in quotes"),
    # words of the whole
    ([A, {"out": "x"}], (), "tiny.yaml: stages[1].out: belongs to the whole; put it above the stages"),
    ([{"name": "x"}, B], (), "stages[0].name: belongs to the whole"),
    ([A, {"question": "x"}], (), "stages[1].question: belongs to the whole"),
    ([A, {"stages": []}], (), "stages[1].stages: belongs to the whole"),
    ([A, B], ("stages[1].out=x",), "stages[1].out: belongs to the whole"),
    ([A, {"train": {"threads": 2}}], (), "train.threads: the stages a and stage-2 have different ones"),
    ([A, {"train": {"device": "cuda"}}], (), "train.device: the stages a and stage-2 have different ones"),
    # unknown keys
    ([A, {"trian": {}}], (), "tiny.yaml: stages[1]: trian: unknown key; did you mean 'train'?"),
    ([A, {"train": {"stepz": 3}}], (), "tiny.yaml: stages[1]: train.stepz: unknown key; did you mean 'steps'?"),
    ([A, {"settings": {"x": {"terms": [{"loss": "mes"}]}}}], (), "stages[1]: settings.x.terms[0].loss: unknown loss 'mes'"),
    ([A, {"only": "nope"}], (), "stages[1]: only: there is no setting 'nope'"),
    ([A, B], ("stages[7].train.steps=3",), "stages[7].train.steps=3: there is no stage 7; the list has 2, counted from 0"),
    ([A, B], ("stages.0.train.stepz=3",), "stages[0]: train.stepz: unknown key; did you mean 'steps'?"),
    ([A, B], ("stages.0.trian.steps=3",), "stages[0]: trian.steps: there is no 'trian'; did you mean 'train'?"),
    ([A, B], ("stages.x.train.steps=3",), "stages.x.train.steps: there is no element 'x'; the list has 2"),
    ([A, B], ("stages[0].train.steps",), "stages[0]: 'train.steps' is no override; write key=value"),
    ([A, {"settings": {"h": HINT}}], ("settings.multi.terms.0.weight=2",), "stages[1]: settings.multi.terms.0.weight: there is"),
    # references
    ([{"models": INIT}], (), "tiny.yaml: stages[0]: $previous, but no stage is before this one; name a model"),
    ([A, B], ("models.teacher=$previous",), "stages[0]: $previous, but no stage is before this one"),
    ([{"models": {"teacher": "$b"}}, B], (), "stages[0]: models.teacher: '$b' is the student of a stage, and none is before"),
    ([{"stage": "hints"}, {"models": {"teacher": "$hint"}}], (), "'$hint': no stage before is named so; did you mean 'hints'?"),
    ([A, {"models": {"teachers": {"x": "$stage-2"}}}], (), "stages[1]: models.teachers.x: '$stage-2': no stage before is"),
    ([A, {"models": {"student": {"init": "$"}}}], (), "stages[1]: models.student.init: '$': no stage before is named so"),
    ([A, {"models": {"teacher": "$a@v2"}}], (), "stages[1]: models.teacher: '$a' has no revisions; leave @v2 out"),
    (
        [A, {"models": {"teacher": {"ensemble": ["$a", "$c"]}}, "settings": {"logit": KL}}],
        (),
        "models.teacher: '$c': no stage before",
    ),
    (
        [A, {"models": {"teacher": "$a"}, "settings": {"other": KL}}],
        (),
        "models.teacher: the stage a trained logit, multi and no other; say which one other takes, such as $a/logit",
    ),
    (
        [A, {"models": {"teacher": "$a/mutli"}}],
        (),
        "models.teacher: the stage a trained logit, multi and no mutli; did you mean 'multi'?, such as $a/logit",
    ),
    (
        [{**A, "seeds": [0, 1]}, {"seeds": [0, 2], "models": INIT}],
        (),
        "stages[1]: models.student.init: stage a has no seed 2; give both stages the same seeds",
    ),
    # what needs the models
    (
        [A, {"models": {"student": {"init": "$a", "hidden": 20}}}],
        (),
        "hidden",
    ),
    ([A, {"models": {"student": {"init": "$a", "family": "gpt2"}}}], (), "a gpt2 student cannot"),
    ([A, {"models": {"teacher": "foreign", "student": {"init": "$a"}}}], (), "$a learned another vocabulary than"),
    ([A, {"models": {"teacher": {"ensemble": ["$a", "foreign"]}}, "settings": {"logit": KL}}], (), "another vocabulary than"),
    ([A, {"models": {"student": {"tokenizer": "foreign"}}}], (), "disagree at token"),
    ([A, {"data": {"corpus": "nope.txt"}}], (), "nope.txt: no such file or folder"),
    ([A, {"data": {"max_length": 33}}], (), "data.max_length: 33 tokens are more than the 32 positions"),
    ([A, {"train": {"batch_size": 4, "accumulate": 3}}], (), "train.batch_size: 4 blocks cannot be split"),
    ([A, {"models": {"teacher": "nowhere"}}], (), "nowhere: no such model folder"),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a corpus, and a teacher of another vocabulary."""
    folder = lay_out(tmp_path_factory.mktemp("world"))
    (folder / "foreign").mkdir()
    for path in (folder / "teacher").iterdir():
        content = path.read_bytes()
        (folder / "foreign" / path.name).write_bytes(
            content.replace(b'"ba"', b'"xx"') if path.name.startswith("tok") else content
        )
    assert {"ba"} <= set(WORDS) and "xx" not in (*WORDS, *SPECIALS)
    return folder


@pytest.fixture
def limbeck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world: Path) -> Callable[..., Any]:
    """Runs a command on a staged recipe in this process: (status, standard output, standard error)."""
    monkeypatch.chdir(world)

    def command(listed: Any, *given: str, **more: Any) -> tuple[int, str, str]:
        table = recipe(world, world / "run") | {"stages": listed} | more
        (world / "tiny.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
        return answer(monkeypatch, capsys, *given)

    return command


@pytest.mark.parametrize(("listed", "overrides", "message"), REFUSED, ids=[message[-60:] for _, _, message in REFUSED])
def test_mistakes(listed: Any, overrides: tuple[str, ...], message: str, limbeck: Any, world: Path) -> None:
    """One line, exit status 2, from `check` and from `run` alike, before anything is trained or written."""
    for command in ("check", "run"):
        status, out, err = limbeck(listed, command, "tiny.yaml", *overrides)
        assert (status, out) == (2, "")
        *notes, line = err.splitlines()
        assert line.startswith("limbeck: error: ") and message in line and len(line) < 450
        assert "stage 1" not in "".join(notes), "the first stage has not begun"
    assert not (world / "run").exists()


def test_a_mistake_in_the_shared_words_is_theirs(limbeck: Any) -> None:
    for more, overrides, message in (
        ({"train": {"stepz": 3}}, (), "error: tiny.yaml: train.stepz: unknown key"),
        ({"trian": {}}, (), "error: tiny.yaml: trian: unknown key"),
        ({"seeds": 3}, (), "error: tiny.yaml: seeds: must be a list"),
    ):
        status, _, err = limbeck([A, B], "check", "tiny.yaml", *overrides, **more)
        assert status == 2 and message in err


def test_a_name_and_stages_are_needed() -> None:
    nameless = {word: value for word, value in words(A).items() if word != "name"}
    with pytest.raises(UserError, match="recipe: name: missing; set it"):
        stages.expand(nameless)
    assert stages.expand(nameless, ["name=x"])[0].run_dir == "runs/x"
    with pytest.raises(
        UserError, match=r"stages\[0\]: models.teacher: '\$a' is the student of a stage, and none is before"
    ):
        stages.expand(words(A, B, models={"teacher": "$a"}))
    for recipe_without, overrides, message in (
        (
            "quickstart",
            ["stages[0].train.steps=3"],
            r"stages\[0\].train.steps: quickstart has no stages; leave the prefix",
        ),
        ("quickstart", ["models.teacher=$previous"], r"'\$previous' is the student of a stage, and none is before"),
        ("quickstart", ["models.student.init=$x"], r"quickstart: models.student.init: '\$x' is the student of a stage"),
    ):
        with pytest.raises(UserError, match=message):
            stages.expand(recipe_without, overrides)


def test_a_recipe_alone_refers_to_no_stage() -> None:
    import limbeck as package

    one = Recipe.model_validate({"name": "x", "models": {"teacher": "$x"}, "settings": {"kl": KL}})
    with pytest.raises(UserError, match=r"models.teacher: '\$x' is the student of a stage, and none is before"):
        package.run(one, quiet=True)


# what is said of them


def test_check_shows_every_stage(limbeck: Any, world: Path) -> None:
    listed = [
        {**A, "settings": {"multi": HINT}},
        {**B, "models": {"teacher": "$a", "student": {"layers": 1, "init": "$a"}}, "settings": {"multi": KL}},
    ]
    status, out, err = limbeck(listed, "check", "tiny.yaml", question="Do hints help?")
    assert (status, err) == (0, "")
    first, second = out.split("stage b\n")
    assert first.splitlines()[0] == "tiny: Do hints help?, stage a"
    for page, said in (
        (first, ["teacher bert 4 24", "student bert 2 16", "multi hidden mse 1 2 of 16->24 1<-2 2<-4", "ok"]),
        (second, ["teacher bert 2 16", "student bert 1 16", "multi logit forward_kl 1", "ok",
                  "teacher is the student of $a", "student begins as the student of $a"]),
    ):  # fmt: skip
        lines = [" ".join(line.split()) for line in page.splitlines()]
        for words_ in said:
            assert any(line.startswith(words_) for line in lines), words_
    assert not (world / "run").exists()


def test_check_stops_where_a_download_is_due(limbeck: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "model", lambda name, revision: hub.Answer("c" * 40))
    far = {"models": {"teacher": "org/no-such-model"}}
    for listed, pages in (([{**A, **far}, {**B, "models": INIT}], 1), ([A, {**B, **far}, {**far}], 2)):
        status, out, _ = limbeck(listed, "check", "tiny.yaml")
        assert status == 0
        assert sum(line.startswith("ok") for line in out.splitlines()) == pages
        assert out.splitlines()[-2].split() == ["a", "run", "downloads", "org/no-such-model"]
        assert out.splitlines()[-1].split(maxsplit=1) == ["ok", "checked up to the download"]


# the schema


def test_the_schema_knows_stages() -> None:
    schema = json.loads(json.dumps(arms.schema()))
    staged = words({"stage": "a", "train": {"steps": 3}}, {"models": INIT, "data": {"task": {"label": "x"}}})
    good = [yaml.safe_load(path.read_text()) for path in built_in().values()]
    shared = {word: value for word, value in staged.items() if word != "settings"}
    own = shared | {"stages": [{"settings": {"kl": KL}}]}
    for table in (*({"name": "x", **one} for one in good), staged, own, stages.dump(stages.expand(words({}, {})))):
        assert fits(json.loads(json.dumps(table)), schema, schema["$defs"]), table
    bad = [
        {word: value for word, value in shared.items() if word != "stages"},
        staged | {"stages": []},
        staged | {"stages": [{"trian": {}}]},
        staged | {"stages": [{"train": {"stepz": 3}}]},
        staged | {"stages": [{"out": "x"}]},
        staged | {"stages": [3]},
        staged | {"trian": {}},
        staged | {"models": {"teacher": {"revision": "v2"}}},
    ]
    for table in bad:
        assert not fits(table, schema, schema["$defs"]), table
