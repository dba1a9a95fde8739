from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import UserError
from limbeck.recipe.data import Masking, Sampled
from limbeck.text.block_feed import Feed
from limbeck.text.blocks import Blocks, Corpus, prepare
from limbeck.text.order import derive_seed, uniform

Build = Callable[..., Any]


@pytest.fixture
def bert(data: Build, word_piece: Build) -> Corpus:
    return prepare(data(max_length=16), word_piece(), tell=lambda _: None)


@pytest.fixture
def gpt(data: Build, causal: Build) -> Corpus:
    return prepare(data(max_length=16), causal(), tell=lambda _: None)


def feed(blocks: Blocks, mode: Any = "dynamic", **words: Any) -> Feed:
    return Feed(blocks, **({"masking": Masking.model_validate({"mode": mode}), "seed": 3, "batch_size": 8} | words))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_shapes_and_types(bert: Corpus) -> None:
    batch = feed(bert.train).batch(0)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "input_ids": (torch.int64, (8, 16)),
        "attention_mask": (torch.int64, (8, 16)),
        "labels": (torch.int64, (8, 16)),
        "select": (torch.bool, (8, 16)),
        "documents": (torch.int32, (8, 16)),
        "blocks": (torch.int64, (8,)),
    }
    assert batch["attention_mask"].all()


@pytest.mark.parametrize("mode", ["dynamic", "static", "none"])
def test_a_batch_is_a_function_of_seed_and_step(bert: Corpus, mode: str) -> None:
    one = feed(bert.train, mode)
    late = one.batch(40)
    assert same(late, feed(bert.train, mode).batch(40))
    assert not same(late, one.batch(41))
    assert not same(late, feed(bert.train, mode, seed=4).batch(40))


@pytest.mark.parametrize("mode", ["dynamic", "static", "none"])
def test_rows_of_a_batch_are_those_of_the_whole(bert: Corpus, mode: str) -> None:
    one = feed(bert.train, mode)
    whole = one.batch(5)
    for split in (4, 3, 1):
        parts = [one.batch(5, slice(start, start + split)) for start in range(0, 8, split)]
        assert same(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})
    assert same({name: tensor[1::3] for name, tensor in whole.items()}, one.batch(5, slice(1, None, 3)))


def test_masked_labels_are_the_text(bert: Corpus) -> None:
    one = feed(bert.train)
    batch, text = one.batch(2), torch.from_numpy(bert.train.rows(one.indices(2)))
    hidden = batch["labels"] != -100
    assert hidden.any(1).all()
    assert torch.equal(torch.where(hidden, batch["labels"], batch["input_ids"]), text)
    assert batch["select"].all()
    assert torch.equal(feed(bert.train, positions="masked").batch(2)["select"], hidden)


@pytest.mark.parametrize("mode", ["dynamic", "static", "none"])
def test_a_share_of_the_positions(bert: Corpus, gpt: Corpus, mode: str) -> None:
    """A share of what `all` selects, one a row at least; labels elsewhere are dropped; evaluations take all."""
    causal = mode == "none"
    words = {"causal": causal, "batch_size": 64}
    corpus = gpt if causal else bert
    whole, some = feed(corpus.train, mode, **words), feed(corpus.train, mode, positions=Sampled(sampled=0.25), **words)
    for step in (0, 7):
        every, few = whole.batch(step), some.batch(step)
        assert not (few["select"] & ~every["select"]).any() and few["select"].any(1).all()
        assert 0.2 < few["select"].sum() / every["select"].sum() < 0.32
        assert torch.equal(few["labels"], torch.where(few["select"], every["labels"], -100))
        assert torch.equal(few["input_ids"], every["input_ids"])
        assert same({k: v[5:9] for k, v in few.items()}, some.batch(step, slice(5, 9)))
    blocks = torch.tensor([3, 5])
    again = {step: some.batch(step) for step in range(3 * len(corpus.train) // 64)}
    found = [it["select"][it["blocks"] == 3] for it in again.values()]
    seen = torch.cat(found)
    assert len(seen) > 1 and bool((seen == seen[0]).all()) == (mode != "dynamic")
    assert same(some.sample(blocks.numpy()), whole.sample(blocks.numpy()))
    rare = feed(corpus.train, mode, positions=Sampled(sampled=1e-6), **words).batch(0)["select"]
    assert rare.sum(1).tolist() == [1] * 64


def test_dynamic_masks_change_from_epoch_to_epoch_and_static_ones_do_not(bert: Corpus) -> None:
    epoch = len(bert.train)
    for mode, changes in (("dynamic", True), ("static", False)):
        one = feed(bert.train, mode, batch_size=epoch)
        (a, order_a), (b, order_b) = ((one.batch(step)["labels"], one.indices(step)) for step in (0, 1))
        assert not np.array_equal(order_a, order_b)
        assert torch.equal(a[np.argsort(order_a)], b[np.argsort(order_b)]) is not changes


def test_a_dynamic_mask_is_that_of_its_row(bert: Corpus) -> None:
    chance = uniform(derive_seed(3, "masking", 9), np.array([6]), 48).reshape(16, 3)[:, 0]
    batch = feed(bert.train, masking=Masking(mode="dynamic", probability=0.5)).batch(9, slice(6, 7))
    ordinary = ~np.isin(bert.train.rows(feed(bert.train).indices(9)[6:7])[0], bert.special.every)
    assert ((batch["labels"][0] != -100).numpy() == (ordinary & (chance < 0.5))).all()


def test_nothing_is_masked_without_masking(bert: Corpus) -> None:
    batch = feed(bert.train, "none").batch(0)
    assert torch.equal(batch["input_ids"], torch.from_numpy(bert.train.rows(feed(bert.train).indices(0))))
    assert (batch["labels"] == -100).all()
    assert batch["select"].all()


def test_causal_labels_are_the_next_token(gpt: Corpus) -> None:
    one = feed(gpt.train, causal=True)  # masking is left at its default and has no effect
    batch = one.batch(1)
    assert torch.equal(batch["input_ids"], torch.from_numpy(gpt.train.rows(one.indices(1))))
    assert torch.equal(batch["labels"][:, :-1], batch["input_ids"][:, 1:])
    assert (batch["labels"][:, -1] == -100).all()
    assert batch["select"][:, :-1].all()
    assert not batch["select"][:, -1].any()


def test_evaluations_see_the_same_masked_text_for_every_seed(bert: Corpus) -> None:
    one, other = feed(bert.train), feed(bert.train, "static", seed=9, batch_size=5)
    assert same(one.sample(np.array([4, 1])), other.sample(np.array([4, 1])))
    assert torch.equal(one.sample(np.array([4, 1]))["labels"][1], other.sample(np.array([1]))["labels"][0])
    a, b = (list(f.fixed(11, 4)) for f in (one, other))
    assert [len(batch["labels"]) for batch in a] == [4, 4, 3]
    assert all(same(x, y) for x, y in zip(a, b, strict=True))


def test_fixed_blocks_are_spread_over_the_part(gpt: Corpus) -> None:
    one = feed(gpt.train, causal=True)
    count = len(gpt.train)
    rows = torch.cat([batch["input_ids"] for batch in one.fixed(5)])
    assert torch.equal(rows, torch.from_numpy(gpt.train.rows(np.arange(5) * count // 5)))
    assert sum(len(batch["labels"]) for batch in one.fixed(10**6)) == count


def test_what_cannot_be_masked_is_refused(bert: Corpus, gpt: Corpus) -> None:
    with pytest.raises(UserError, match=r"no mask token; set data.masking.mode to none"):
        feed(gpt.train)
    with pytest.raises(UserError, match=r"nothing is masked; set data.positions to all"):
        feed(bert.train, "none", positions="masked")
    with pytest.raises(UserError, match=r"nothing is masked"):
        feed(gpt.train, causal=True, positions="masked")
