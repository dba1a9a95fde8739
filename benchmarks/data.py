"""Text to packed tokens against the tokenizers library alone, and how long a step waits for its batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import limbeck
from benchmarks import sides
from benchmarks.race import race
from benchmarks.rows import Row, row
from benchmarks.shapes import Shape
from limbeck.recipe.data import Data
from limbeck.text.block_feed import Feed
from limbeck.text.blocks import Corpus, batches, prepare
from limbeck.text.heldout import separate

EMBEDDED = Path(limbeck.__file__).parent / "data" / "embedded"
WORDS = 300  # of a generated document


def generate(path: Path, megabytes: float, tokenizer: Any) -> None:
    """Documents of the tokenizer's own words and of joined ones, as frequent as their rank tells (Zipf)."""
    draw = np.random.default_rng(0)
    known = sorted(word for word in tokenizer.get_vocab() if word.isalpha())
    words = np.array(known + [a + b for a, b in zip(known, draw.permutation(known), strict=True)])
    shares = 1 / np.arange(1, len(words) + 1)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            chosen = draw.choice(words, WORDS, p=shares / shares.sum())
            written += file.write(" ".join(chosen) + "\n\n")


def rows(names: Sequence[str], shape: Shape, rounds: int, megabytes: float, text: Path | None = None) -> list[Row]:
    """`data`: MB/s of tokenising and packing, over MB/s of `encode_batch_fast` on the same batches with the same threads."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    with TemporaryDirectory() as folder:
        if text is None:
            text = Path(folder) / "text.txt"
            generate(text, megabytes, tokenizer)
        told = Data(corpus=str(text), heldout=0.1, max_length=shape.length, max_bytes=round(2 * megabytes * 1e6))
        texts = [[document for *_, document in batch] for batch in batches(separate(told), len)]
        size = sum(len(document.encode()) for batch in texts for document in batch) / 1e6
        whole, alone = [], []
        corpus = None
        for number in range(rounds + 1):
            start = perf_counter()
            cache = str(Path(folder) / f"cache{number}")
            corpus = prepare(told.model_copy(update={"cache": cache}), tokenizer, tell=lambda line: None)
            middle = perf_counter()
            for batch in texts:
                backend.encode_batch_fast(batch, add_special_tokens=False)
            whole.append(middle - start)
            alone.append(perf_counter() - middle)
        assert corpus is not None
        wait = _wait(corpus, told, shape)
    step = race({"limbeck": partial(sides.limbeck, shape=shape)}, shape.device, rounds)["limbeck"].median
    pairs = list(zip(alone[1:], whole[1:], strict=True))
    detail = {
        "megabytes": size,
        "seconds": {"limbeck": median(whole[1:]), "tokenizers": median(alone[1:])},
        "megabytes_per_second": {"limbeck": size / median(whole[1:]), "tokenizers": size / median(alone[1:])},
        "wait_seconds": wait,
        "step_seconds": step,
        "wait_of_step": wait / step,
    }
    return [row("data", shape.device, median(a / b for a, b in pairs), size / median(alone[1:]), detail)]


def _wait(corpus: Corpus, told: Data, shape: Shape, count: int = 20) -> float:
    """Seconds that a step waits for a masked batch."""
    feed, seconds = Feed(corpus.train, masking=told.masking, batch_size=shape.rows), []
    for step in range(count):
        start = perf_counter()
        feed.batch(step)
        seconds.append(perf_counter() - start)
    return median(seconds)
