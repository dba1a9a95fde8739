"""Students for the tests of exports: folders of every family, and what was done to their weights by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from rows import framed, small
from spelling import lay_out

from limbeck.models import compressed
from limbeck.models.compressed import Compressed, Grid, from_grid, on_grid

TABLE = "bert.embeddings.word_embeddings"
INNER, OUTER = "bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"
RANK = 6


def classifier(folder: Path) -> Path:
    """A small BERT of two classes."""
    small(classes=2).save_pretrained(folder)
    framed().save_pretrained(folder)
    return folder


def squeezed(folder: Path) -> Path:
    """A masked BERT of one layer whose embedding and one layer are two factors; some parts have 4 bits, one in groups, others 8."""
    lay_out("bert", folder, num_hidden_layers=1)
    model: Any = tf.AutoModelForMaskedLM.from_pretrained(folder)
    draw = torch.Generator().manual_seed(0)
    quantised = {f"{TABLE}.down": Grid(4), f"{INNER}.down": Grid(8), f"{INNER}.up": Grid(4, 4), OUTER: Grid(3)}
    factors = {}
    for name, rank, table in ((TABLE, RANK, True), (INNER, 8, False)):
        out, width = model.get_submodule(name).weight.shape
        shapes = ((out, rank), (width, rank)) if table else ((rank, width), (out, rank))
        down, up = (torch.randn(shape, generator=draw) * 0.4 for shape in shapes)
        down, up = (_snapped(it, quantised.get(f"{name}.{part}")) for it, part in ((down, "down"), (up, "up")))
        factors[name] = (down, up)
        model.get_submodule(name).weight.data = down @ up.T if table else up @ down
    model.get_submodule(OUTER).weight.data = _snapped(model.get_submodule(OUTER).weight.data, quantised[OUTER])
    model.tie_weights()
    model.save_pretrained(folder)
    compressed.write(folder, Compressed(quantised, factors))
    return folder


def quantised(folder: Path, name: str, grid: Grid, **more: Any) -> Path:
    """A model of a family with every linear layer of its first block on a grid."""
    lay_out(name, folder, **more)
    kind: Any = tf.AutoModelForCausalLM if name in ("llama", "qwen3", "gpt2") else tf.AutoModelForMaskedLM
    model = kind.from_pretrained(folder)
    wanted = re.compile(r"(.*\.0\..*(proj|dense|query|key|value|c_attn|c_fc))")
    said = {}
    for module, layer in model.named_modules():
        if wanted.fullmatch(module) and hasattr(layer, "weight"):
            turned = isinstance(layer, tf.pytorch_utils.Conv1D)
            weight = layer.weight.data.T if turned else layer.weight.data
            if weight.shape[1] % (grid.group or 1):
                continue
            snapped, said[module] = _snapped(weight, grid), grid
            layer.weight.data = snapped.T.contiguous() if turned else snapped
    assert said
    model.save_pretrained(folder)
    compressed.write(folder, Compressed(said))
    return folder


def _snapped(weight: torch.Tensor, grid: Grid | None) -> torch.Tensor:
    return weight if grid is None else from_grid(*on_grid(weight, grid))


def usage(folder: Path) -> str:
    """The lines of a card."""
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return block
