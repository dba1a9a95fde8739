from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from limbeck.errors import UserError
from limbeck.recipe.data import Masking
from limbeck.text.block_feed import Feed
from limbeck.text.blocks import Blocks
from limbeck.text.mixed_feed import Beside, Mixed
from limbeck.text.row_feed import TaskFeed
from limbeck.text.rows import Rows
from limbeck.text.tokenise import Special

Build = Callable[..., Any]
LABELLED, BARE, PAD = 7, 13, 99  # rows of the two parts


def mix(labelled: Any, bare: Any, share: float) -> Mixed[Any]:
    return Mixed(labelled, {"data.unlabelled": Beside(bare, share, labels=False)})


def rows(count: int, first: int, longest: int, regression: bool = False) -> Rows:
    """Rows of 1 to `longest` tokens, all of them `first + row`."""
    lengths = [1 + i % longest for i in range(count)]
    tokens = np.repeat(np.arange(first, first + count), lengths)
    labels = np.arange(count, dtype=np.float32 if regression else np.int64)
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
    return Rows(tokens, np.ones(len(tokens), np.uint8), starts, labels, longest, Special(99, ()))


def tasks(size: int, seed: int = 3, **words: Any) -> tuple[TaskFeed, TaskFeed]:
    both = rows(LABELLED, 100, 3, **words), rows(BARE, 200, 6, **words)
    labelled, bare = (TaskFeed(part, seed=seed, batch_size=size, pad_id=PAD, types=True) for part in both)
    return labelled, bare


def packed(size: int, seed: int = 3) -> tuple[Feed, Feed]:
    """Seven blocks of three documents, and thirteen of four."""
    special = Special(300, (0, 1, 2, 3, 4), mask=4, frame=(2, 3))
    masking = Masking(mode="dynamic", probability=0.4)
    labelled, bare = (
        Feed(Blocks(stream, starts, 8, special), masking=masking, seed=seed, batch_size=size)
        for stream, starts in (
            (np.arange(100, 100 + 6 * LABELLED), np.array([0, 9, 30])),
            (np.arange(200, 200 + 6 * BARE), np.array([0, 5, 40, 70])),
        )
    )
    return labelled, bare


def same(a: torch.Tensor, b: torch.Tensor, fill: int = 0) -> bool:
    """Equal but for padding."""
    if a.dim() == 2:
        short, long = sorted((a, b), key=lambda t: t.shape[1])
        return torch.equal(long[:, : short.shape[1]], short) and bool((long[:, short.shape[1] :] == fill).all())
    return torch.equal(a, b)


# --- proportions ---


@given(st.integers(2, 64), st.data())
@settings(deadline=None, max_examples=150)
def test_the_share_is_kept_and_spread(size: int, draw: st.DataObject) -> None:
    count = draw.draw(st.integers(1, size - 1))
    mixed = mix(*tasks(size), share=count / size)
    bare = mixed.batch(2)["blocks"] >= LABELLED
    exact = Fraction(count, size)
    assert bare.tolist() == [floor((i + 1) * exact) > floor(i * exact) for i in range(size)]
    assert int(bare.sum()) == count
    for rows in (rows for rows in range(1, size + 1) if size % rows == 0):
        parts = bare.reshape(-1, rows).sum(1)
        assert parts.min() >= floor(rows * exact) and parts.max() - parts.min() <= 1
        if (rows * count) % size == 0:
            assert (parts == rows * count // size).all()


@given(st.integers(1, 40), st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=150)
def test_a_share_that_is_no_whole_number_of_rows_is_refused_and_others_named(size: int, share: float) -> None:
    rows = share * size
    assume(abs(rows - round(rows)) > 1e-9 or not 0 < round(rows) < size)
    with pytest.raises(UserError) as caught:
        mix(*tasks(size), share=share)
    said = str(caught.value)
    assert f"train.batch_size ({size})" in said and "data.unlabelled" in said and "\n" not in said
    if size > 1:
        near = [float(word) for word in said.rpartition("set the share to ")[2].split(" or ")]
        assert near and all(abs(other - share) <= 1 / size + 1e-12 for other in near)
        for other in near:
            assert mix(*tasks(size), share=other).batch_size == size


def test_the_error_in_full() -> None:
    with pytest.raises(UserError) as caught:
        mix(*tasks(8), share=0.3)
    assert str(caught.value) == (
        "data.unlabelled.share (0.3) of train.batch_size (8) makes 2.4 rows, "
        "and must be a whole number of them beside others; set the share to 0.25 or 0.375"
    )
    with pytest.raises(UserError, match=r"set the share to 0\.125$"):
        mix(*tasks(8), share=0.01)
    with pytest.raises(UserError, match=r"set the share to 0\.875$"):
        mix(*tasks(8), share=1 - 1e-12)
    with pytest.raises(
        UserError, match=r"train\.batch_size \(1\) has no room for the rows of data.unlabelled beside others"
    ):
        mix(*tasks(1), share=0.5)


@pytest.mark.parametrize(("share", "size"), [(0.1, 10), (0.7, 10), (1 / 3, 96), (0.29, 100), (0.57, 100)])
def test_shares_that_floats_miss_are_whole(share: float, size: int) -> None:
    bare = mix(*tasks(size), share=share).batch(0)["blocks"] >= LABELLED
    assert int(bare.sum()) == round(share * size)


# --- rows ---


@pytest.mark.parametrize("make", [tasks, packed])
def test_rows_are_those_of_two_feeds(make: Build) -> None:
    mixed = mix(*make(8), share=0.375)
    labelled, bare = make(5)[0], make(3)[1]
    total = labelled.blocks.documents.shape[0]
    for step in (0, 4, 31):
        whole = mixed.batch(step)
        where = whole["blocks"] >= LABELLED
        for name, tensor in whole.items():
            fill = PAD if name == "input_ids" else 0
            assert same(tensor[~where], labelled.batch(step)[name], fill)
            expected = bare.batch(step)[name]
            if name == "labels":
                expected = torch.full_like(expected, -100)
            if name == "blocks":
                expected = expected + LABELLED
            if name == "documents":
                expected = torch.where(expected < 0, expected, expected + total)
            assert same(tensor[where], expected, fill)
            assert tensor.dtype == labelled.batch(step)[name].dtype
        assert np.array_equal(mixed.indices(step), whole["blocks"].numpy())


def test_documents_that_packing_added_stay_none() -> None:
    batch = mix(*packed(8), share=0.5).batch(0)
    where = batch["blocks"] >= LABELLED
    assert (batch["documents"][:, [0, -1]] == -1).all()
    assert set(batch["documents"][~where][:, 1:-1].unique().tolist()) <= {0, 1, 2}
    assert set(batch["documents"][where][:, 1:-1].unique().tolist()) <= {3, 4, 5, 6}
    assert (batch["labels"][where] == -100).all()
    assert (batch["labels"][~where] != -100).any()
    assert batch["select"].all()


def test_padding_is_that_of_the_longer_rows() -> None:
    batch = mix(*tasks(20), share=0.65).batch(0)  # every row of both parts
    assert batch["input_ids"].shape == (20, 6)
    lengths = batch["attention_mask"].sum(1)
    assert torch.equal(batch["attention_mask"], (torch.arange(6) < lengths[:, None]).long())
    assert torch.equal(batch["token_type_ids"], batch["attention_mask"])
    assert (batch["input_ids"][batch["attention_mask"] == 0] == PAD).all()
    where = batch["blocks"] >= LABELLED
    assert (batch["input_ids"][where][:, 0] == 200 - LABELLED + batch["blocks"][where]).all()


@pytest.mark.parametrize("make", [tasks, packed])
def test_slices_are_rows_of_the_whole(make: Build) -> None:
    mixed = mix(*make(12), share=0.25)
    whole = mixed.batch(9)
    slices = [slice(start, start + split) for split in (6, 5, 4, 3, 1) for start in range(0, 12, split)]
    for where in [*slices, slice(1, None, 3), slice(None, None, -1), slice(10, 2, -2)]:
        part = mixed.batch(9, where)
        assert part.keys() == whole.keys()
        chosen = torch.from_numpy(np.arange(12)[where].copy())
        for name, tensor in whole.items():
            assert same(tensor[chosen], part[name], PAD if name == "input_ids" else 0)
    assert len(mixed.batch(9, slice(0, 0))["labels"]) == 0


def test_scores_are_left_out_too() -> None:
    batch = mix(*tasks(8, regression=True), share=0.5).batch(0)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"][batch["blocks"] >= LABELLED].tolist() == [-100.0] * 4
    assert (batch["labels"][batch["blocks"] < LABELLED] >= 0).all()


@pytest.mark.parametrize("make", [tasks, packed])
def test_evaluations_read_labelled_text(make: Build) -> None:
    labelled, bare = make(8)
    mixed = mix(labelled, bare, share=0.25)
    pairs = [(mixed.sample(np.array([3, 1])), labelled.sample(np.array([3, 1])))]
    pairs += zip(mixed.fixed(10**6), labelled.fixed(10**6), strict=True)
    pairs += zip(mixed.fixed(3, 2), labelled.fixed(3, 2), strict=True)
    assert len(pairs) == 4
    for a, b in pairs:
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_feeds_that_are_given_stay_as_they_are() -> None:
    labelled, bare = tasks(8)
    mix(labelled, bare, share=0.25)
    assert (labelled.batch_size, bare.batch_size) == (8, 8)
    other = TaskFeed(bare.blocks, seed=3, batch_size=999, pad_id=PAD, types=True)
    one, two = mix(labelled, bare, share=0.25).batch(1), mix(labelled, other, share=0.25).batch(1)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_every_row_comes_once_an_epoch() -> None:
    mixed = mix(*tasks(4), share=0.25)
    seen = np.concatenate([mixed.indices(step) for step in range(91)])  # 39 epochs of one part, 7 of the other
    counts = np.bincount(seen, minlength=LABELLED + BARE)
    assert counts.tolist() == [39] * LABELLED + [7] * BARE


# --- more than two texts ---


@given(st.integers(3, 64), st.data())
@settings(deadline=None, max_examples=100)
def test_every_text_has_its_share(size: int, draw: st.DataObject) -> None:
    first = draw.draw(st.integers(1, size - 2))
    second = draw.draw(st.integers(1, size - 1 - first))
    mixed = three(size, first / size, second / size)
    whose = np.searchsorted([LABELLED, LABELLED + BARE], mixed.indices(5), side="right")
    assert np.bincount(whose, minlength=3).tolist() == [size - first - second, first, second]
    for rows in (rows for rows in range(1, size + 1) if size % rows == 0):
        parts = (whose.reshape(-1, rows) == 1).sum(1)
        assert parts.max() - parts.min() <= 1


def three(size: int, first: float, second: float) -> Mixed[Any]:
    one, two = tasks(size)
    other = TaskFeed(rows(5, 300, 4), seed=8, batch_size=size, pad_id=PAD, types=True)
    return Mixed(one, {"data.unlabelled": Beside(two, first, False), "data.mixture.more": Beside(other, second)})


def test_each_text_is_read_in_its_own_order_with_its_labels() -> None:
    mixed, (one, two) = three(8, 0.25, 0.125), (tasks(5)[0], tasks(2)[1])
    other = TaskFeed(rows(5, 300, 4), seed=8, batch_size=1, pad_id=PAD, types=True)
    for step in (0, 3, 17):
        whole = mixed.batch(step)
        for first, last, feed, labels in (
            (0, LABELLED, one, True),
            (LABELLED, LABELLED + BARE, two, False),
            (LABELLED + BARE, LABELLED + BARE + 5, other, True),
        ):
            mine, alone = (whole["blocks"] >= first) & (whole["blocks"] < last), feed.batch(step)
            assert torch.equal(whole["blocks"][mine], alone["blocks"] + first)
            assert torch.equal(whole["documents"][mine], alone["documents"] + first)
            assert same(whole["input_ids"][mine], alone["input_ids"], PAD)
            assert torch.equal(
                whole["labels"][mine], alone["labels"] if labels else torch.full_like(alone["labels"], -100)
            )


def test_a_cache_finds_the_rows_of_every_text() -> None:
    mixed = three(8, 0.25, 0.125)
    batch = mixed.batch(11)
    again = mixed.again(batch["blocks"].numpy())
    assert all(same(batch[name], again[name], PAD if name == "input_ids" else 0) for name in batch)
    assert len(mixed) == LABELLED + BARE + 5 and len(mixed.masks) == 3


def test_shares_that_leave_nothing() -> None:
    with pytest.raises(
        UserError, match=r"data\.unlabelled, data\.mixture\.more: their shares leave no row of a batch to data\.corpus"
    ):
        three(8, 0.5, 0.5)
