"""Tasks for the tests: tiny classifiers of every family, batches of rows by hand, tables of rows on disk, recipes over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from families import CONFIGS
from kernel import HEADS, VOCABULARY, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from limbeck.families import family
from limbeck.system import seeds

HEAD_DROPOUTS = ("classifier_dropout", "seq_classif_dropout")
CLASSES = ("bad", "good", "middling")
FAMILIES = ("bert", "distilbert", "roberta", "gpt2", "llama", "modernbert")  # that classify


# models


def config(name: str, classes: int = 3, **more: Any) -> Any:
    """The tiny config of a family with so many classes, one for a score, without dropout."""
    made = CONFIGS[name]()
    words = dict.fromkeys((*family(name).dropouts, *HEAD_DROPOUTS), 0.0)
    words |= {"num_labels": classes, "pad_token_id": 0, **more}
    words |= {"problem_type": "regression" if classes == 1 else "single_label_classification"}
    for word, value in words.items():
        if hasattr(made, word):
            setattr(made, word, value)
    return made


def classifier(name: str, classes: int = 3, seed: int = 0, **more: Any) -> Any:
    """A random classifier in fp64 with every parameter moved away from its initial value."""
    return moved(config(name, classes, **more), seed)


def moved(made: Any, seed: int, noise: float = 0.2) -> Any:
    """A random classifier of a config in fp64, in evaluation mode."""
    with seeds.seeded(seed, torch.device("cpu")):
        kind = tf.AutoModelForSequenceClassification
        model: Any = kind.from_config(made, dtype=torch.float64, attn_implementation="sdpa")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * noise)
    return model.eval()


# batches


def batch(
    lengths: Sequence[int], classes: int = 3, seed: int = 0, bare: Sequence[int] = (), types: bool = False
) -> dict[str, Tensor]:
    """Rows of these lengths, padded to the longest; those of `bare` have no label."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    labels = torch.randn(shape[0], generator=draw) * 2
    if classes > 1:
        labels = torch.randint(0, classes, shape[:1], generator=draw)
    labels[list(bare)] = -100
    rows = {
        "input_ids": torch.randint(5, 90, shape, generator=draw) * mask,
        "attention_mask": mask,
        "labels": labels,
        "select": torch.ones(shape[0], dtype=torch.bool),
        "blocks": torch.arange(shape[0]) + 100 * seed,
        "documents": (torch.arange(shape[0]) + 100 * seed).int(),
    }
    if types:
        rows["token_type_ids"] = (torch.arange(shape[1]) > 2).long() * mask
    return rows


def parts(whole: dict[str, Tensor], *cuts: slice) -> list[dict[str, Tensor]]:
    """Micro-batches of a batch, each padded to its own longest row."""
    found = []
    for cut in cuts:
        longest = int(whole["attention_mask"][cut].sum(1).max())
        found.append({name: t[cut, :longest] if t.dim() == 2 else t[cut] for name, t in whole.items()})
    return found


# tokenizers, tables and recipes


def framed(types: bool = True) -> tf.PreTrainedTokenizerFast:
    """A tokenizer of whole words with BERT's template."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate((*specials, *WORDS))}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens(list(specials))
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.lower()[1:-1]}_token": name for name in specials}
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, model_input_names=inputs, **names)


def bare(*template: str) -> tf.PreTrainedTokenizerFast:
    """A causal tokenizer of whole words without a padding token; a template such as "<s>", "$A", "</s>"."""
    specials = ("<unk>", "<s>", "</s>")
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate((*specials, *WORDS))}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens(list(specials))
    if template:
        one = " ".join(template)
        two = one.replace("$A", "$A $B:0")
        backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=one, pair=two, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    how = {"model_max_length": 32, "model_input_names": ["input_ids", "attention_mask"]}
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, **how, **names)


def sentence(number: int, words: int | None = None) -> str:
    words = words or 2 + number * 5 % 9
    return " ".join(WORDS[(3 * number * k + number + k * k) % len(WORDS)] for k in range(words))


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes rows as .jsonl or .tsv, by the name of the file."""
    if path.suffix == ".jsonl":
        lines = [json.dumps(row) for row in rows]
    else:
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def small(name: str = "bert", layers: int = 1, classes: int | None = None, seed: int = 1, **more: Any) -> Any:
    """A random model of the tests' vocabulary: a language model, or a classifier of so many classes."""
    how: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": 16, "num_attention_heads": HEADS}
    how |= {"intermediate_size": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 32, "initializer_range": 0.8}
    kinds: dict[str, Any] = {"bert": tf.BertConfig, "gpt2": tf.GPT2Config, "distilbert": tf.DistilBertConfig}
    made = kinds[name](**how, **dict.fromkeys(family(name).dropouts, 0.0), **more)
    if classes is not None:
        made.num_labels = classes
        return moved(made, seed).float()
    with seeds.seeded(seed, torch.device("cpu")):
        kind = tf.AutoModelForCausalLM if family(name).causal else tf.AutoModelForMaskedLM
        return kind.from_config(made, attn_implementation="sdpa")


def opinions(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Texts whose class is in their words: which of three words stands in them."""
    return [
        {"sentence": f"{('ba', 'go', 'mi')[i % 3]} {sentence(i)}", "label": CLASSES[i % 3]}
        for i in range(first, first + count)
    ]


def likenesses(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Pairs and how alike they are said to be."""
    return [
        {"one": sentence(i), "two": sentence(i + i % 4), "score": round(5 - i % 4 + i / 90, 3)}
        for i in range(first, first + count)
    ]


def recipe(data: dict[str, Any], models: dict[str, Any], out: Path, loss: str, **train: Any) -> dict[str, Any]:
    """A recipe of one setting of one loss on the logits."""
    how: dict[str, Any] = {"steps": 4, "batch_size": 8, "lr": 1e-2, "warmup": 0, "eval_every": 4, "chunk": 5}
    how |= {"precision": "fp32", "threads": 1, "device": "cpu", "checkpoint_every": 2}
    setting = {"terms": [{"loss": loss}]}
    return {
        "name": "task",
        "models": models,
        "data": {"max_length": 12, "cache": str(out.parent / "cache"), **data},
        "settings": {"a": setting},
        "out": str(out),
        "train": how | train,
    }


OPINIONS = {"kind": "classification"}
LIKENESSES = {"kind": "regression", "text": "one", "pair": "two", "label": "score"}


def of_task(world: Path, out: Path, name: str = "opinions", family: str = "bert", **train: Any) -> dict[str, Any]:
    """Fine-tuning of a language model."""
    task, loss = (OPINIONS, "cross_entropy") if name == "opinions" else (LIKENESSES, "squared_error")
    data = {"corpus": str(world / name), "task": task, "cache": str(world / "cache"), "max_length": 20}
    return recipe(data, {"student": {"init": str(world / family)}}, out, loss, **train)
