from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.recipe.data import Masking
from limbeck.text.block_feed import Feed
from limbeck.text.order import block_indices
from limbeck.text.row_feed import TaskFeed
from limbeck.text.rows import Rows
from limbeck.text.tokenise import Special

Build = Callable[..., Any]
LENGTHS = [3, 7, 2, 9, 4, 4, 8, 2, 5, 6, 3]  # tokens of the rows
PAD = 50


def rows(regression: bool = False, lengths: list[int] = LENGTHS) -> Rows:
    """Rows of which row i holds the tokens 10 i, 10 i + 1, ...; its second segment begins at its second token."""
    ids = [[10 * i + k for k in range(n)] for i, n in enumerate(lengths)]
    types = [[int(k > 0) for k in range(n)] for n in lengths]
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
    count = len(lengths)
    labels = np.arange(count, dtype=np.float32) / 2 if regression else np.arange(count, dtype=np.int64) % 3
    labels[4] = -100
    return Rows(
        np.concatenate(ids).astype(np.uint16),
        np.concatenate(types).astype(np.uint8),
        starts,
        labels,
        9,
        Special(999, ()),
    )


def feed(part: Rows | None = None, **words: Any) -> TaskFeed:
    return TaskFeed(part or rows(), **({"seed": 3, "batch_size": 4, "pad_id": PAD, "types": True} | words))


def equal_but_for_padding(whole: dict[str, torch.Tensor], part: dict[str, torch.Tensor], where: slice) -> bool:
    """Whether a part holds the given rows of the whole, each with padding of its own."""
    assert whole.keys() == part.keys()
    for name, tensor in whole.items():
        kept = tensor[where]
        if tensor.dim() == 2:
            longest = part[name].shape[1]
            rest = kept[:, longest:]
            assert bool((rest == (PAD if name == "input_ids" else 0)).all())
            kept = kept[:, :longest]
        if not torch.equal(kept, part[name]):
            return False
    return True


@pytest.mark.parametrize("regression", [False, True])
def test_shapes_and_types(regression: bool) -> None:
    batch = feed(rows(regression), batch_size=11).batch(0)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "input_ids": (torch.int64, (11, 9)),
        "attention_mask": (torch.int64, (11, 9)),
        "token_type_ids": (torch.int64, (11, 9)),
        "labels": (torch.float32 if regression else torch.int64, (11,)),
        "select": (torch.bool, (11,)),
        "documents": (torch.int32, (11,)),
        "blocks": (torch.int64, (11,)),
    }
    assert "token_type_ids" not in feed(types=False).batch(0)


def test_a_batch_by_hand() -> None:
    batch = {name: tensor.tolist() for name, tensor in feed().sample(np.array([2, 4, 0])).items()}
    assert batch == {
        "input_ids": [[20, 21, PAD, PAD], [40, 41, 42, 43], [0, 1, 2, PAD]],
        "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]],
        "token_type_ids": [[0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 0]],
        "labels": [2, -100, 0],
        "select": [True, True, True],
        "documents": [2, 4, 0],
        "blocks": [2, 4, 0],
    }


def test_rows_are_filled_up_to_a_length() -> None:
    """Also those of a batch without long ones, in every part of it; nothing else changes."""
    plain, filled = feed(), feed(length=12)
    for step in range(4):
        for part in (slice(None), slice(1, 3)):
            short, long = plain.batch(step, part), filled.batch(step, part)
            assert {tensor.shape[1] for tensor in long.values() if tensor.dim() == 2} == {12}
            assert equal_but_for_padding(long, short, slice(None))


def test_the_order_is_that_of_blocks() -> None:
    one = feed()
    for step in (0, 7, 100):
        assert np.array_equal(one.indices(step), block_indices(3, step, 4, 11))
        assert torch.equal(one.batch(step)["blocks"], torch.from_numpy(one.indices(step)))
    assert sorted(np.concatenate([feed(batch_size=1).indices(step) for step in range(11)])) == list(range(11))
    assert not np.array_equal(one.indices(0), feed(seed=4).indices(0))


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    late = feed().batch(40)
    again = feed().batch(40)
    assert all(torch.equal(late[name], again[name]) for name in late)
    assert not torch.equal(late["blocks"], feed().batch(41)["blocks"])


def test_batches_of_rows_of_like_length() -> None:
    """Every row once an epoch, in every pool the rows of that pool, less padding, and no order that all seeds share."""
    lengths = [2 + (7 * i) % 23 for i in range(48)]
    plain, pooled = (feed(rows(lengths=lengths), pool=pool) for pool in (1, 6))
    epoch = [pooled.indices(step) for step in range(12)]
    assert sorted(np.concatenate(epoch)) == list(range(48))
    for first in (0, 6):
        mine, theirs = (np.concatenate([it.indices(first + i) for i in range(6)]) for it in (pooled, plain))
        assert sorted(mine) == sorted(theirs)

    def padded(it: TaskFeed) -> int:
        return sum(int((it.batch(step)["attention_mask"] == 0).sum()) for step in range(12))

    assert padded(pooled) < padded(plain) / 3
    orders = {
        tuple(np.argsort([max(lengths[i] for i in pooled.indices(6 * q + s)) for s in range(6)])) for q in range(8)
    }
    assert len(orders) > 4  # short batches do not always come first
    assert any((pooled.indices(s) != feed(rows(lengths=lengths), pool=6, seed=4).indices(s)).any() for s in range(6))
    assert (
        np.concatenate([b["blocks"] for b in pooled.fixed(48)]).tolist() == np.argsort(lengths, kind="stable").tolist()
    )


def test_rows_of_a_batch_are_those_of_the_whole() -> None:
    one = feed(batch_size=8)
    whole = one.batch(5)
    for split in (4, 3, 1):
        for start in range(0, 8, split):
            where = slice(start, start + split)
            part = one.batch(5, where)
            assert equal_but_for_padding(whole, part, where)
            assert part["input_ids"].shape[1] == int(part["attention_mask"].sum(1).max())
    assert equal_but_for_padding(whole, one.batch(5, slice(1, None, 3)), slice(1, None, 3))
    assert one.batch(5, slice(0, 0))["input_ids"].shape == (0, 0)


def test_fixed_rows_are_spread_over_the_part() -> None:
    batches = list(feed().fixed(5, 2))
    assert [len(batch["labels"]) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch["blocks"] for batch in batches]).tolist() == [0, 2, 4, 6, 8]
    everything = list(feed(batch_size=3).fixed(10**6))
    assert torch.cat([batch["documents"] for batch in everything]).tolist() == list(range(11))
    assert equal_but_for_padding(everything[0], feed(seed=9).sample(np.array([0, 1, 2])), slice(None))


def test_it_answers_to_the_names_of_feed(data: Build, word_piece: Build) -> None:
    from limbeck.text.blocks import prepare

    corpus = prepare(data(), word_piece(), tell=lambda _: None)
    packed = Feed(corpus.train, masking=Masking())
    public = {name for name in dir(packed) if not name.startswith("_")} - {
        "causal",
        "mode",
        "probability",
        "positions",
        "share",
    }
    assert public <= {name for name in dir(feed()) if not name.startswith("_")}
    assert feed().batch(0).keys() - {"token_type_ids"} == packed.batch(0).keys()


def test_counts_of_the_training_step() -> None:
    from limbeck.distil.reduce import Counts

    batches = [feed().sample(np.array([4, 0])), feed().sample(np.array([1]))]
    assert Counts.of(batches) == Counts(
        tokens=14, selected=3, labels=2, rows=3, batches=2, selecting=2, padded=15, pairs=81
    )


def test_batches_of_a_corpus(tmp_path: Path, word_piece: Build) -> None:
    """From a file to a batch, against transformers' own padding."""
    from limbeck.recipe.data import Data
    from limbeck.text.rows import prepare_task

    texts = ["a b", "c", "d e f", "g h a", "still wort"]
    for name, chosen in (("train", texts), ("dev", ["x y"])):
        lines = "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(chosen))
        (tmp_path / f"{name}.tsv").write_text(f"sentence\tlabel\n{lines}")
    words = {"corpus": str(tmp_path), "cache": str(tmp_path / "cache"), "task": {"kind": "classification"}}
    corpus = prepare_task(Data.model_validate(words), word_piece(), tell=lambda _: None)
    batch = TaskFeed(corpus.train, batch_size=5).sample(np.arange(5))
    expected = word_piece()(texts, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert batch["labels"].tolist() == [0, 1, 0, 1, 0]
