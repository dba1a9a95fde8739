"""Mutated recipes: each is read, or refused in one line, soon, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from kernel import answer, lay_out
from kernel import recipe as tiny
from mutants import halves, of_bytes, of_table, refusal, soon

from limbeck.recipe.arms import asked
from limbeck.recipe.load import built_in

TEXTS = {name: path.read_bytes() for name, path in built_in().items()}
MORE: tuple[dict[str, Any], ...] = (
    {"vary": {"train.lr": [1e-3, 1e-4], "data.masking.probability": [0.1, 0.2]}, "sample": {"count": 3}},
    {"ablate": "terms", "baselines": ["no-teacher", "teacher"], "together": 1},
    {"tune": {"vary": {"train.lr": [1e-3, 1e-4]}, "steps": 5}, "cache": {"top_k": 5}},
    {
        "models": {
            "teacher": {"ensemble": ["embedded", "embedded"], "weights": [1, 2]},
            "teachers": {"other": "a/b@main"},
        }
    },
    {
        "stages": [
            {"stage": "hints", "settings": {"a": {"terms": [{"loss": "mse", "tap": "hidden", "layers": {1: 2}}]}}},
            {"models": {"student": {"init": "$previous"}}, "train": {"steps": 5}},
        ]
    },
    {
        "data": {
            "task": {"kind": "classification", "classes": ["a", "b"]},
            "unlabelled": {"corpus": "docs", "share": 0.5},
        }
    },
)
OVERRIDES = (
    "train.steps=3",
    "seeds=[0,1]",
    "settings.x.terms.0.weight=2",
    "stages[0].train.lr=1",
    "models.teacher=embedded",
)
FEW, ALL = 300, 5000
SHARES = 4  # of the slow ones, so that processes share them
PARTS = [
    pytest.param(range(FEW), id="few"),
    *(
        pytest.param(range(FEW + share, ALL, SHARES), id=f"share-{share}", marks=pytest.mark.slow)
        for share in range(SHARES)
    ),
]


def mutant(number: int) -> tuple[bytes, list[str]]:
    """The text of a recipe, and overrides."""
    draw = Random(number)
    text = TEXTS[draw.choice(sorted(TEXTS))]
    more = [draw.choice(OVERRIDES)] if draw.random() < 0.2 else []
    if number % 10 == 0:
        more = [of_bytes(draw.choice(OVERRIDES).encode(), draw).decode("utf-8", "surrogateescape")]
    if number % 2:
        return of_bytes(text, draw), more
    table = yaml.safe_load(text) | (draw.choice(MORE) if draw.random() < 0.4 else {})
    return yaml.safe_dump(of_table(table, draw)).encode("utf-8", "surrogatepass"), more


@pytest.mark.parametrize("numbers", PARTS)
def test_a_recipe_is_read_or_refused(numbers: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, refused = tmp_path / "mine.yaml", 0
    for number in numbers:
        text, more = mutant(number)
        path.write_bytes(text)
        try:
            refused += bool(refusal(lambda more=more: asked(str(path), more).arms()))
        except BaseException as error:
            error.add_note(f"mutant({number}): {more} {text.decode(errors='replace')[:3000]}")
            raise
    assert [it.name for it in tmp_path.iterdir()] == ["mine.yaml"]
    assert 0.2 < refused / len(numbers) < 0.95, "else nothing is tried"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("numbers", [pytest.param(range(15), id="few"), pytest.param(range(15, 300), id="all", marks=pytest.mark.slow)])  # fmt: skip
def test_check_ends_in_two_ways(
    numbers: range, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command: 0 and a page, or 2 and one line on standard error."""
    monkeypatch.chdir(tmp_path)
    path, ends = tmp_path / "mine.yaml", set()
    for number in numbers:
        table = tiny(world, tmp_path / "run") | {"cache": None}
        table["data"] |= {"cache": str(tmp_path / "cache")}
        path.write_text(yaml.safe_dump(of_table(table, Random(number))), encoding="utf-8")
        with soon():
            status, said, log = answer(monkeypatch, capsys, "check", str(path))
        lines = log.splitlines()
        assert (status, len(lines), bool(said)) in ((0, 0, True), (2, 1, False)), (number, status, log)
        assert all(line.startswith("limbeck: error: ") and line.isprintable() for line in lines)
        assert said.replace("\n", "").isprintable()
        assert not (tmp_path / "run").exists()
        assert halves(tmp_path / "cache") == []
        ends.add(status)
    assert ends == {0, 2}
