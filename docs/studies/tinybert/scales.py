"""How large the hidden states of a model are, layer by layer: python docs/studies/tinybert/scales.py MODEL texts.jsonl[.xz]

Mean square, and mean variance over the units, of the first 128 tokens of 16 texts (column `text`).
"""

import json
import lzma
import sys
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer


def main(source: str, path: Path) -> None:
    """A line for the embedding and for every layer."""
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in islice(file, 16)]
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    rows = AutoTokenizer.from_pretrained(source)(
        texts, truncation=True, max_length=128, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**rows, output_hidden_states=True).hidden_states
    for layer, state in enumerate(states):
        kept = state[rows["attention_mask"].bool()]
        print(f"{layer}: mean square {kept.square().mean():.4f}, variance {kept.var(0).mean():.4f}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
