"""Measures a masked language model on the held-out part of a corpus: masked top-1 accuracy and loss, 15 % masked.

python recipes/embedded/measure.py CORPUS [MODEL]      # MODEL: the embedded teacher when left out
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from limbeck.losses import cross_entropy
from limbeck.models import pretrained
from limbeck.models.taps import Tapped
from limbeck.recipe.models import Source
from limbeck.recipe.recipe import Data, Masking
from limbeck.text.block_feed import Feed
from limbeck.text.blocks import prepare

BLOCKS = 2000


@torch.no_grad()
def measure(corpus: str, source: str) -> None:
    """Prints the numbers over the held-out part (at most `BLOCKS` blocks)."""
    where = Source(source=source, revision=None)
    tokenizer = pretrained.tokenizer_of(where)
    data = Data(corpus=corpus)
    feed = Feed(prepare(data, tokenizer, tell=lambda line: None).heldout, masking=Masking(), positions="masked")
    model = Tapped(pretrained.model_of(where, torch.float32).eval())
    loss = right = count = 0.0
    for batch in feed.fixed(BLOCKS, batch_size=32):
        labels = batch["labels"][batch["select"]]
        logits = model.head(model(batch).features[batch["select"]])
        loss += cross_entropy(student=logits, labels=labels).sum().item()
        right += (logits.argmax(-1) == labels).sum().item()
        count += len(labels)
    print(
        f"{Path(source).name}: {count:,.0f} masked tokens, accuracy {right / count:.1%}, loss {loss / count:.3f} nats"
    )


if __name__ == "__main__":
    measure(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else pretrained.EMBEDDED)
