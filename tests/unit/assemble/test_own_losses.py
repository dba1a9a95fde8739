"""Losses of one's own: found from the working directory, tried out, and refused in one line."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import HEADS, STUDENT_WIDTH, TEACHER_WIDTH, lay_out
from kernel import recipe as tiny
from transformers import BertConfig

import limbeck
from limbeck.assemble import own, own_losses, terms
from limbeck.errors import UserError
from limbeck.recipe import recipe, settings

NUMBERS = itertools.count()
Write = Callable[..., str]

PLAIN = """
def mine(*, student, teacher, mask=None, scale=1.0):
    return scale * (student - teacher).square().mean(-1)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module into the working directory and returns its name, which no other test has."""
    monkeypatch.chdir(tmp_path)
    made = []

    def put(source: str, package: str = "") -> str:
        name = f"own_loss_{next(NUMBERS)}"
        folder = tmp_path / package
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(source)
        made.append(f"{package}.{name}" if package else name)
        return made[-1]

    yield put
    for name in (*made, *(name.partition(".")[0] for name in made)):
        sys.modules.pop(name, None)


def said(path: str, tap: Any = "hidden", **more: Any) -> settings.TermKeys:
    return settings.TermKeys(loss=path, tap=tap, **more)


def refused(path: str, match: str, tap: Any = "hidden", **more: Any) -> None:
    """`keys` says one line that begins with the place in the recipe."""
    with pytest.raises(UserError, match=match) as error:
        own_losses.keys(said(path, tap, **more), "settings.a.hidden")
    assert str(error.value).startswith(f"settings.a.hidden.loss: {path}: ")
    assert len(str(error.value)) < 240 and "\n" not in str(error.value)


# where it is found


def test_a_module_of_the_working_directory(write: Write) -> None:
    name = write(PLAIN)
    loss = own_losses.load(f"{name}:mine", "settings.a")
    x = torch.tensor([[1.0, 3.0]])
    assert loss(student=x, teacher=torch.zeros(1, 2), scale=2.0).tolist() == [10.0]
    assert loss.__module__ == name


def test_a_module_inside_a_package(write: Write) -> None:
    name = write(PLAIN, package="own_losses")
    assert name.startswith("own_losses.")
    assert own_losses.load(f"{name}:mine", "settings.a").__module__ == name


def test_an_installed_module_is_found_too() -> None:
    assert own_losses.load("torch.nn.functional:mse_loss", "settings.a") is torch.nn.functional.mse_loss


def test_the_working_directory_comes_last(write: Write, tmp_path: Path) -> None:
    """A file that is called like an installed package does not hide it."""
    (tmp_path / "colorsys.py").write_text("def rgb_to_hsv(): ...")
    sys.modules.pop("colorsys", None)
    found = own_losses.load("colorsys:rgb_to_hsv", "settings.a")
    assert found(1.0, 0.0, 0.0) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("there", [False, True])
def test_the_search_path_stays(there: bool, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the working directory is on it already, as `python -m limbeck` has it."""
    monkeypatch.setattr(sys, "path", [*([str(tmp_path)] if there else []), *sys.path])
    before = list(sys.path)
    own_losses.load(f"{write(PLAIN)}:mine", "settings.a")
    assert sys.path == before
    with pytest.raises(UserError):
        own_losses.load("no_such_module:mine", "settings.a")
    assert sys.path == before


# what is wrong with it


def test_no_such_module(write: Write) -> None:
    refused(
        "no_such_module_at_all:mine", "there is no module no_such_module_at_all; run from its folder, or install it"
    )
    refused("no_such_package.losses:mine", "there is no module no_such_package; run from its folder")


def test_a_module_that_needs_another(write: Write) -> None:
    refused(f"{write('import not_installed_here')}:mine", "there is no module not_installed_here;")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("1 / 0", r"importing it fails \(ZeroDivisionError: division by zero\); mend it"),
        ("def mine(:", r"importing it fails \(SyntaxError: "),
        ("from torch import no_such_thing", r"importing it fails \(ImportError: cannot import name 'no_such_thing'"),
        ("raise RuntimeError('two\\nlines')", r"importing it fails \(RuntimeError: two.+lines\)"),
    ],
)
def test_a_module_that_raises(write: Write, source: str, what: str) -> None:
    refused(f"{write(source)}:mine", what)


@pytest.mark.parametrize("source", ["", "mine = 3"])
def test_no_such_function(write: Write, source: str) -> None:
    name = write(source)
    refused(f"{name}:mine", f"{name} has no function mine; write package.module:function")


def test_a_function_that_takes_no_student(write: Write) -> None:
    name = write("def mine(prediction, target): return (prediction - target).square()")
    refused(f"{name}:mine", "it takes no `student`; see limbeck.losses")


def test_a_class_is_no_function() -> None:
    refused("builtins:dict", "builtins has no function dict")


@pytest.mark.parametrize(
    ("word", "near"),
    [("scal", r"did you mean 'scale'\?"), ("wieght", r"did you mean 'weight'\?"), ("xyz", "known: .*scale.*tap")],
)
def test_an_unknown_hyper_parameter(write: Write, word: str, near: str) -> None:
    name = write(PLAIN)
    with pytest.raises(UserError, match=f"takes no '{word}'; {near}") as error:
        own_losses.keys(said(f"{name}:mine", **{word: 2.0}), "settings.a.hidden")
    assert str(error.value).startswith(f"settings.a.hidden.loss: {name}:mine: ")


def test_a_hyper_parameter_without_a_value(write: Write) -> None:
    name = write("def mine(student, teacher, scale, margin=1.0): return scale * (student - teacher).abs().mean(-1)")
    what = "needs the hyper-parameter 'scale'; state it in the term, or give it a default"
    refused(f"{name}:mine", what)
    refused(f"{name}:mine", what, margin=2.0)
    assert own_losses.keys(said(f"{name}:mine", scale=2.0), "settings.a").per == "token"


def test_a_trial_that_fails(write: Write) -> None:
    name = write("def mine(student, teacher): return student @ teacher[..., :3]")
    refused(f"{name}:mine", r"a trial on random tensors fails \(RuntimeError: .+\); mend it")
    name = write("def mine(student, size=1):\n    assert size < 5\n    return student.mean(-1)")
    refused(f"{name}:mine", r"a trial on random tensors fails \(AssertionError: \); mend it", size=9)


@pytest.mark.parametrize(
    ("source", "found", "tap"),
    [
        ("return student - student", r"\(2, 3, 4\)", "hidden"),
        ("return student.mean((0, 1))", r"\(4,\)", "hidden"),
        ("return student.mean((0, 2))", r"\(3,\)", "hidden"),
        ("return student.mean(-1, keepdim=True)", r"\(2, 3, 1\)", "hidden"),
        ("return student.sum().item()", "float", "hidden"),
        ("return None", "NoneType", "hidden"),
        ("return student.mean(0)", r"\(11,\)", "logits"),
        ("return student.mean(-1)", r"\(2, 5, 3\)", "scores"),
        ("return student.mean((1, 3))[None]", r"\(1, 2, 3\)", "probs"),
    ],
)
def test_a_value_of_the_wrong_shape(write: Write, source: str, found: str, tap: str) -> None:
    name = write(f"def mine(student):\n    {source}")
    refused(f"{name}:mine", f"gives {found}; it must give one value for each token, row or batch, unreduced", tap)


def test_one_value_for_each_head_is_not_one_for_each_row(write: Write) -> None:
    name = write("def mine(student, teacher): return (student - teacher).square().mean((0, 2, 3))")
    refused(f"{name}:mine", "it must give one value for each token, row or batch", "scores")


@pytest.mark.parametrize(
    "source",
    [
        "return student.detach().mean(-1)",
        "return teacher.mean(-1)",
        "return (student > teacher).float().mean(-1)",
        "return student.argmax(-1)",
    ],
)
def test_a_value_that_cannot_be_differentiated(write: Write, source: str) -> None:
    name = write(f"def mine(student, teacher):\n    {source}")
    refused(f"{name}:mine", "its value has no gradient in the student's tensor")


# what it says of itself


@pytest.mark.parametrize(
    ("tap", "source", "per"),
    [
        ("hidden", "(student - teacher).square().mean(-1)", "token"),
        ("hidden", "(student - teacher).square().mean((1, 2))", "row"),
        ("hidden", "(student - teacher).square().mean()", "batch"),
        ("embedding", "(student - teacher).abs().mean(-1)", "token"),
        ("ffn", "(student - teacher).abs().mean(-1)", "token"),
        ("logits", "(student - teacher).square().mean(-1)", "token"),
        ("logits", "(student - teacher).square().mean()", "batch"),
        ("pooled", "(student - teacher).square().mean(-1)", "row"),
        ("pooled", "(student @ student.T - teacher @ teacher.T).square().mean()", "batch"),
        ("scores", "(student - teacher).square().mean((1, 3))", "token"),
        ("probs", "(student - teacher).square().mean((1, 2, 3))", "row"),
        ("query", "(student - teacher).square().mean((1, 3))", "token"),
        ("value", "(student - teacher).square().mean()", "batch"),
    ],
)
def test_what_it_gives_one_value_for(write: Write, tap: str, source: str, per: str) -> None:
    found = own_losses.keys(said(f"{write(f'def mine(student, teacher): return {source}')}:mine", tap), "settings.a")
    assert (found.per, found.taps) == (per, (tap,))


@pytest.mark.parametrize(
    ("signature", "needs", "hyper"),
    [
        ("student", (), set()),
        ("*, student, teacher, mask=None", ("teacher", "mask"), set()),
        ("student, labels, *, power=2", ("labels",), {"power"}),
        ("student, margin=0.5, *, mask, labels, teacher, power=2", ("teacher", "labels", "mask"), {"margin", "power"}),
    ],
)
def test_what_it_takes_is_its_signature(write: Write, signature: str, needs: tuple[str, ...], hyper: set[str]) -> None:
    found = own_losses.keys(said(f"{write(f'def mine({signature}): return student.mean(-1)')}:mine"), "settings.a")
    assert (found.needs, set(found.parameters)) == (needs, hyper)


def test_several_taps_come_as_tuples(write: Write) -> None:
    source = """
        def mine(student, teacher):
            assert isinstance(student, tuple) and isinstance(teacher, tuple)
            query, key = student
            assert query.shape == key.shape == teacher[1].shape and query.dim() == 4
            return sum((a - b).square().mean((1, 3)) for a, b in zip(student, teacher))
    """
    name = write("\n".join(line[8:] for line in source.splitlines()))
    found = own_losses.keys(said(f"{name}:mine", ("query", "key")), "settings.a")
    assert (found.per, found.taps) == ("token", ("query", "key"))


def test_labels_of_a_trial_fit_the_logits(write: Write) -> None:
    """As many as tokens, each a column."""
    name = write("""
import torch.nn.functional as F
def mine(student, labels):
    assert labels.shape == student.shape[:-1]
    return F.cross_entropy(student.flatten(0, -2), labels.flatten(), reduction='none').view(labels.shape)
""")
    for tap in ("logits", "hidden"):
        assert own_losses.keys(said(f"{name}:mine", tap), "settings.a").per == "token"


@pytest.mark.parametrize(
    ("tap", "wide"), [("hidden", True), ("embedding", True), ("ffn", True), ("pooled", True), ("logits", False)]
)
def test_features_can_be_projected(write: Write, tap: str, wide: bool) -> None:
    name = write("def mine(student, teacher): return (student - teacher).abs().mean(-1)")
    assert own_losses.keys(said(f"{name}:mine", tap), "settings.a").same_width == wide


def test_a_trial_leaves_the_generator(write: Write) -> None:
    name, state = write(PLAIN), torch.random.get_rng_state()
    own_losses.keys(said(f"{name}:mine"), "settings.a")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_term_passes_the_hyper_parameters_on(write: Write) -> None:
    """From the recipe to the term of a lesson: what the loss is given, and the projection that widens the student."""
    name = write(PLAIN)
    setting = recipe.Setting(terms=(said(f"{name}:mine", layers={1: 2}, scale=3.0, weight=0.5),))
    student, teacher = (
        BertConfig(hidden_size=width, num_hidden_layers=2, num_attention_heads=HEADS)
        for width in (STUDENT_WIDTH, TEACHER_WIDTH)
    )
    (term,) = terms.of_setting(setting, student, {"teacher": teacher} if teacher else {}, "settings.a")
    assert (term.name, term.needs, term.per, term.weight(0)) == ("hidden", ("teacher", "mask"), "token", 0.5)
    (pair,) = term.pairs
    assert (pair.student, pair.teacher, pair.projection) == ("hidden.1", "hidden.2", "hidden:1")
    assert set(term.modules) == {"hidden:1"}
    assert term.loss(student=torch.ones(1, 2), teacher=torch.zeros(1, 2), mask=None).tolist() == [3.0]


# its fingerprint


def test_the_fingerprint_is_that_of_the_file(write: Write, tmp_path: Path) -> None:
    name = write(PLAIN)
    file = tmp_path / f"{name}.py"
    first = own.source_sha256(f"{name}:mine")
    assert first == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text(PLAIN + "# another line\n")
    second = own.source_sha256(f"{name}:mine")
    assert second == hashlib.sha256(file.read_bytes()).hexdigest() != first


def test_the_fingerprint_looks_through_a_decorator(write: Write, tmp_path: Path) -> None:
    inner = write(PLAIN)
    name = write(f"""
import functools
from {inner} import mine as inside
@functools.wraps(inside)
def mine(**given):
    return inside(**given)
""")
    assert own_losses.keys(said(f"{name}:mine"), "settings.a").per == "token"
    assert own.source_sha256(f"{name}:mine") == hashlib.sha256((tmp_path / f"{inner}.py").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "source",
    [
        "import functools\ndef base(student, teacher, scale): return scale * (student - teacher).abs().mean(-1)\n"
        "mine = functools.partial(base, scale=2.0)",
        "class Loss:\n    def __call__(self, student, teacher): return (student - teacher).abs().mean(-1)\nmine = Loss()",
    ],
    ids=["partial", "object"],
)
def test_whatever_passes_the_trial_has_a_fingerprint(write: Write, tmp_path: Path, source: str) -> None:
    """What has none must not pass: the manifest asks for it after the text has been tokenised."""
    path = f"{(name := write(source))}:mine"
    try:
        own_losses.keys(said(path), "settings.a")
    except UserError:
        return
    expected = hashlib.sha256((tmp_path / f"{name}.py").read_bytes()).hexdigest()
    assert own.source_sha256(path) == expected


def test_what_the_mask_leaves_out_must_not_matter(write: Write) -> None:
    """A mean over all tokens looks at padding; the same over kept ones does not; a token loss may leave the mask to us."""
    leaky = write("def mine(student, teacher, mask=None):\n    return (student - teacher).square().mean((1, 2))")
    refused(f"{leaky}:mine", "what stands where the mask is False changes its value or gradient; use the mask")
    sound = write(
        "import torch\n"
        "def mine(student, teacher, mask=None):\n"
        "    mask = torch.ones(student.shape[:2], dtype=torch.bool) if mask is None else mask\n"
        "    kept = torch.where(mask[..., None], student - teacher, 0).square().mean(-1)\n"
        "    return kept.sum(1) / mask.sum(1)"
    )
    assert own_losses.keys(said(f"{sound}:mine"), "settings.a").per == "row"
    tokens = write("def mine(student, teacher, mask=None):\n    return (student - teacher).square().mean(-1)")
    assert own_losses.keys(said(f"{tokens}:mine"), "settings.a").per == "token"


def test_check_says_that_a_loss_of_rows_takes_no_mask(write: Write, tmp_path: Path) -> None:
    name = write("def rows(student, teacher):\n    return (student - teacher).square().mean((1, 2))")
    own = {"terms": [{"loss": f"{name}:rows", "tap": "hidden", "layers": "last"}, {"loss": "forward_kl"}]}
    lines = limbeck.check(tiny(lay_out(tmp_path / "world"), tmp_path / "run", settings={"a": own}))
    assert [line for line in lines if "takes no mask: padding counts" in line] == [
        line for line in lines if f"{name}:rows" in line
    ]
