"""Every recipe that comes with limbeck trains a few steps from local folders, at the shapes that it names."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from places import SHARED
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, BertConfig, LlamaConfig

from limbeck import api
from limbeck.models import pretrained, students
from limbeck.recipe.load import built_in

STEPS = 2
SMALL = [
    *(f"train.steps={STEPS}", "train.batch_size=2", "train.eval_blocks=2", "train.reasons_blocks=0"),
    *("train.threads=1", "train.device=cpu", "train.precision=fp32", "data.max_length=32"),
]
BERT_UNCASED = SHARED / "tokenizers" / "bert-uncased"
WORDS = [
    "the",
    "still",
    "turns",
    "wine",
    "into",
    "spirit",
    "and",
    "a",
    "large",
    "model",
    "into",
    "a",
    "small",
    "one",
    "while",
    "nobody",
    "looks",
    "at",
    "the",
    "clock",
]

LLAMAS = {"stories", "schemes"}  # their teacher and text are a real Llama's, which may not be here
STUDIES = {"capacity-gap": [], "convergence": ["vary={data.train_share: [0.5, 1.0]}"]}  # two arms in place of one run
TASKS = {"classify", "unlabelled"}  # rows with labels in place of running text
TINYBERTS = {"tinybert", "tinybert-as-published", "tinybert-small"}  # running text first, then rows

# Where a recipe names what is on the Hub: the teacher that takes its place.
BERTS = {
    "tinybert-general": BertConfig(),  # BERT-base: 12 layers, 768 wide
    "wikipedia-study": BertConfig(num_hidden_layers=6, hidden_size=384, intermediate_size=1536),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred documents of a hundred words."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    texts = [f"{i} " + " ".join(WORDS[(i * k + i + k * k) % len(WORDS)] for k in range(100)) for i in range(100)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


def random_bert(config: BertConfig, folder: Path, large: bool = True) -> Path:
    """A random model of this shape, with BERT's vocabulary where it is on this machine, or with a small one."""
    embedded = pretrained.place(pretrained.EMBEDDED)
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    if large and BERT_UNCASED.is_dir():
        tokenizer = type(tokenizer)(tokenizer_file=str(BERT_UNCASED / "tokenizer.json"), **tokenizer.special_tokens_map)
    config.vocab_size = len(tokenizer)
    students.build(config, seed=0).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_llama(folder: Path) -> Path:
    """A random Llama of the shape of the real one."""
    tokenizer = AutoTokenizer.from_pretrained(pretrained.place(pretrained.EMBEDDED))
    shape = {"hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4}
    config = LlamaConfig(**shape, intermediate_size=172, head_dim=8, vocab_size=len(tokenizer))
    students.build(config, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def table(path: Path, labelled: bool = True) -> Path:
    """Forty rows of a few words, with a class for each."""
    rows = [(" ".join(WORDS[(i * k + i) % len(WORDS)] for k in range(3 + i % 9)), i % 2) for i in range(1, 41)]
    head = "sentence\tlabel" if labelled else "sentence"
    lines = [f"{text}\t{label}" if labelled else f"{text} more" for text, label in rows]
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(TASKS))
def test_task(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes of tasks, with files and random models in place of what is on the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shape = BertConfig(num_hidden_layers=4, hidden_size=32, num_attention_heads=4, intermediate_size=64)
    overrides = [*SMALL, f"data.corpus={table(tmp_path / 'rows.tsv')}", "data.heldout=0.2"]
    overrides += ["train.batch_size=4", f"data.cache={tmp_path}", f"out={tmp_path / 'run'}"]
    if name == "classify":
        overrides.append(f"stages[0].models.student.init={random_bert(shape, tmp_path / 'first', large=False)}")
    else:
        shape.problem_type = "single_label_classification"
        overrides.append(f"data.unlabelled.corpus={table(tmp_path / 'more.tsv', labelled=False)}")
        overrides.append(f"models.teacher={random_bert(shape, tmp_path / 'teacher', large=False)}")
    run = api.run(name, overrides, quiet=True)

    last = [row for row in run.evals if row["step"] == STEPS and row["split"] == "test"]
    assert last and all(0 <= row["metrics"]["accuracy"] <= 1 for row in last)
    assert all(row["teacher_metrics"] for row in last)
    for folder in run.students.values():
        config = AutoConfig.from_pretrained(folder)
        assert config.num_hidden_layers == 4 and config.problem_type == "single_label_classification"
    if name == "unlabelled":
        assert run.manifest["data"]["unlabelled"]["corpus"].endswith("more.tsv")


@pytest.mark.parametrize("name", sorted(TINYBERTS))
def test_tinybert(name: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All four stages, the copies of rows by the masked language model that the teacher was tuned from."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shape = BertConfig(num_hidden_layers=8, hidden_size=32, num_attention_heads=4, intermediate_size=64)
    if name == "tinybert-small":
        shape = BertConfig(num_hidden_layers=6, hidden_size=384, intermediate_size=1536)
    first, rows = random_bert(shape, tmp_path / "first", large=False), table(tmp_path / "rows.tsv")
    overrides = [*SMALL, f"data.corpus={rows}", "data.heldout=0.2", "train.batch_size=4"]
    overrides += [f"data.cache={tmp_path}", f"out={tmp_path / 'run'}"]
    overrides += [f"stages[0].data.corpus={corpus}", f"stages[0].models.teacher={first}"]
    overrides += [f"stages[1].models.student.init={first}"]
    overrides += [f"stages[{number}].data.task.augment.copies=2" for number in (2, 3)]
    run = api.run(name, overrides, quiet=True)

    assert sorted(run.manifest["earlier"]) == ["general", "intermediate", "teacher"]
    inner = api.Run(run.folder / "stages" / "intermediate")
    setting = "as_published" if name == "tinybert-as-published" else "tinybert"
    assert {row["learner"] for row in inner.metrics} == {f"{setting}-seed0"}
    assert set(inner.metrics[0]["terms"]) == {"embedding", "hidden", "attention"}
    mapped = "1<-2 2<-4 3<-6" if name == "tinybert-small" else "1<-2 2<-4 3<-6 4<-8"
    assert set(inner.manifest["layers"][setting].values()) == {mapped}
    assert run.manifest["data"]["documents"] > 32, "with copies"
    (folder,) = run.students.values()
    config = AutoConfig.from_pretrained(folder)
    assert config.problem_type == "single_label_classification"
    general = AutoConfig.from_pretrained(run.folder / "stages" / "general" / "students" / "general-seed0")
    assert (config.num_hidden_layers, config.hidden_size) == (general.num_hidden_layers, general.hidden_size)
    last = [row for row in run.evals if row["step"] == STEPS and row["split"] == "test"]
    assert last[0]["teacher_metrics"] and "kept_step" in last[0]


PLAIN = sorted(built_in().keys() - TASKS - TINYBERTS)
LARGE = [pytest.param(name, True, marks=pytest.mark.slow, id=f"{name}-large") for name in BERTS]


def go(name: str, corpus: Path, folder: Path, large: bool = False, reasons: int = 0) -> api.Run:
    """A recipe of running text, with files and random models in place of what is on the Hub."""
    overrides = [*SMALL, f"data.corpus={corpus}", "data.heldout=0.2", f"data.cache={folder}", f"out={folder / 'run'}"]
    overrides += [f"train.reasons_blocks={reasons}", "seeds=[0]"]
    if name in LLAMAS:
        overrides += [f"models.teacher={random_llama(folder / 'teacher')}", r'data.separator="\n\n"']
    if name in BERTS:
        overrides.append(f"models.teacher={random_bert(BERTS[name], folder / 'teacher', large)}")
    return api.run(name, [*overrides, *STUDIES.get(name, [])], quiet=True)


@pytest.mark.parametrize(("name", "large"), [*((name, False) for name in PLAIN), *LARGE])
def test_recipe(name: str, large: bool, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large: with the vocabulary of the model that the recipe names."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = go(name, corpus, tmp_path, large, reasons=2 * (name == "quickstart"))
    if name in STUDIES:
        assert len(run.arms) == 2 and run.report.is_file()
        assert ("Which teacher is best for each student" in run.report.read_text("utf-8")) == (name == "capacity-gap")
        run = run.arms["arms/01"]

    assert len(run.metrics) == STEPS * len({row["learner"] for row in run.metrics})
    assert all(row["loss"] > 0 and math.isfinite(row["grad_norm"]) for row in run.metrics)
    assert {row["step"] for row in run.evals} == {0, STEPS}
    assert run.manifest["status"] == "done"
    page = run.report.read_text(encoding="utf-8")
    assert f"Results after {STEPS} steps" in page and all(row["setting"] in page for row in run.metrics)
    stages = sorted(path.name for path in (run.folder / "stages").glob("*"))
    assert stages == sorted(run.manifest["earlier"])
    for folder in run.students.values():
        assert AutoConfig.from_pretrained(folder).vocab_size == len(AutoTokenizer.from_pretrained(folder))
    if name == "tinybert-general":
        published(run)
    assert not [path for path in os.listdir(run.folder) if path.endswith(".tmp")]


def published(run: api.Run) -> None:
    """TinyBERT's shape, its layer map, and one projection for embedding and all layers that stays out of the student."""
    assert run.manifest["layers"]["multi"] == {"hidden": "1<-3 2<-6 3<-9 4<-12", "attention": "1<-3 2<-6 3<-9 4<-12"}
    config = AutoConfig.from_pretrained(run.students["multi-seed0"])
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert shape == (4, 312, 12, 1200)
    multi = next(row for row in run.metrics if row["setting"] == "multi")
    assert set(multi["terms"]) == {"logit", "embedding", "hidden", "attention"}
    (newest,) = (run.folder / "checkpoints").glob("step-*")
    names = set()
    for path in newest.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= {name for name in file.keys() if "shared" in name}  # noqa: SIM118 (no mapping)
    assert names
