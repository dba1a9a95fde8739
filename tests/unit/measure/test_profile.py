"""What models cost when they answer: against counts by hand, and that turns are taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import answer, lay_out
from torch import nn
from transformers import BertConfig, LlamaConfig

from limbeck.lab.terminal import profiles
from limbeck.measure import profile
from limbeck.models import students
from limbeck.system import files

V, P, H, L, M, T, C = 60, 32, 16, 2, 40, 10, 3  # vocabulary, positions, width, layers, intermediate, tokens, classes
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "max_position_embeddings": P,
    "hidden_size": H,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "intermediate_size": M,
}
LAYERS = T * L * (4 * H * H + 2 * H * M + 2 * T * H)  # MACs of a row: projections, feed-forward, scores and their use


def masked() -> Any:
    return students.build(BertConfig(**SIZES), seed=0).eval()


def classifier() -> Any:
    config = BertConfig(**SIZES)
    config.num_labels = C
    config.problem_type = "single_label_classification"
    return students.build(config, seed=0).eval()


def causal() -> Any:
    return students.build(LlamaConfig(**SIZES, tie_word_embeddings=False), seed=0).eval()


def test_a_masked_model_by_hand() -> None:
    found = profile.size(masked(), T)
    tables, row = (V + P + 2) * H, LAYERS + T * (H * H + H * V)  # the logits of every position
    layer = 4 * (H * H + H) + (H * M + M) + (M * H + H) + 2 * 2 * H
    assert found == {
        "parameters": tables + 2 * H + L * layer + (H * H + H) + 2 * H + V,
        "parameters_without_embeddings": 2 * H + L * layer + (H * H + H) + 2 * H + V,
        "macs_per_token": row / T,
        "macs_per_row": row,
    }


def test_a_classifier_speaks_once_a_row() -> None:
    assert profile.size(classifier(), T)["macs_per_row"] == LAYERS + H * H + H * C


def test_a_causal_model_by_hand() -> None:
    """The prefill: logits of every position; a decoder of its own is no embedding."""
    found = profile.size(causal(), T)
    assert found["macs_per_row"] == T * L * (4 * H * H + 3 * H * M + 2 * T * H) + T * H * V
    assert found["parameters"] - found["parameters_without_embeddings"] == V * H


def test_peak_memory_by_hand() -> None:
    """Weights, and of a chain of layers the two tensors that are alive at once; what is freed on the way is not counted."""
    model = nn.Sequential(nn.Linear(50, 400), nn.ReLU(), nn.Linear(400, 30), nn.Linear(30, 20))
    rows = torch.randn(64, 50)
    with torch.no_grad():
        found = profile.peak_memory(model, lambda: model(rows))
    weights = 50 * 400 + 400 + 400 * 30 + 30 + 30 * 20 + 20
    assert found == 4 * (weights + 2 * 64 * 400)


def test_peak_memory_grows_by_the_logits() -> None:
    model = masked()
    one, two = (profile.peak_memory(model, profile._pass(model, rows, [T], torch.no_grad)) for rows in (8, 16))
    assert two - one >= 8 * T * V * 4 and one > 4 * profile.size(model, T)["parameters"]


def test_models_take_turns() -> None:
    turns: list[str] = []
    times = profile.latencies([lambda: turns.append("a"), lambda: turns.append("b")], rounds=4)
    assert turns == ["a", "b"] * 5, "the first is not counted"
    assert times is not None and [len(each) for each in times] == [4, 4]


@pytest.mark.parametrize(("seconds", "rounds"), [(100.0, 10), (12.5, 4), (9.1, 3), (8.9, None)])
def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch, seconds: float, rounds: int | None) -> None:
    """A round of two passes takes 1 s and 2 s."""
    now = [0.0]
    monkeypatch.setattr(profile, "perf_counter", lambda: now[0])

    def takes(spent: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + spent)

    times = profile.latencies([takes(1.0), takes(2.0)], rounds=10, seconds=seconds)
    assert times == (None if rounds is None else [[1.0] * rounds, [2.0] * rounds])
    assert now[0] <= 3.0 + seconds


def test_a_batch_for_which_there_is_no_time_is_left_out() -> None:
    found = profile.measure([masked()], length=T, batches=[1, 1_000_000], rounds=3, seconds=5.0)
    (model,) = found["models"]
    assert model["latency"]["1000000"] is None and model["peak_memory"]["1000000"] is None
    assert model["latency"]["1"]["p50"] > 0


@pytest.mark.parametrize("make", [masked, classifier, causal])
def test_every_kind_is_measured(make: Callable[[], Any]) -> None:
    model = make()
    found = profile.measure([model, make()], length=T, batches=[1, 3], rounds=3)
    assert found["batches"] == [1, 3] and found["length"] == T and found["device"] == "cpu"
    for each in found["models"]:
        for batch in ("1", "3"):
            assert 0 < each["latency"][batch]["p50"] <= each["latency"][batch]["p90"] <= each["latency"][batch]["p99"]
        assert each["peak_memory"]["3"] > each["peak_memory"]["1"] > 4 * each["parameters"]
    said = profile._pass(model, 3, [T], torch.no_grad)()
    assert said.shape == ((3, C) if make is classifier else (3, T, V)), "the whole forward pass"


def test_rows_have_no_padding() -> None:
    """A causal classifier reads the last token that is none."""
    seen: dict[str, torch.Tensor] = {}
    model = masked()
    model.register_forward_pre_hook(lambda _, args, words: seen.update(words), with_kwargs=True)
    profile._pass(model, 50, [T], torch.no_grad)()
    assert not (seen["input_ids"] == model.config.pad_token_id).any() and seen["attention_mask"].all()
    assert len(seen["input_ids"].unique()) > V / 2


def test_real_lengths_are_read_one_after_another() -> None:
    """Passes of two rows over five lengths: each padded to its own longest, and from the first again."""
    seen: list[dict[str, torch.Tensor]] = []
    model = masked()
    model.register_forward_pre_hook(lambda _, args, words: seen.append(words), with_kwargs=True)
    one = profile._pass(model, 2, [3, 7, 5, 2, 9], torch.no_grad)
    for _ in range(3):
        one()
    assert [each["attention_mask"].sum(1).tolist() for each in seen] == [[3, 7], [5, 2], [3, 7]]
    for each in seen:
        assert torch.equal(each["input_ids"] != model.config.pad_token_id, each["attention_mask"].bool())
    found = profile.measure([model, masked()], length=99, batches=[2], rounds=3, lengths=[[3, 7, 5], [3, 4, 5]])
    assert (
        found["length"] == 5
        and found["padded"]
        and "padded to the longest" in profiles.remark(found | {"precision": "fp32"})
    )


# the command


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.fixture
def limbeck(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world: Path
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(world)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: answer(monkeypatch, capsys, "profile", *words)


def test_the_command_shows_the_numbers_that_it_writes(limbeck: Any, world: Path) -> None:
    how = ("--length", "7", "--batch", "2", "--batch", "5", "--rounds", "3", "--threads", "1", "--json", "out.json")
    status, out, err = limbeck("teacher", "embedded", *how)
    assert (status, err.splitlines()) == (0, ["batch 2: 3 passes of each model", "batch 5: 3 passes of each model"])
    found = json.loads((world / "out.json").read_text())
    assert (found["length"], found["batches"], found["rounds"], found["threads"], found["precision"]) == (
        7, [2, 5], 3, 1, "fp32"
    )  # fmt: skip
    mine, embedded = found["models"]
    assert [mine["name"], embedded["name"]] == ["teacher", "embedded"]
    assert mine["bytes_on_disk"] == (world / "teacher" / "model.safetensors").stat().st_size
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    ratio = embedded["parameters"] / mine["parameters"]
    assert lines["parameters"].split() == [
        "parameters", f"{mine['parameters']:,}", f"{embedded['parameters']:,}", f"x{ratio:.3g}"
    ]  # fmt: skip
    assert [it for it in lines if it.startswith("latency")] == [
        f"latency {share}, batch {rows}" for rows in (2, 5) for share in ("p50", "p90", "p99")
    ]
    assert "MACs, a row of 7" in lines and "x1.00" not in lines["parameters"], (
        "the first is what others are held against"
    )


def test_bf16_holds_half(limbeck: Any, world: Path) -> None:
    for precision in ("fp32", "bf16"):
        how = ("--batch", "1", "--rounds", "1", "--length", "4", "--precision", precision)
        assert limbeck("teacher", *how, "--json", f"{precision}.json")[0] == 0
    (wide,), (narrow,) = (files.read_json(world / f"{it}.json")["models"] for it in ("fp32", "bf16"))
    assert narrow["parameters"] == wide["parameters"]
    assert narrow["peak_memory"]["1"] == pytest.approx(wide["peak_memory"]["1"] / 2, rel=0.1)


def test_rows_of_a_task(limbeck: Any, world: Path) -> None:
    for name, first in (("rows", 1), ("dev", 4)):
        rows = "".join(f"{'the still ' * (first + i)}\t{i % 2}\n" for i in range(3))
        (world / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}")
    text = "{name: t, models: {teacher: teacher}, settings: {a: {terms: [{loss: forward_kl}]}}, data: {DATA}}"
    task = "corpus: rows.tsv, heldout: dev.tsv, max_length: 16, task: {kind: classification}, cache: cache"
    (world / "task.yaml").write_text(text.replace("DATA", task))
    (world / "text.yaml").write_text(text.replace("DATA", "corpus: corpus.txt, cache: cache"))
    how = ("--batch", "1", "--rounds", "3", "--task")
    status, out, err = limbeck("teacher", *how, "task.yaml", "--json", "real.json")
    assert status == 0, err
    found = files.read_json(world / "real.json")
    assert found["padded"] and "the next held-out rows of the task" in out
    (world / "bare.yaml").write_text(text.replace("DATA", task.replace("{kind", "{label: null, kind")))
    assert limbeck("teacher", *how, "bare.yaml", "--json", "bare.json")[0] == 0, "lengths need no labels"
    assert limbeck("teacher", *how, "text.yaml")[2].startswith("limbeck: error: --task: its data are running text")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nope",), "nope: no such model folder"),
        (("teacher", "--length", "33"), "teacher: rows of 33 tokens are more than its 32 positions; lower --length"),
        (("teacher", "--json", "no/out.json"), "no/out.json: its folder is not there; make it, or choose another file"),
    ],
)
def test_mistakes(limbeck: Any, words: tuple[str, ...], message: str) -> None:
    status, out, err = limbeck(*words)
    assert (status, out) == (2, "") and err.startswith(f"limbeck: error: {message}") and err.count("\n") == 1


def test_what_was_not_measured_is_a_dash() -> None:
    model = {"parameters": 1000, "parameters_without_embeddings": 900, "macs_per_token": 1e6, "macs_per_row": 4e6}
    told = {"name": "a", **model, "bytes_on_disk": None, "latency": {"1": {"p50": 0.01, "p90": 0.02, "p99": 0.5}}}
    one = told | {"peak_memory": {"1": 2**20}}
    other = one | {"name": "b", "parameters": 250, "bytes_on_disk": 5}
    found = {line[0]: line[1:] for line in profiles.lines({"models": [one, other], "length": 4, "batches": [1]})}
    assert found["weights on disk"] == ["\u2013", "5.00 B"]
    assert found["parameters"] == ["1,000", "250  x0.250"]
    assert found["MACs, a row of 4"] == ["4.00 M", "4.00 M  x1.00"]
    assert found["latency p99, batch 1"] == ["500 ms", "500 ms  x1.00"]
    assert found["peak memory, batch 1"] == ["1.00 MiB", "1.00 MiB  x1.00"]
