"""The teacher cache: an epoch read from it against the live teacher, and its bytes a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks import sides
from benchmarks.race import race, ratio
from benchmarks.rows import Row, row
from benchmarks.shapes import Shape
from limbeck.distil import schemes
from limbeck.distil.reduce import Share
from limbeck.distil.teachers import Frozen
from limbeck.losses import topk_kl
from limbeck.losses.sparse import TopK
from limbeck.recipe.data import Masking
from limbeck.system.processes import World
from limbeck.teacher_cache.cached import Cached
from limbeck.teacher_cache.packing import Packing
from limbeck.teacher_cache.shelf import AnswerShelf, KeptStates
from limbeck.text.block_feed import Feed
from limbeck.text.blocks import Blocks
from limbeck.text.tokenise import Special

TOP_K = 50
EPOCH = 4  # batches of an epoch


def feed_of(shape: Shape) -> Feed:
    """Random text of some batches, no masks, all tokens selected."""
    count = EPOCH * shape.rows * shape.length
    stream = np.random.default_rng(0).integers(0, shape.vocabulary, count).astype(np.uint32)
    blocks = Blocks(stream, np.array([0]), shape.length, Special(shape.vocabulary, ()))
    return Feed(blocks, masking=Masking(mode="none"), batch_size=shape.rows)


def autocast_of(shape: Shape) -> torch.dtype | None:
    """As a run takes it."""
    return torch.bfloat16 if shape.precision == "bf16" else None


def shelf_of(folder: Path, teacher: Frozen, shape: Shape, top_k: int) -> AnswerShelf:
    """The teacher's predictions for that text, as the run would make them."""
    kept = KeptStates(shape.vocabulary, top_k, (), "bf16")
    shelf = AnswerShelf(folder, teacher, feed_of(shape), kept, text="random", autocast=autocast_of(shape))
    shelf.write(0, 1, lambda: False, lambda line: None)
    return shelf


def training(turns: Iterator[None], shape: Shape, cached: bool) -> None:
    """Updates of one student on logits alone, the teacher read from the cache or run."""
    sides.prepare(shape)
    teacher, (learner,) = sides.cast(shape, shape.precision, 1)
    with TemporaryDirectory() as folder:
        top_k = min(TOP_K, shape.vocabulary // 4)
        answers = Cached(teacher, shelf_of(Path(folder), teacher, shape, top_k), shape.length) if cached else teacher
        how: dict[str, Any] = {"chunk": shape.chunk_of(shape.precision), "autocast": autocast_of(shape)}
        terms = sides.terms(shape)[:1]
        if cached:  # as a recipe has it: over what is kept
            terms = [replace(term, loss=partial(topk_kl, k=top_k)) for term in terms]
        cast = schemes.offline(learner, {"teacher": answers}, terms)
        cast = schemes.unmeasured(cast) if cached else cast
        still, feed = schemes.together([cast], world=World(device=torch.device(shape.device)), **how), feed_of(shape)
        for step, _ in enumerate(turns):
            batch = {name: tensor.to(shape.device) for name, tensor in feed.batch(step).items()}
            still.step(Share.of([batch]), step)


def epoch(shape: Shape, rounds: int) -> Row:
    """`cache_epoch`: epochs/s from the cache over epochs/s with the live teacher: forward KL, from the cache over what is kept."""
    runners = {name: partial(training, shape=shape, cached=name == "cached") for name in ("live", "cached")}
    laps = race(runners, shape.device, rounds)
    detail = {name: lap.detail() for name, lap in laps.items()}
    return row("cache_epoch", shape.device, ratio(laps["live"], laps["cached"]), laps["live"].median, detail)


@torch.no_grad()
def size(shape: Shape) -> Row:
    """`cache_bytes`: bytes a token on the disk, index and checksums included, and the KL to the unpacked top-50.

    The KL is that of random logits of growing spread (standard deviation 1 to 10), since a random teacher says little: its
    mean, and the largest of any token.
    """
    teacher, _ = sides.cast(shape, shape.precision, 1)
    top_k = min(TOP_K, shape.vocabulary // 4)
    with TemporaryDirectory() as folder:
        shelf = shelf_of(Path(folder), teacher, shape, top_k)
        files = sum(path.stat().st_size for path in shelf.folder.rglob("*") if path.name != "facts.json")
    packing, found = Packing(shape.vocabulary, top_k), []
    for spread in (1.0, 2.0, 4.0, 7.0, 10.0):
        said = TopK.of(torch.randn(512, shape.vocabulary, generator=torch.Generator().manual_seed(1)) * spread, top_k)
        found.append(_kl(said, packing.unpack(packing.pack(said))))
    lost = torch.cat(found)
    detail = {"packed_bytes": packing.size, "kl_mean": lost.mean().item(), "kl_most": lost.max().item()}
    return row("cache_bytes", shape.device, files / (EPOCH * shape.tokens), None, detail)


def _kl(said: TopK, read: TopK) -> torch.Tensor:
    """KL of the k + 1 probabilities of each token, in nats."""
    p, q = (
        torch.cat([it.logprobs.gather(-1, it.indices.argsort(-1)), it.rest[:, None]], dim=1).double()
        for it in (said, read)
        if it.rest is not None
    )
    return (p.exp() * (p - q)).sum(-1)


def rows(names: Sequence[str], shape: Shape, rounds: int) -> list[Row]:
    """The rows of these names."""
    made = {"cache_epoch": lambda: epoch(shape, rounds), "cache_bytes": lambda: size(shape)}
    return [made[name]() for name in names]
