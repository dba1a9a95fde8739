"""From a file and a command line to a recipe, or to one line that says what is wrong, where, and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel import GIVEN

from limbeck.errors import UserError
from limbeck.models.pretrained import HUB_ID
from limbeck.recipe.arms import asked, placed_all
from limbeck.recipe.identity import identity, text
from limbeck.recipe.load import built_in, load
from limbeck.recipe.stages import placed_sources
from limbeck.running.changes import changed_keys

FILES: list[tuple[bytes, str]] = [
    (b"", "a recipe is a table of keys and values"),
    (b"- 1\n- 2", "a recipe is a table of keys and values"),
    (b"hello", "a recipe is a table of keys and values"),
    (b"a: [1,\n b: }", "not YAML: line 2, column 5"),
    (bytes(range(256)), "not YAML"),
    (b"a: \x00", "not YAML"),
    (b"[" * 3000, "not YAML"),
    (b"a: " + b"9" * 5000, "not YAML"),
    (b"name: 2024-13-45", "not YAML: line 1, column 7: '2024-13-45' is no timestamp"),
    (b"? [1, 2]\n: 3", "not YAML: line 1, column 3: found unhashable key"),
    (b"name: !!python/object/apply:os.system [ls]", "not YAML: line 1, column 7"),
    (b"name: a\nname: b", "line 2, column 1: 'name' stands twice"),
    (b"train:\n  lr: 1\n  lr: 2", "line 3, column 3: 'lr' stands twice"),
    (b"1: 2\n", "[1]: is no key of a recipe; keys are text"),
    # what newcomers do to a file
    (b"name: x\nmodels\n  teacher: embedded\n", "line 3, column 10: a ':' is missing here or on the line before"),
    (b"name: x\nmodels:\n\tteacher: embedded\n", "line 3, column 1: a tab; indent with spaces"),
    (b"a:\n  b: 1\n c: 2\n", "line 3, column 2: indented otherwise than the keys beside it"),
    (b"a: {b: 1\nc: 2\n", "line 2, column 2: a ',' or '}' is missing before this place"),
    (b"a: [1, 2\nc: 2\n", "a ',' or ']' is missing before this place"),
    (b'name: "x\n', "a quotation mark is not closed"),
    (b"a: b: c\n", "line 1, column 5: a ':' where none can stand"),
    (b"a: \xff\xfe", "not YAML: no text in UTF-8"),
    (
        b"models:\n  teacher:embedded\n",
        "models: must be a table of keys and values, not 'teacher:embedded'; write a space",
    ),
    (
        b"settings: {a: [{loss: mse}]}",
        "settings.a: must be a table of keys and values, not [{'loss': 'mse'}]; write `terms:` before it",
    ),
    (
        b"settings: {a: {terms: {loss: mse}}}",
        "settings.a.terms: must be a list such as [1, 2], not {'loss': 'mse'}; put '- ' before it",
    ),
    (b"terms: [{loss: mse}]", "terms: unknown key; did you mean 'settings'?"),
    (b"models: {teacher: embedded}", "settings: missing; set it"),
    (b"models: {teacher: embedded}\nsettings: {1: {terms: [{loss: forward_kl}]}}", "settings[1]: must be text, not 1"),
    (b"settings: &a {multi: *a}", "too large; a recipe has at most"),
]

OVERRIDES = [
    # no override at all
    ("train.lr", "'train.lr' is no override; write key=value"),
    ("=3", "is no override"),
    ("train..lr=1", "is no override"),
    (".lr=1", "is no override"),
    ("train.lr=[1", "train.lr: '[1' is not YAML: line 1, column 3"),
    # unknown keys, at every level
    ("trian.lr=1", "there is no 'trian'; did you mean 'train'?"),
    ("trian=1", "trian: unknown key; did you mean 'train'?"),
    ("lr=1", "lr: unknown key; did you mean 'train.lr'?"),
    ("stpes=1", "stpes: unknown key; did you mean 'train.steps'?"),
    ("epochs=1", "epochs: unknown key; did you mean 'train.steps'?"),
    ("corpus=docs", "corpus: unknown key; did you mean 'data.corpus'?"),
    ("output_dir=x", "output_dir: unknown key; did you mean 'out'?"),
    ("train.lerning_rate=1", "train.lerning_rate: unknown key; did you mean 'lr'?"),
    ("models.student.head=3", "models.student.head: unknown key; did you mean 'heads'?"),
    ("models.techer=embedded", "models.techer: unknown key; did you mean 'teacher'?"),
    ("models.teacher.revison=3", "models.teacher.revison: unknown key; did you mean 'revision'?"),
    ("data.masking.mod=none", "data.masking.mod: unknown key; did you mean 'mode'?"),
    ("data.maskin.mode=none", "there is no 'maskin'; did you mean 'masking'?"),
    ("settings.mulit.terms.0.weight=1", "there is no 'mulit'; did you mean 'multi'?"),
    ("settings.multi.term=[]", "settings.multi.term: unknown key; did you mean 'terms'?"),
    (
        "settings.multi.terms.0.temprature=2",
        "settings.multi.terms[0].temprature: unknown key for the loss forward_kl; did",
    ),
    (
        "settings.multi.terms[1].temprature=2",
        "settings.multi.terms[1].temprature: unknown key for the loss mse; known",
    ),
    ("settings.multi.terms.1.loss=mes", "settings.multi.terms[1].loss: unknown loss 'mes'; did you mean 'mse'?"),
    ("settings.multi.terms.1.tap=hiden", "settings.multi.terms[1].tap: unknown tap 'hiden'; did you mean 'hidden'?"),
    ("settings.multi.terms.2.layers=unifrom", "unknown layer map 'unifrom'; did you mean 'uniform'?"),
    ("models.student.family=brt", "unknown model family 'brt'; did you mean 'bert'?"),
    ("ünï=1", "ünï: unknown key"),
    # wrong places
    ("train.lr.x=1", "train.lr.x: 'x' cannot stand below a single value"),
    ("settings.multi.terms.9.weight=1", "there is no element '9'; the list has 4, counted from 0"),
    ("settings.multi.terms.x.weight=1", "there is no element 'x'"),
    # wrong values
    ("only=[nope]", "only: there is no setting 'nope'; known: labels, logit, multi"),
    ("only=nope", "only: there is no setting 'nope'"),
    ("only=[]", "only: is empty; give at least one"),
    ("seeds=3", "seeds: must be a list: seeds=[3] for the seed 3, seeds=[0,1,2] for three seeds"),
    ("seeds=[]", "seeds: is empty; give at least one"),
    ("seeds=[0,0]", "seeds: one seed stands twice"),
    ("seeds=[-1]", "seeds[0]: must be at least 0, not -1"),
    ("seeds=[x]", "seeds[0]: must be a whole number, not 'x'"),
    ("train.steps=1.5", "train.steps: must be a whole number, not 1.5"),
    ("train.steps=true", "train.steps: true is no value here"),
    ("train.lr=0", "train.lr: must be above 0, not 0"),
    ("train.lr=3e-4x", "train.lr: must be a number, not '3e-4x'"),
    ("train.betas=[0.9]", "train.betas[1]: missing; set it"),
    ("train.betas=0.9", "train.betas: must be a list such as [1, 2], not 0.9"),
    ("train.precision=fp16", "train.precision: must be 'auto', 'fp32', 'bf16' or 'fp64', not 'fp16'"),
    ("train.device=cdua", "train.device: unknown device 'cdua'; write auto, cpu, cuda"),
    ("train=3", "train: must be a table of keys and values, not 3"),
    ("data.corpus=", "data.corpus: must be text, not nothing; set it"),
    ("data.corpus=''", "data.corpus: is empty; set it"),
    ("data.corpus=3", "data.corpus: must be text, not 3; put it in quotes"),
    ("data.max_length=3", "data.max_length: must be at least 4, not 3"),
    ("data.masking.mode=none", "data.positions: masked needs masking"),
    ("data.heldout=2", "data.heldout: must be below 1, not 2"),
    ("models.student.heads=7", "models.student.heads: 7 heads do not divide the width 128; choose heads that do"),
    ("settings.multi.terms=[]", "settings.multi.terms: is empty; give at least one"),
    ("settings.multi.terms=[3]", "settings.multi.terms[0]: must be a table of keys and values, not 3"),
    ("settings.multi.terms.2.layers={}", "settings.multi.terms[2].layers: is empty; give at least one"),
    (
        "settings.multi.terms.2.layers={x: 2}",
        "settings.multi.terms[2].layers.x: must be a whole number or 'last', not 'x'",
    ),
    ("settings.multi.terms.1.layers={1: 2}", "settings.multi.terms[1].layers: the tap embedding has no layers"),
    (
        "settings.multi.terms.0.projection=shared",
        "settings.multi.terms[0].projection: the loss forward_kl needs no projection",
    ),
    ("settings.multi.terms.1.name=hidden", "settings.multi.terms: two terms are named 'hidden'"),
    ("settings.multi.terms.1.loss=forward_kl", "[1].tap: the loss forward_kl compares logits, not embedding"),
    ("settings.multi.terms.2.weight={start: 1}", "settings.multi.terms[2].weight.end: missing; set it (and 1 more)"),
    ("settings.multi.terms.2.weight=.nan", "settings.multi.terms[2].weight: must be a finite number, not nan"),
    ("settings.multi.terms.2.weight=-1", "settings.multi.terms[2].weight: must be at least 0, not -1"),
    ("settings.multi.terms.2.weight=x", "weight: must be a number or a table of keys and values, not 'x'"),
    ("name=2024-01-01", "name: must be text"),
]


def mistake(recipe: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(recipe, overrides)
    message = str(caught.value)
    assert message.isprintable(), "one line"
    assert len(message) < 450
    return message


@pytest.mark.parametrize(("content", "message"), FILES, ids=[repr(content[:20]) for content, _ in FILES])
def test_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    said = mistake(str(path))
    assert said.startswith(str(path))
    assert message in said


@pytest.mark.parametrize(("override", "message"), OVERRIDES, ids=[override for override, _ in OVERRIDES])
def test_overrides(override: str, message: str) -> None:
    assert message in mistake("quickstart", override)


@pytest.mark.parametrize("name", ["quikstart", "nope.yaml", "a\0b", "x" * 5000, "two\nlines"])
def test_no_such_recipe(name: str) -> None:
    mistake(name)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert "a folder, not a recipe" in mistake(str(tmp_path))


def test_a_near_name_is_offered() -> None:
    assert mistake("quikstart").endswith("did you mean 'quickstart'?")


def test_precedence_is_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    settings = "settings: {a: {terms: [{loss: forward_kl}]}}"
    path.write_text(f"models: {{teacher: embedded}}\ntrain: {{lr: 1e-5, steps: 5}}\n{settings}", encoding="utf-8")
    recipe = load(path, ["train.steps=1e2", "settings.a.terms[0].weight=3", "data.masking.mode=static"])
    assert (recipe.name, recipe.train.lr, recipe.train.steps, recipe.train.batch_size) == ("mine", 1e-5, 100, 32)
    assert recipe.settings["a"].terms[0].weight == 3
    assert recipe.data.masking.mode == "static"


def test_an_override_leaves_the_given_table_alone() -> None:
    table = {"name": "a", "models": {"teacher": "org/name"}, "settings": {"a": {"terms": [{"loss": "forward_kl"}]}}}
    before = repr(table)
    teacher = load(table, ["models.teacher.revision=v2", "train.steps=3"]).models.teacher
    assert teacher is not None
    assert (teacher.source, teacher.revision) == ("org/name", "v2")
    assert repr(table) == before


def test_built_in_recipes_begin_with_what_they_are() -> None:
    for path in built_in().values():
        assert path.read_text(encoding="utf-8").startswith("# ")
        assert all(arm.last.name == path.stem for arm in asked(path.stem, GIVEN.get(path.stem, ())).arms())


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_recipe_leaves_to_its_user_is_asked_for_in_one_line(name: str) -> None:
    said = r"models\.teacher=\.\.\. \(a causal model: a folder or a Hub id\)"
    with pytest.raises(
        UserError, match=rf"^{name}: it leaves to you .*; give {said} and data\.corpus=\.\.\. \(text: .*\)$"
    ):
        asked(name).arms()
    with pytest.raises(UserError, match=rf"^{name}: .*; give {said}$"):
        asked(name, ["data.corpus=docs"]).arms()


def test_every_other_built_in_recipe_runs_as_shipped() -> None:
    for name in built_in().keys() - GIVEN.keys():
        for table in (table for arm in asked(name).arms() for table in arm.tables):
            named = [source.source for _, source in placed_sources(table)]
            assert all(it == "embedded" or HUB_ID.fullmatch(it) or it.startswith("$") for it in named), name
            heldout = [table.data.heldout] if isinstance(table.data.heldout, str) else []
            texts = [spec for whole in [table.data.corpus, *heldout] for spec in whole.split(" + ")]
            assert all(spec == "docs" or spec.startswith("hub:") for spec in texts), name


def test_a_comparison_has_something_to_compare_with() -> None:
    first, second = asked("fitnets").arms()[0].tables
    assert list(first.settings) == list(second.settings) == ["hint", "logit"]
    assert first.settings["logit"] == second.settings["logit"] == second.settings["hint"]


def placed(path: Path, name: str, more: str = "") -> Path:
    """A copy of `quickstart` under another file name, which keeps the recipe's own."""
    file = path / name
    file.write_text(built_in()["quickstart"].read_text(encoding="utf-8") + more, encoding="utf-8")
    return file


def test_a_file_runs_in_a_folder_of_its_own_name(tmp_path: Path) -> None:
    mine = asked(str(placed(tmp_path, "mine.v2.yaml"))).arms()[0].last
    built = asked("quickstart").arms()[0].last
    assert (mine.run_dir, mine.name) == ("runs/mine.v2", "quickstart")
    assert built.run_dir == "runs/quickstart"
    assert identity(mine) == identity(built)
    assert load(placed(tmp_path, "a.yaml", "\nout: elsewhere\n")).run_dir == "elsewhere"
    assert load(tmp_path / "a.yaml", ["out=there"]).run_dir == "there"
    assert (
        load(
            {"name": "x", "settings": {"a": {"terms": [{"loss": "forward_kl"}]}}, "models": {"teacher": "embedded"}}
        ).run_dir
        == "runs/x"
    )


def test_a_dumped_recipe_goes_on_where_its_run_lies(tmp_path: Path) -> None:
    for recipe in ("quickstart", str(placed(tmp_path, "mine.yaml"))):
        whole = asked(recipe).arms()[0]
        (tmp_path / "recipe.yaml").write_text(text(whole.tables), encoding="utf-8")
        assert asked(str(tmp_path / "recipe.yaml")).arms()[0].last.run_dir == whole.last.run_dir


def test_stages_and_arms_of_a_file_lie_in_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(built_in()["fitnets"].read_text(encoding="utf-8"), encoding="utf-8")
    assert [one.run_dir for one in asked(str(file)).arms()[0].tables] == ["runs/mine/stages/hints", "runs/mine"]
    several = asked(str(placed(tmp_path, "two.yaml")), ["vary={train.lr: [1e-3, 1e-4]}"]).arms()
    found = placed_all(several, Path(several[0].last.run_dir))
    assert [arm.last.run_dir for arm in found] == ["runs/two/arms/01", "runs/two/arms/02"]


def test_a_file_after_which_no_folder_can_be_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a run directory cannot be named after this file; rename it"):
        load(placed(tmp_path, "..yaml"))


def test_the_home_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    placed(tmp_path, "mine.yaml")
    assert load("~/mine.yaml", ["out=~/dir"]).run_dir == str(tmp_path / "dir")
    with pytest.raises(UserError, match="out: '~nobody-here/x': there is no such home; write the whole path"):
        load("quickstart", ["out=~nobody-here/x"])
    with pytest.raises(UserError, match=r"'~nobody-here/mine\.yaml': there is no such home"):
        load("~nobody-here/mine.yaml")


def test_a_setting_that_is_new_is_named_once(tmp_path: Path) -> None:
    one, other = (asked("quickstart", words).arms()[0] for words in ([], ["ablate=terms"]))
    (tmp_path / "recipe.yaml").write_text(text(one.tables), encoding="utf-8")
    changes = changed_keys(tmp_path, {"recipe_sha256": identity(one.last)}, other.last)
    assert "settings.multi-without-logit (nothing then, 'a setting' now)" in changes.harmful
    assert len(changes.harmful) == len(other.last.settings) - len(one.last.settings)


def test_a_file_that_is_nearly_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed(tmp_path, "mine.yaml")
    monkeypatch.chdir(tmp_path)
    for name, said in {
        "mine.yml": "did you mean 'mine.yaml'?",
        f"{tmp_path}/mne.yaml": f"did you mean '{tmp_path}/mine.yaml'?",
        "quikstart": "did you mean 'quickstart'?",
        "zzz": "`limbeck recipes` lists the built-in ones",
    }.items():
        with pytest.raises(UserError) as caught:
            load(name)
        assert str(caught.value) == f"{name}: no such file, and no built-in recipe of that name; {said}"
