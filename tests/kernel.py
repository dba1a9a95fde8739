"""Tiny casts, batches and worlds for the tests of the kernel: what one training step needs, and what a whole run needs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from limbeck import cli
from limbeck.batch import TEXT
from limbeck.distil import projections, schemes
from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.lessons import Pair, Term
from limbeck.distil.reduce import Counts, Share
from limbeck.distil.schedules import Schedule, constant
from limbeck.distil.still import Still
from limbeck.distil.teachers import Frozen
from limbeck.losses import LOSSES, attention_scores_mse, cross_entropy, forward_kl, mse
from limbeck.recipe import plain_yaml
from limbeck.system import seeds

VOCABULARY, TEACHER_WIDTH, STUDENT_WIDTH, HEADS = 60, 24, 16, 4
TEACHER_DEPTH, STUDENT_DEPTH = 4, 2
GIVEN = dict.fromkeys(("stories", "schemes"), ("models.teacher=org/name", "data.corpus=docs"))  # what a user gives
BLOCKS = 12  # blocks of the training text that its batches pretend to come from
LOGITS = (Pair("logits", "logits"),)

LOGIT = Term("logit", forward_kl, LOGITS, constant(1.0))
LABEL = Term("label", cross_entropy, LOGITS, constant(0.5), needs=("labels",))
WIDEN = projections.linear(STUDENT_WIDTH, TEACHER_WIDTH)
EMBEDDING = Term(
    "embedding", mse, (Pair("embedding", "embedding", "embedding"),), constant(0.3), modules={"embedding": WIDEN}
)
HIDDEN = Term(
    "hidden",
    mse,
    (Pair("hidden.1", "hidden.2", "hidden-1"), Pair("hidden.2", "hidden.4", "hidden-2")),
    constant(2.0),
    modules={"hidden-1": WIDEN, "hidden-2": WIDEN},
)
SCORES = Term(
    "attention", attention_scores_mse, (Pair("scores.1", "scores.2"), Pair("scores.2", "scores.4")), constant(0.05)
)
INSIDE = (EMBEDDING, HIDDEN, SCORES)
MULTI = (LOGIT, *INSIDE)


def share(batches: Sequence[Any], counts: Counts | None = None) -> Share:
    """Some micro-batches as a step takes them."""
    found = Share.of(batches)
    return found if counts is None else Share(found.batches, {TEXT: counts})


def views(batches: Sequence[Any], counts: Counts | None = None) -> tuple[Any, Any]:
    """The same as two arguments."""
    made = share(batches, counts)
    return made.batches, made.counts


def bert(width: int, depth: int, *, seed: int, tied: bool = True, dropout: float = 0.0, noise: float = 0.2) -> Any:
    """A random BERT in fp64 with every parameter moved away from its initial value (no zero biases, no unit norms)."""
    config = tf.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=HEADS,
        intermediate_size=2 * width,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        tie_word_embeddings=tied,
    )
    with seeds.seeded(seed, torch.device("cpu")):
        model = tf.AutoModelForMaskedLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * noise)
    return model


def frozen(name: str = "teacher", seed: int = 99) -> Frozen:
    """The teacher."""
    taps = ["embedding", "hidden.2", "hidden.4", "scores.2", "scores.4", "logits"]
    return Frozen(name, bert(TEACHER_WIDTH, TEACHER_DEPTH, seed=seed), taps)


def learner(
    name: str,
    terms: Sequence[Term],
    *,
    seed: int = 0,
    tied: bool = True,
    dropout: float = 0.0,
    clip: float | None = 1.0,
    rate: Schedule = constant(1e-3),  # noqa: B008 (a plain function)
    dtype: torch.dtype = torch.float64,
) -> Learner:
    """A student with the projections of its terms; the same for the same seed."""
    modules = {name: make for term in terms for name, make in term.modules.items()}
    return Learner(
        name,
        bert(STUDENT_WIDTH, STUDENT_DEPTH, seed=seed, tied=tied, dropout=dropout).to(dtype),
        sorted({tap for term in terms for tap in term.taps("student")}),
        seed=seed,
        modules=projections.build(modules, projections.Making(seed, BLOCKS)).to(dtype),
        optimisation=Optimisation(rate, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8, clip=clip),
    )


def still_of(teacher: Frozen | None, students: Sequence[tuple[Learner, Sequence[Term]]], **how: Any) -> Still:
    """A still in which everyone learns from one teacher, or from labels alone."""
    teachers = {"teacher": teacher} if teacher else {}
    return schemes.together([schemes.offline(one, teachers, terms) for one, terms in students], **how)


def batch(seed: int = 0, rows: int = 3, length: int = 9, padded: bool = True) -> dict[str, Tensor]:
    """Random tokens, rows of different lengths, a random choice of selected tokens and some of them with labels."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=draw)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(1, rows):
            mask[row, length - 2 * row :] = 0
    kept = mask.bool()
    select = (torch.rand(rows, length, generator=draw) < 0.6) & kept
    labelled = (torch.rand(rows, length, generator=draw) < 0.5) & select
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": torch.where(labelled, ids, -100),
        "select": select,
        "blocks": (torch.arange(rows) + seed * rows) % BLOCKS,
        "documents": torch.where(kept, torch.arange(rows)[:, None] * 2 + (torch.arange(length) > 3), -1).int(),
    }


def parameters_of(actor: Learner | Frozen) -> dict[str, Tensor]:
    """Copies of all parameters, projections included."""
    named = {f"model.{name}": p.detach().clone() for name, p in actor.model.named_parameters()}
    if isinstance(actor, Learner):
        named |= {f"bridges.{name}": p.detach().clone() for name, p in actor.modules.named_parameters()}
    return named


def gradients_of(one: Learner) -> dict[str, Tensor | None]:
    """Copies of all gradients, None where there is none."""
    named = [(f"model.{name}", p) for name, p in one.model.named_parameters()]
    named += [(f"bridges.{name}", p) for name, p in one.modules.named_parameters()]
    return {name: None if p.grad is None else p.grad.clone() for name, p in named}


# a whole run

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"{first}{second}" for first in "bdfgklmnprs" for second in "aeiou")  # 55 and 5 specials: VOCABULARY


def tokenizer() -> tf.PreTrainedTokenizerFast:
    """A BERT-like tokenizer of whole words."""
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate((*SPECIALS, *WORDS))}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens(list(SPECIALS))
    names = {f"{name.lower()[1:-1]}_token": name for name in SPECIALS}
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names)


def lay_out(folder: Path) -> Path:
    """Puts a teacher (`teacher/`) and a corpus of 90 short documents (`corpus.txt`) into a folder."""
    bert(TEACHER_WIDTH, TEACHER_DEPTH, seed=99, noise=0.1).float().save_pretrained(folder / "teacher")
    tokenizer().save_pretrained(folder / "teacher")
    texts = [" ".join(WORDS[(3 * i * k + i + k * k) % len(WORDS)] for k in range(12 + i % 5)) for i in range(90)]
    (folder / "corpus.txt").write_text("\n\n".join(texts), encoding="utf-8")
    return folder


def recipe(world: Path, out: Path, *, train: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A recipe of the two settings over `lay_out`'s folder; `more` replaces whole tables, `train` adds keys."""
    student = {"layers": STUDENT_DEPTH, "hidden": STUDENT_WIDTH, "heads": HEADS, "intermediate": 32}
    plain = {
        "name": "tiny",
        "models": {"teacher": str(world / "teacher"), "student": student},
        "data": {
            "corpus": str(world / "corpus.txt"),
            "heldout": 0.2,
            "max_length": 10,
            "positions": "masked",
            "cache": str(world / "cache"),
        },
        "settings": {
            "logit": {"terms": [{"loss": "forward_kl", "temperature": 2.0}]},
            "multi": {
                "terms": [
                    {"loss": "forward_kl"},
                    {"loss": "mse", "tap": "embedding"},
                    {"loss": "mse", "tap": "hidden"},
                    {"loss": "attention_scores_mse", "tap": "scores", "weight": 0.1},
                ]
            },
        },
        "out": str(out),
    }
    how = {
        "steps": 6,
        "batch_size": 4,
        "lr": 1e-2,
        "warmup": 2,
        "eval_every": 3,
        "eval_blocks": 6,
        "reasons_blocks": 3,
        "checkpoint_every": 2,
        "chunk": 7,
        "precision": "fp32",
        "threads": 1,
        "device": "cpu",
    }
    return {**plain, **more, "train": how | (train or {})}


def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """What a command, run in this process, ends with: (status, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["limbeck", *words])
    capsys.readouterr()
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    return status, *capsys.readouterr()


def with_dropout(plain: dict[str, Any], share: float) -> dict[str, Any]:
    """The recipe with dropout in its students."""
    student = plain["models"]["student"] | {"dropout": share}
    return plain | {"models": plain["models"] | {"student": student}}


def fragment(loss: str) -> dict[str, Any]:
    """The term at the end of a loss's docstring."""
    return plain_yaml.parse((inspect.getdoc(LOSSES[loss]) or "").partition("\nRecipe:\n")[2])
