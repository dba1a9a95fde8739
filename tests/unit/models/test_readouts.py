"""Readouts taken apart into states that can be kept, and put together again: what the live model would have answered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CAUSAL, CONFIGS, tiny
from rows import classifier
from torch import Tensor

from limbeck.batch import Batch
from limbeck.distil.teachers import Frozen
from limbeck.models import readouts
from limbeck.models.readouts import Recall
from limbeck.models.taps import Readout, Tapped
from limbeck.teacher_cache.cached import Answers, Cached

LENGTH = 11
LENGTHS = ((11, 7, 2), (11, 11, 11), (5, 9, 4))  # of rows: padded, full, and shorter than the longest that there may be
TAPS = [f"{kind}.{layer}" for kind in ("hidden", "query", "key", "value", "scores", "probs", "ffn") for layer in (1, 3)]
EVERY = ["embedding", *TAPS, "hidden.2", "pooled", "logits"]


def batch(lengths: tuple[int, ...], seed: int = 0) -> Batch:
    ids = torch.randint(3, 100, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def kept(live: Readout, names: tuple[str, ...], attended: Tensor) -> dict[str, Tensor]:
    """The states as they come from a disk: one line a token, nothing where there is padding."""
    found = {}
    for name, state in readouts.states(live, names).items():
        assert state.dim() == 3, name
        found[name] = torch.where(attended.bool()[..., None], state, 0).clone()
    return found


def again(model: Any, taps: list[str], given: Batch) -> tuple[Readout, Readout]:
    """What the model answers, and what is put together from what was kept of it."""
    tapped = Tapped(model, taps)
    with torch.no_grad():
        live = tapped(given)
    whole = Recall(tapped, LENGTH)
    found = kept(live, whole.names, given["attention_mask"])
    return live, whole.readout(found, given["attention_mask"], live.features, tapped.head)


def pairs_of(given: Batch) -> Tensor:
    """Queries and keys that are no padding: bool `[B, 1, T, T]`."""
    real = given["attention_mask"].bool()
    return real[:, None, :, None] & real[:, None, None, :]


def close(tap: str, mine: Tensor, theirs: Tensor, given: Batch) -> None:
    """The same where there is no padding."""
    assert mine.shape == theirs.shape and mine.dtype == theirs.dtype, tap
    kind, real = tap.split(".")[0], given["attention_mask"].bool()
    if kind in ("scores", "probs"):
        both = pairs_of(given).expand_as(mine)
        mine, theirs = mine[both], theirs[both]
    elif kind in ("query", "key", "value"):
        mine, theirs = mine.transpose(1, 2)[real], theirs.transpose(1, 2)[real]
    elif kind not in ("pooled", "logits") or mine.dim() == 3:
        mine, theirs = mine[real], theirs[real]
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12, msg=lambda text: f"{tap}: {text}")


def visible(readout: Readout, tap: str, given: Batch) -> Tensor:
    seen, (rows, length) = readout.visible(tap), given["input_ids"].shape
    return (
        torch.ones(rows, 1, length, length, dtype=torch.bool) if seen is None else seen.expand(rows, 1, length, length)
    )


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tap_comes_back(name: str, lengths: tuple[int, ...]) -> None:
    """With its shape and dtype; and the same keys are seen by queries that are no padding."""
    given = batch(lengths)
    live, found = again(tiny(name), EVERY, given)
    assert list(found) == list(live)
    for tap in EVERY:
        close(tap, found[tap], live[tap], given)
    for tap in ("scores.1", "probs.3"):
        mine, theirs = visible(found, tap, given), visible(live, tap, given)
        here = given["attention_mask"].bool()[:, None, :, None].expand_as(mine)
        assert torch.equal(mine[here], theirs[here])
        assert not mine[~given["attention_mask"].bool()[:, None, None, :].expand_as(mine)].any(), "padding is seen"
        if name in CAUSAL:
            assert not mine.triu(1).any(), "a later key is seen"


@pytest.mark.parametrize("tap", EVERY)
@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen3"])
def test_each_tap_needs_no_other(name: str, tap: str) -> None:
    given = batch((11, 6, 3))
    live, found = again(tiny(name), [tap], given)
    close(tap, found[tap], live[tap], given)


def test_a_window_is_seen_again() -> None:
    """ModernBERT's local layers, also of rows that are shorter than the longest."""
    model = tiny("modernbert")
    local = [i + 1 for i, kind in enumerate(model.config.layer_types) if kind == "sliding_attention"]
    assert local
    for lengths in LENGTHS:
        given = batch(lengths)
        live, found = again(model, [f"probs.{layer}" for layer in local], given)
        for layer in local:
            seen = visible(found, f"probs.{layer}", given)
            assert not seen[0, 0, 0, 3:].any() and seen[0, 0, 0, 1]
            close(f"probs.{layer}", found[f"probs.{layer}"], live[f"probs.{layer}"], given)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_grouped_heads_keep_their_number(name: str) -> None:
    live, found = again(tiny(name), ["query.2", "key.2", "value.2", "scores.2"], batch((9, 4)))
    assert live["query.2"].shape[1] == 4 and live["key.2"].shape[1] == 2
    for tap in ("query.2", "key.2", "value.2", "scores.2"):
        assert found[tap].shape == live[tap].shape


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2"])
def test_a_classifier_comes_back(name: str) -> None:
    """Its head takes one state a row; `pooled` and hidden states are those of tokens."""
    given = batch((9, 5, 7))
    live, found = again(classifier(name), ["pooled", "hidden.2", "logits", "scores.1"], given)
    assert found.features.shape == live.features.shape == (3, 32)
    for tap in ("pooled", "hidden.2", "scores.1"):
        close(tap, found[tap], live[tap], given)
    torch.testing.assert_close(found["logits"], live["logits"], rtol=0, atol=0)
    torch.testing.assert_close(found.inputs("logits"), live.inputs("logits"), rtol=0, atol=0)


def test_what_is_kept() -> None:
    """Of what is derived, that of which it is made; negative layers by their number; of logits and exits nothing."""
    taps = [
        "embedding",
        "hidden.-1",
        "hidden.2",
        "scores.1",
        "probs.1",
        "value.-2",
        "ffn.2",
        "pooled",
        "logits",
        "exit.2",
    ]
    expected = {"hidden.0", "hidden.3", "hidden.2", "query.1", "key.1", "value.2", "ffn.2"}
    assert set(readouts.kept(taps, 3)) == expected
    assert list(readouts.kept(taps, 3)) == sorted(expected) == list(readouts.kept(taps[::-1], 3))
    assert readouts.kept(["logits"], 3) == ()


def test_nothing_is_asked_where_nothing_is_attended() -> None:
    """Without maps, queries, keys or values the model is not even asked once."""
    model, calls = tiny("bert"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    Recall(Tapped(model, ["hidden.2", "ffn.1", "pooled", "logits"]), LENGTH)
    assert not calls
    Recall(Tapped(model, ["query.2"]), LENGTH)
    assert len(calls) == 1


class Shelf:
    """Answers that are held in memory."""

    width = 32

    def __init__(self, live: Readout, names: tuple[str, ...], attended: Tensor) -> None:
        self.live, self.states = live, kept(live, names, attended)

    def answers(self, batch: Batch) -> Answers:
        return Answers(self.live.features, self.states)

    def predictions(self, features: Tensor) -> Tensor:
        return features * 2


def test_a_cached_teacher_answers_as_what_is_kept_says() -> None:
    given, model = batch((9, 4)), tiny("bert")
    teacher = Frozen("teacher", model, ["hidden.2", "scores.1", "logits"])
    live = teacher.forward(given)
    names = readouts.kept(teacher.tapped.taps, 3)
    cached = Cached(teacher, Shelf(live, names, given["attention_mask"]), LENGTH)
    calls: list[int] = []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    found = cached.forward(given)
    for tap in ("hidden.2", "scores.1"):
        close(tap, found[tap], live[tap], given)
    assert torch.equal(found["logits"], live.features * 2)
    assert not calls and cached.width == 32 and cached.name == "teacher"
