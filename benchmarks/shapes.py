"""What is measured on: sizes of random models, and one batch of random tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BertConfig, PreTrainedModel

from limbeck.distil.still import chunk_of
from limbeck.models import layer_maps, students
from limbeck.system.precision import fastest


@dataclass(frozen=True)
class Size:
    """A BERT: number of layers, width, heads, width of the feed-forward part."""

    layers: int
    hidden: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class Shape:
    """A teacher, a student and a batch of `rows` x `length` tokens."""

    teacher: Size = Size(12, 768, 12, 3072)  # BERT-base
    student: Size = Size(4, 312, 12, 1200)  # TinyBERT4
    vocabulary: int = 30522
    length: int = 128
    rows: int = 16
    matched: int | None = None  # how many of the student's layers are matched, the first ones; None: all
    chunk: int | None = None  # tokens whose logits exist at a time; None: limbeck's default
    device: str = "cpu"

    @property
    def precision(self) -> str:
        """That of a run on this device which says none."""
        return fastest(torch.device(self.device))

    def chunk_of(self, precision: str) -> int:
        """Tokens whose logits exist at a time."""
        return self.chunk or chunk_of(self.vocabulary, precision)

    @property
    def tokens(self) -> int:
        """Tokens of a batch."""
        return self.rows * self.length

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Which layer of the student learns from which of the teacher, counted from 1: the uniform map."""
        mapped = layer_maps.resolve("uniform", self.student.layers, self.teacher.layers)
        return list(mapped.items())[: self.matched]


QUICK = Shape(Size(3, 24, 4, 48), Size(2, 16, 4, 32), vocabulary=200, length=16, rows=4, chunk=32)


def config(size: Size, shape: Shape) -> BertConfig:
    """A BERT without dropout."""
    return BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=max(512, shape.length),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def model(size: Size, shape: Shape, seed: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model, the same for the same seed, where the shape says."""
    built = students.build(config(size, shape), seed)
    torch.nn.Module.to(built, shape.device, dtype)
    return built


def batch(shape: Shape) -> dict[str, Tensor]:
    """One batch as limbeck's feeds give it: no padding, all tokens selected."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocabulary, (shape.rows, shape.length), generator=draw)
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.clone(),
        "select": torch.ones_like(ids, dtype=torch.bool),
        "blocks": torch.arange(shape.rows),
        "documents": torch.zeros_like(ids, dtype=torch.int32),
    }
    return {name: tensor.to(shape.device) for name, tensor in made.items()}
