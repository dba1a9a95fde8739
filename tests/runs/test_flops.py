"""FLOPs of training: what is written is what is multiplied, padding included; torch's counter is the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel import lay_out, recipe
from rows import CLASSES, config, framed, moved, sentence, table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import limbeck
from limbeck.assemble import costs, design
from limbeck.assemble.text import feed_of, read_text
from limbeck.distil.still import Still
from limbeck.recipe.load import load
from limbeck.running import arms
from limbeck.system import files
from limbeck.system.processes import World

STEPS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with its text, and a classifier with rows of 3 to 24 tokens."""
    folder = lay_out(tmp_path_factory.mktemp("place"))
    moved(config("bert", 3, num_hidden_layers=2), 1).float().save_pretrained(folder / "classifier")
    framed().save_pretrained(folder / "classifier")
    rows = [{"sentence": f"{sentence(i)} {'ba ' * (i % 4 * 5)}", "label": CLASSES[i % 3]} for i in range(60)]
    table(folder / "rows" / "train.tsv", rows[:48])
    table(folder / "rows" / "dev.tsv", rows[48:])
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The FLOPs of every update, by torch."""
    found: list[int] = []
    step = Still.step

    def watched(self: Still, *given: Any, **more: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the others are not counted
            told = step(self, *given, **more)
        found.append(counter.get_total_flops())
        return told

    monkeypatch.setattr(Still, "step", watched)
    return found


def of_rows(place: Path, out: Path, **more: Any) -> dict[str, Any]:
    """A student of one layer that learns from the classifier, in two micro-batches."""
    said = recipe(place, out, train={"steps": STEPS, "batch_size": 8, "accumulate": 2, "eval_every": 99})
    data = {"corpus": str(place / "rows"), "task": {"kind": "classification"}, "max_length": 32}
    said["data"] = {"cache": str(place / "cache"), **data, **more}
    said["models"] = {"teacher": str(place / "classifier"), "student": {"layers": 1}}
    terms = [{"loss": "forward_kl"}, {"loss": "mse", "tap": "hidden"}, {"loss": "attention_mse", "tap": "probs"}]
    return said | {"settings": {"a": {"terms": terms}}}


def of_text(place: Path, out: Path) -> dict[str, Any]:
    """Running text, with projections and maps."""
    return recipe(place, out, only=["multi"], train={"steps": STEPS, "eval_every": 99})


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("kind", ["text", "rows", "grouped", "padded"])
def test_what_is_written_is_what_is_multiplied(place: Path, tmp_path: Path, counted: list[int], kind: str) -> None:
    more = {"grouped": {"group_by_length": 4}, "padded": {"pad_to": "max_length"}}.get(kind, {})
    said = of_text(place, tmp_path / "run") if kind == "text" else of_rows(place, tmp_path / "run", **more)
    run = limbeck.run(said, quiet=True)
    assert [row["flops"] for row in run.metrics] == pytest.approx(np.cumsum(counted), rel=0.03)
    (student,) = run.manifest["students"].values()
    assert student["flops_per_step"] == pytest.approx(sum(counted) / STEPS, rel=0.03), "known before"
    if kind == "rows":
        assert len(set(counted)) > 1, "rows of different lengths"


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("unlabelled", [False, True])
def test_the_mean_load_is_that_of_the_batches(place: Path, tmp_path: Path, accumulate: int, unlabelled: bool) -> None:
    said = of_rows(place, tmp_path / "run", group_by_length=2)
    said["train"]["accumulate"] = accumulate
    if unlabelled:
        table(tmp_path / "more.tsv", [{"sentence": "ba " * (20 + i)} for i in range(9)])
        said["data"]["unlabelled"] = {"corpus": str(tmp_path / "more.tsv"), "share": 0.25}
    plan = design.design(load(said))
    feed = feed_of(plan, read_text(plan, lambda line: None), 0)
    rows, found = 8 // accumulate, np.zeros(4)
    for step in range(STEPS):
        lengths = feed.lengths(step)
        for start in range(0, 8, rows):
            ids = feed.batch(step, slice(start, start + rows))["input_ids"]
            assert ids.shape[1] == lengths[start : start + rows].max()
            found += [rows, ids.numel(), ids.numel() * ids.shape[1], rows]
    assert costs.mean(plan, feed) == pytest.approx(tuple(found / STEPS))
    assert all(mean <= most for mean, most in zip(costs.mean(plan, feed), costs.full(plan), strict=True))


@pytest.mark.usefixtures("fast")
def test_a_run_of_an_earlier_version_goes_on(place: Path, tmp_path: Path) -> None:
    """Its checkpoint has no sum: what its lines say so far stands."""
    from limbeck.system.files import json_sha256
    from limbeck.training import checkpoint

    said = of_rows(place, tmp_path / "run") | {"seeds": [0]}
    said["train"] |= {"schedule": "constant", "warmup": 0, "checkpoint_every": 1}
    run = limbeck.run(said, quiet=True)
    manifest = files.read_json(run.folder / "manifest.json")
    manifest["students"]["a-seed0"]["flops_per_step"] = 1e12
    files.write_json(run.folder / "manifest.json", manifest)
    path = checkpoint.list_all(run.folder / "checkpoints")[0] / "checkpoint.json"
    told = files.read_json(path)
    del told["way"]["flops"], told["sha256"]
    files.write_json(path, told | {"sha256": json_sha256(told)})
    said["train"]["steps"] = STEPS + 1
    longer = limbeck.run(said, quiet=True)
    assert STEPS * 1e12 < longer.metrics[-1]["flops"] < STEPS * 1e12 + 1e9


def test_equal_flops_looks_at_the_rows(place: Path, tmp_path: Path) -> None:
    plan = design.design(load(of_rows(place, tmp_path / "run")))
    price = arms._flops(plan, World(), lambda line: None)
    assert 0 < price["a"] < 0.8 * costs.of_study(plan).flops_per_step["a"], "rows are shorter than max_length"
