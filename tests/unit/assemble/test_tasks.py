"""What a task makes of configs, classes and terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from families import CONFIGS
from kernel import tokenizer as words_only
from rows import FAMILIES, bare, classifier, config, framed, recipe, sentence, small, table
from torch import nn

from limbeck.assemble import costs, design, tasks
from limbeck.assemble.study import World, build_study
from limbeck.assemble.text import feed_of, read_text
from limbeck.errors import UserError
from limbeck.families import family
from limbeck.models import pretrained
from limbeck.models.pretrained import NotDownloaded
from limbeck.recipe.data import Data
from limbeck.recipe.load import load
from limbeck.recipe.models import Source

# what a task makes of configs


def data(**task: Any) -> Data:
    return Data.model_validate({"corpus": "nowhere.tsv", "task": {"kind": "classification", **task}})


def given(said: Data, teachers: Mapping[str, Any] = {}, mine: Any = None, **how: Any) -> Any:
    """The student's config after the task."""
    mine = CONFIGS["bert"]() if mine is None else mine
    tasks.give(said, mine, teachers, framed(), framed(), **how)
    return mine


def named(*names: str) -> Any:
    made = config("bert", len(names))
    made.id2label = dict(enumerate(names))
    return made


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value) and ";" in str(caught.value), "one line, with a remedy"
    return str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_students_config(name: str) -> None:
    made = CONFIGS[name]()
    made.classifier_dropout = 0.1 if hasattr(made, "classifier_dropout") else None
    given(data(classes=["bad", "good", "middling"]), mine=made)
    assert made.num_labels == 3 and made.id2label == {0: "bad", 1: "good", 2: "middling"}
    assert made.label2id == {"bad": 0, "good": 1, "middling": 2}
    assert made.problem_type == "single_label_classification" and made.pad_token_id == 0
    assert not any(getattr(made, word, None) for word in ("classifier_dropout", "seq_classif_dropout"))
    given(data(kind="regression"), mine=made)
    assert made.num_labels == 1 and made.problem_type == "regression" and made.id2label == {0: "score"}


def test_running_text_leaves_a_language_model() -> None:
    made = named("bad", "good")
    given(Data(corpus="nowhere.txt"), mine=made)
    assert made.problem_type is None
    assert pretrained.kind_of(made) is pretrained.AutoModelForMaskedLM


def test_padding_is_no_token_at_which_a_row_ends() -> None:
    assert tasks.padding(framed()) == 0 == tasks.padding(words_only())
    assert tasks.padding(bare()) == 2, "the end of text"
    assert tasks.padding(bare("<s>", "$A")) == 2
    assert tasks.padding(bare("<s>", "$A", "</s>")) == 1, "rows end with the end of text: the beginning"
    assert tasks.padding(bare("$A", "</s>")) == 1


def test_classes_of_the_recipe_of_the_teacher_and_of_the_rows(tmp_path: Path) -> None:
    stated = data(classes=["no", "yes"])
    assert list(given(stated).id2label.values()) == ["no", "yes"]
    assert list(given(data(), {"teacher": named("no", "yes")}).id2label.values()) == ["no", "yes"]
    others = {"teacher": named("LABEL_0", "LABEL_1"), "second": named("no", "yes")}
    assert list(given(data(), others).id2label.values()) == ["no", "yes"], "of the first teacher that names them"
    rows = [{"sentence": sentence(i), "label": ("b", "a", "c")[i % 3]} for i in range(12)]
    said = {"corpus": str(table(tmp_path / "train.tsv", rows)), "heldout": 0.3, "cache": str(tmp_path / "cache")}
    found = Data.model_validate(said | {"task": {"kind": "classification"}})
    assert list(given(found).id2label.values()) == ["a", "b", "c"], "sorted"
    nameless = {"teacher": named("LABEL_0", "LABEL_1", "LABEL_2")}
    assert list(given(found, nameless).id2label.values()) == ["a", "b", "c"], "its logits are taken to be in that order"
    two = {"teacher": named("LABEL_0", "LABEL_1")}
    assert "(2 and 3); name all data.task.classes in the order of its logits" in refused(lambda: given(found, two))


def test_without_labels_the_classes_of_a_teacher_need_no_names() -> None:
    made = given(data(label=None), {"teacher": named("LABEL_0", "LABEL_1")})
    assert list(made.id2label.values()) == ["LABEL_0", "LABEL_1"]


def test_names_that_a_file_holds_sorted_as_text() -> None:
    """10 before 2 in config.json: logits are in the order of the numbers."""
    teacher = named(*(f"class {number}" for number in range(12)))
    teacher.id2label = {int(key): f"class {key}" for key in sorted(map(str, range(12)))}
    made = given(data(), {"teacher": teacher})
    assert list(made.id2label.values()) == [f"class {number}" for number in range(12)]


def test_the_rows_may_call_the_classes_otherwise() -> None:
    """A teacher of NEGATIVE and POSITIVE, and rows with 0 and 1: the recipe says which is which."""
    teacher = {"teacher": named("NEGATIVE", "POSITIVE")}
    assert list(given(data(classes=["0", "1"]), teacher).id2label.values()) == ["0", "1"]
    assert list(given(data(classes=["negative", "positive"]), teacher).id2label.values()) == ["negative", "positive"]
    said = refused(lambda: given(data(classes=["positive", "negative"]), teacher))
    assert said.startswith("models.teacher: it predicts NEGATIVE, POSITIVE, and the task has positive, negative; name ")
    both = teacher | {"second": named("0", "1")}
    assert refused(lambda: given(data(), both)).startswith("models.second: it predicts 0, 1, and the task has NEGATIVE")


@pytest.mark.parametrize(
    ("classes", "theirs"),
    [
        (("a", "b"), ("b", "a")),
        (("a", "b", "c"), ("a", "c", "b")),
        (("a", "b"), ("a", "c")),
        (("a", "b"), ("a", "b", "c")),
    ],
)
def test_classes_in_another_order_or_number(classes: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    said = refused(lambda: given(data(classes=list(classes)), {"teacher": named(*theirs)}))
    assert said.startswith(f"models.teacher: it predicts {', '.join(theirs)}, and the task has {', '.join(classes)}")
    assert said.endswith("data.task.classes in the order of its logits")


def test_a_score_has_any_name() -> None:
    """The one logit of a regression is LABEL_0, similarity, or what its maker liked."""
    for name in ("LABEL_0", "similarity", "score"):
        teacher = named(name)
        assert teacher.problem_type == "regression"
        assert given(data(kind="regression"), {"teacher": teacher}).num_labels == 1
    two = named("height", "width")
    two.problem_type = "regression"
    said = refused(lambda: given(data(kind="regression"), {"teacher": two}))
    assert "(2 and 1); take another" in said


def test_teachers_that_do_not_fit_the_task() -> None:
    language, many = CONFIGS["bert"](), named("a", "b")
    language.problem_type, many.problem_type = None, "multi_label_classification"
    said = refused(lambda: given(data(), {"teacher": language}))
    assert said.startswith("models.teacher: a language model, which predicts no class yet; fine-tune it first")
    said = refused(lambda: given(data(kind="regression"), {"teacher": language}))
    assert "predicts no score yet" in said
    said = refused(lambda: given(data(), {"teacher": many}))
    assert said == "models.teacher: made for multi_label_classification, and the task is a classification; take another"
    said = refused(lambda: given(data(kind="regression"), {"teacher": named("a", "b")}))
    assert "made for single_label_classification, and the task is a regression" in said
    said = refused(lambda: given(Data(corpus="nowhere.txt"), {"other": named("a", "b")}))
    assert said.startswith("models.other: a classifier of rows, and the data are running text; set data.task")
    assert refused(lambda: given(Data(corpus="nowhere.txt"), {"other": many})).startswith("models.other: a classifier")


def test_rows_on_the_hub_are_not_asked_by_a_check() -> None:
    far = Data.model_validate({"corpus": "hub:nyu-mll/glue:sst2", "task": {"kind": "classification"}})
    with pytest.raises(NotDownloaded, match=r"name them in data\.task\.classes"):
        given(far, offline=True)
    assert given(far, {"teacher": named("a", "b")}, offline=True).num_labels == 2


# what a task makes of a recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, a scorer, a language model, each with its tokenizer, and rows for them."""
    folder = tmp_path_factory.mktemp("world")
    kinds = {"classifier": small(classes=2), "scorer": small(classes=1), "language": small()}
    for name, model in kinds.items():
        model.save_pretrained(folder / name)
        framed().save_pretrained(folder / name)
    rows = [{"sentence": sentence(i), "label": i % 2, "score": i / 7} for i in range(40)]
    table(folder / "rows" / "train.tsv", rows[:30])
    table(folder / "rows" / "dev.tsv", rows[30:])
    return folder


def plan(world: Path, loss: str | dict[str, Any], teacher: str | None = "classifier", **more: Any) -> design.Design:
    task = {"kind": "classification"} | more.pop("task", {})
    who = {"teacher": str(world / teacher)} if teacher else {}
    who |= {"student": more.pop("student", {"init": str(world / "language")} if not teacher else {})}
    said = recipe({"corpus": str(world / "rows"), "task": task}, who, world / "run", "forward_kl")
    said["settings"] = {"a": {"terms": [{"loss": loss} if isinstance(loss, str) else loss]}}
    return design.design(load(said | more))


SCORE = {"kind": "regression", "label": "score"}


@pytest.mark.parametrize(
    ("teacher", "task", "loss", "said"),
    [
        (
            "scorer",
            SCORE,
            "forward_kl",
            "a score is no distribution; use logit_mse or squared_error in place of forward_kl",
        ),
        ("scorer", SCORE, "cross_entropy", "a score is no distribution; use logit_mse or squared_error"),
        ("classifier", {}, "squared_error", "squared_error learns scores; use cross_entropy for classes"),
        (
            "classifier",
            {"label": None},
            "cross_entropy",
            "cross_entropy learns labels, and data.task.label is null; name",
        ),
        (
            "classifier",
            {"label": None},
            "decoupled_kl",
            "decoupled_kl learns labels, and data.task.label is null; name",
        ),
        (
            "scorer",
            SCORE | {"label": None},
            "squared_error",
            "squared_error learns labels, and data.task.label is null",
        ),
    ],
)
def test_losses_that_do_not_fit_the_task(world: Path, teacher: str, task: dict[str, Any], loss: str, said: str) -> None:
    assert f"settings.a.logit: {said}" in refused(lambda: plan(world, loss, teacher, task=task))


def test_a_score_is_no_loss_of_running_text(world: Path) -> None:
    said = recipe({"corpus": "nowhere.txt"}, {"teacher": str(world / "language")}, world / "run", "squared_error")
    error = refused(lambda: design.design(load(said)))
    assert error == "settings.a.logit: squared_error learns scores; use cross_entropy for classes and tokens"


def test_losses_that_fit(world: Path) -> None:
    assert plan(world, "logit_mse", "scorer", task=SCORE).classes == ()
    assert plan(world, "squared_error", None, task=SCORE).student.problem_type == "regression"
    assert plan(world, "forward_kl").classes == ("0", "1")
    assert plan(world, "cross_entropy", None).classes == ("0", "1")
    assert plan(world, {"loss": "mse", "tap": "hidden"}, "scorer", task=SCORE).classes == ()


def test_embeddings_of_other_sizes_cut_no_class(tmp_path: Path) -> None:
    """A vocabulary that a student pads otherwise is no matter of its three classes."""
    rows = [{"sentence": sentence(i), "label": i % 3} for i in range(20)]
    corpus = str(table(tmp_path / "rows.tsv", rows))
    for name, size in (("teacher", 64), ("origin", 72)):
        model = small(classes=3)
        model.resize_token_embeddings(size)
        model.save_pretrained(tmp_path / name)
        framed().save_pretrained(tmp_path / name)
    who = {"teacher": str(tmp_path / "teacher"), "student": {"init": str(tmp_path / "origin")}}
    said = recipe(
        {"corpus": corpus, "heldout": 0.3, "task": {"kind": "classification"}}, who, tmp_path / "run", "forward_kl"
    )
    found = design.design(load(said))
    assert found.student.vocab_size == 72 and found.columns is None
    study = build_study(found, World(), read_text(found, lambda line: None))
    rows_ = study.feeds[0].batch(0)
    for actor in study.stills[0].actors.values():
        assert actor.logits(actor.forward(rows_).features).shape == (8, 3)


def test_segments_are_given_where_one_of_the_tokenizers_has_them(world: Path, tmp_path: Path) -> None:
    """The student's tokenizer does without, and the teacher still sees which text is which."""
    framed(types=False).save_pretrained(tmp_path / "plain")
    said = {"family": "distilbert", "layers": 1, "hidden": 16, "heads": 4, "tokenizer": str(tmp_path / "plain")}
    found = plan(world, "forward_kl", student=said)
    assert "token_type_ids" not in found.student_tokenizer.model_input_names
    assert "token_type_ids" in feed_of(found, read_text(found, lambda line: None), 0).batch(0)


def test_a_teacher_that_is_fine_tuned_keeps_its_pooling(tmp_path: Path) -> None:
    """A head that was trained on the mean of the tokens answers from the mean, where the student begins with it."""
    origin = classifier("modernbert", 2, classifier_pooling="mean").float()
    origin.save_pretrained(tmp_path / "origin")
    framed().save_pretrained(tmp_path / "origin")
    read = pretrained.config_of(Source(source=str(tmp_path / "origin")))
    made = given(data(classes=["a", "b"]), mine=read)
    assert made.classifier_pooling == "mean"


# what it costs


@pytest.mark.parametrize("name", ["bert", "gpt2", "distilbert", "modernbert"])
def test_a_head_speaks_once_a_row(name: str) -> None:
    """The FLOPs of the head of one row: two for each weight of its matrices, however long the row."""
    model = classifier(name)
    heads = [model.get_submodule(part) for part in family(name).classifier if not part.startswith("torch.")]
    matrices = [module.weight for head in heads for module in head.modules() if isinstance(module, nn.Linear)]
    weights = sum(matrix.numel() for matrix in matrices)
    for length in (4, 16):
        assert costs.of_model(config(name), length).head_flops == 2 * weights
