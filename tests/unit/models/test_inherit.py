"""Inheritance: a student gets layers and the heaviest units of a larger model, exactly, in every family."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from families import CAUSAL, CONFIGS
from heirs import blocks, heir, model, silence
from places import SHARED
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from limbeck.errors import UserError
from limbeck.families import FAMILIES, family
from limbeck.models import fingerprint, pretrained, students
from limbeck.models.inherit import inherit, parts
from limbeck.recipe import models

MODEL = SHARED / "models" / "wiki-minilm-mlm"
IDS = torch.tensor([[5, 17, 3, 99, 42, 8, 23]])
PLAIN = [name for name in CONFIGS if not FAMILIES[name].rotary]
GROUPED = [name for name in CONFIGS if FAMILIES[name].n_kv_heads]
ALONE = {name: {"kv_heads": 1} if name in GROUPED else {} for name in CONFIGS}
SMALL: dict[str, dict[str, Any]] = {name: {"hidden": 16, "heads": 2} | ALONE[name] for name in CONFIGS} | {
    "electra": {"hidden": 24, "heads": 3}
}
NARROW: dict[str, dict[str, Any]] = {name: {"hidden": 24 if name == "electra" else 16, "heads": 4} for name in PLAIN}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_shape_gives_the_same_answers(name: str) -> None:
    origin = model(name, dtype=torch.float32)
    student = heir(origin, torch.float32)
    before = fingerprint.digest(origin.named_parameters())
    assert inherit(student, origin, "uniform") == []
    assert torch.equal(student(IDS).logits, origin(IDS).logits)
    assert fingerprint.digest(origin.named_parameters()) == before


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_those_of_the_map(name: str) -> None:
    origin = model(name, dtype=torch.float32)
    student = heir(origin, torch.float32, layers=2)
    told = inherit(student, origin, {1: 3, 2: 1})
    assert told[0] == "layers 3 -> 2: 1<-3 2<-1"
    mine, theirs = dict(student.named_parameters()), dict(origin.named_parameters())
    path = f"{family(name).base}.{family(name).layers}."
    layered = {"0.": "2.", "1.": "0."}
    for key, value in mine.items():
        if key.startswith(path):
            number, rest = key.removeprefix(path)[:2], key.removeprefix(path)[2:]
            key = path + layered[number] + rest
        if (name, key) == ("modernbert", f"{path}0.attn_norm.weight"):
            assert told[1:] == ["random: model.layers.1.attn_norm"], "its first layer has none"
            continue
        assert torch.equal(value, theirs[key]), key


def test_layers_outside_of_the_map_stay_as_they_are() -> None:
    origin = model("bert", dtype=torch.float32)
    student = heir(origin, torch.float32)
    before = deepcopy(student)
    told = inherit(student, origin, {2: 1})
    assert told == ["layers 3 -> 3: 2<-1", "random: layer 1, layer 3"]
    for number in (0, 2):
        assert all(torch.equal(v, blocks(before, number)[k]) for k, v in blocks(student, number).items())
    deeper = heir(origin, torch.float32, layers=7)
    assert "random: layer 1" in inherit(deeper, origin, "uniform"), "the embedding is no layer"


@pytest.mark.parametrize("name", CONFIGS)
def test_neurons_that_do_nothing_go_first(name: str) -> None:
    origin = model(name)
    for layer in range(3):
        idle = list(range(layer, 48, 2)) if layer < 2 else list(range(12, 36))
        silence(blocks(origin, layer), "up gate" if "gate" in blocks(origin, layer) else "up", "down", idle)
    student = heir(origin, intermediate=24)
    assert inherit(student, origin, "uniform") == ["feed-forward 48 -> 24 by norm"]
    torch.testing.assert_close(student(IDS).logits, origin(IDS).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(
    ("said", "idle"), [({"kv_heads": 1}, [[2, 3], [0, 1], [0, 1]]), ({}, [[0, 3], [1, 2], [1, 3]])]
)
def test_grouped_heads_that_do_nothing_go_first(name: str, said: dict[str, Any], idle: list[list[int]]) -> None:
    """Four query heads over two key heads: one whole group goes, or one query head of each."""
    origin = model(name)
    for layer, heads in enumerate(idle):
        units = [8 * head + place for head in heads for place in range(8)]
        silence(blocks(origin, layer), "q", "o", units)
        if said:
            group = heads[0] // 2
            silence(blocks(origin, layer), "k v", "", list(range(8 * group, 8 * group + 8)))
    student = heir(origin, heads=2, **said)
    assert student.config.head_dim == 8, "the width of a head is the origin's"
    told = inherit(student, origin, "uniform")
    assert told == ["heads 4 -> 2 by norm", "key heads 2 -> 1 by norm"][: 1 + len(said)]
    torch.testing.assert_close(student(IDS).logits, origin(IDS).logits, rtol=0, atol=1e-10)


def attend(found: dict[str, Tensor], x: Tensor, heads: int, shared: int, width: int) -> Tensor:
    """Attention without positions, head by head."""
    q, k, v = (x @ found[n].T + found.get(f"{n}.bias", torch.zeros(())) for n in "qkv")
    given = []
    for head in range(heads):
        mine, theirs = (slice(n * width, (n + 1) * width) for n in (head, head // (heads // shared)))
        given.append((q[:, mine] @ k[:, theirs].T / width**0.5).softmax(-1) @ v[:, theirs])
    return torch.cat(given, -1) @ found["o"].T + found.get("o.bias", torch.zeros(()))


@pytest.mark.parametrize(("name", "narrow"), [*((name, False) for name in CONFIGS), *((name, True) for name in PLAIN)])
def test_attention_of_a_narrower_model(name: str, narrow: bool) -> None:
    """With all that is dropped silent, attention between the kept hidden units is what it was."""
    origin, said = model(name), NARROW[name] if narrow else SMALL[name]
    hidden = torch.arange(32)[-said["hidden"] :]
    heavy = origin.get_parameter("electra.embeddings_project.weight").T if name == "electra" else None
    table = origin.get_input_embeddings().weight if heavy is None else heavy
    table.detach()[:, hidden] *= 100
    shared, width, left = (2 if name in GROUPED else 4), 8, said["hidden"] // said["heads"]
    for layer in range(3):
        found = blocks(origin, layer)
        if narrow:
            silence(found, "q k", "", [8 * head + place for head in range(4) for place in range(8 - left)])
            silence(found, "v", "o", [8 * head + place for head in range(4) for place in range(left, 8)])
        else:
            gone = range(2, 4) if name in GROUPED else range(4 - said["heads"])
            units = [8 * head + place for head in gone for place in range(8)]
            silence(found, "q", "o", units)
            silence(found, "k v", "", list(range(8, 16)) if name in GROUPED else units)
    student = heir(origin, **said)
    told = inherit(student, origin, "uniform")
    assert told[:2] == [
        f"hidden 32 -> {said['hidden']} by norm",
        f"width of a head 8 -> {left} by norm" if narrow else f"heads 4 -> {said['heads']} by norm",
    ]
    x = torch.zeros(5, 32, dtype=torch.float64)
    x[:, hidden] = torch.randn(5, said["hidden"], dtype=torch.float64)
    for layer in range(3):
        whole = attend(blocks(origin, layer), x, 4, shared, width)[:, hidden]
        part = attend(blocks(student, layer), x[:, hidden], said["heads"], said.get("kv_heads", said["heads"]), left)
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-10)


def test_only_layers_that_are_taken_are_weighed() -> None:
    origin = model("llama")
    student, same = heir(origin, layers=1, **SMALL["llama"]), heir(origin, layers=1, **SMALL["llama"])
    inherit(student, origin, {1: 1})
    blocks(origin, 2)["q"][:, :16] *= 1000
    inherit(same, origin, {1: 1})
    assert fingerprint.digest(student.named_parameters()) == fingerprint.digest(same.named_parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cut_is_a_function_of_the_weights(name: str) -> None:
    origin, said = model(name, dtype=torch.float32), {"layers": 2, "intermediate": 20, **SMALL[name]}
    config = students.shape(models.Student(init="teacher", **said), origin.config)
    first, second = students.build(config, seed=1), students.build(config, seed=2)
    before = torch.get_rng_state()
    told = inherit(first, origin, "top")
    assert inherit(second, origin, "top") == told
    assert torch.equal(torch.get_rng_state(), before), "nobody's random numbers are used up"
    assert fingerprint.digest(first.named_parameters()) == fingerprint.digest(second.named_parameters())
    assert bool(first(IDS).logits.isfinite().all())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_meta_device_tells_whether_it_fits(name: str) -> None:
    origin, said = model(name, dtype=torch.float32), {"layers": 2, "intermediate": 20, **SMALL[name]}
    told = inherit(heir(origin, torch.float32, **said), origin, "uniform")
    config = students.shape(models.Student(init="teacher", **said), origin.config)
    with torch.device("meta"):
        student = students.build(config, seed=1)
        large = students.build(students.shape(models.Student(init="teacher", intermediate=64), origin.config), seed=1)
    origin = origin.to("meta")
    assert inherit(student, origin, "uniform") == told
    with pytest.raises(UserError, match=r"models\.student\.intermediate: 64 is more than the 48"):
        inherit(large, origin, "uniform")


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_that_only_one_has(name: str) -> None:
    origin = model(name, dtype=torch.float32)
    fewer, more = deepcopy(origin.config), deepcopy(origin.config)
    fewer.vocab_size, more.vocab_size = 90, 120
    small, large = students.build(fewer, seed=1), students.build(more, seed=1)
    left = large.get_input_embeddings().get_parameter("weight")[100:].clone()
    assert inherit(small, origin, "uniform") == ["rows of vocab: 90 of 100"]
    assert inherit(large, origin, "uniform") == ["rows of vocab: 100 of 100, the other 20 random"]
    table, less = origin.get_input_embeddings().weight, small.get_input_embeddings().get_parameter("weight")
    assert torch.equal(less, table[:90])
    assert torch.equal(large.get_input_embeddings().get_parameter("weight"), torch.cat([table, left]))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_classifier_and_a_language_model_share_the_backbone(name: str) -> None:
    text = model(name, dtype=torch.float32)
    torch.manual_seed(3)
    rows = AutoModelForSequenceClassification.from_config(CONFIGS[name]()).eval()
    five = CONFIGS[name]()
    five.num_labels = 5
    again, other = deepcopy(rows), AutoModelForSequenceClassification.from_config(five)
    with torch.no_grad():
        for parameter in (*rows.parameters(), *other.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    (told,) = inherit(again, text, "uniform")
    states = {"input_ids": IDS}
    assert torch.equal(again.base_model(**states)[0], text.base_model(**states)[0])
    heads = {"roberta": "classifier.dense, classifier.out_proj", "distilbert": "pre_classifier, classifier"}
    heads |= {"bert": "bert.pooler.dense, classifier", "electra": heads["roberta"], "modernbert": "classifier"}
    assert told == f"random: {'score' if name in CAUSAL else heads[name]}"
    student = heir(text, torch.float32)
    inherit(student, rows, "uniform")
    assert torch.equal(student.base_model(**states)[0], rows.base_model(**states)[0])
    same = AutoModelForSequenceClassification.from_config(CONFIGS[name]()).eval()
    assert inherit(same, rows, "uniform") == []
    assert torch.equal(same(IDS).logits, rows(IDS).logits), "a classifier of the same labels gets the head too"
    (told,) = inherit(other, rows, "uniform")
    assert told == f"random: {heads.get(name, 'score').split(', ')[-1]}", "labels differ"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_a_row_of_its_own(name: str) -> None:
    for one in (model(name), AutoModelForSequenceClassification.from_config(CONFIGS[name]())):
        known = [part for part in parts(one) if part.axes]
        assert {id(part.tensor) for part in known} == {id(parameter) for parameter in one.parameters()}
        assert len({(part.layer, part.path) for part in known}) == len(known)
        assert all(len(part.axes or ()) == part.tensor.ndim for part in known)


MISTAKES = [
    ("bert", {"hidden": 64}, "models.student.hidden: 64 is more than the 32 of the model that the student begins as"),
    ("bert", {"heads": 8}, "models.student.heads: 8 is more than the 4"),
    ("bert", {"intermediate": 49}, "models.student.intermediate: 49 is more than the 48"),
    (
        "bert",
        {"heads": 2},
        "models.student.heads: a head of width 8 cannot become one of width 16, for a head can only be",
    ),
    ("llama", {"heads": 4, "kv_heads": 4}, "models.student.kv_heads: 4 is more than the 2"),
    (
        "llama",
        {"heads": 4, "kv_heads": 1},
        "models.student.kv_heads: 4 query heads share a key head, and 2 in the model",
    ),
    ("modernbert", {"hidden": 16}, "keep the width of a head (hidden / heads = 8), or set init: random"),
    ("electra", {"hidden": 16}, "models.student.embedding: 16 is the hidden width"),
    ("electra", {"embedding": 20}, "models.student.embedding: 20 is more than the 16"),
]


@pytest.mark.parametrize(("name", "said", "message"), MISTAKES)
def test_mistakes(name: str, said: dict[str, Any], message: str) -> None:
    origin = model(name, dtype=torch.float32)
    student = heir(origin, torch.float32, **said)
    before = fingerprint.digest(student.named_parameters())
    with pytest.raises(UserError) as caught:
        inherit(student, origin, "uniform")
    assert message in str(caught.value) and str(caught.value).endswith("or set init: random")
    assert fingerprint.digest(student.named_parameters()) == before, "nothing is written"


@pytest.mark.parametrize(("mine", "theirs"), [("distilbert", "bert"), ("qwen3", "llama"), ("gpt2", "llama")])
def test_families_with_other_layers(mine: str, theirs: str) -> None:
    with pytest.raises(UserError, match=f"a {mine} model cannot begin as a {theirs} model, .* set family: {theirs}"):
        inherit(model(mine), model(theirs), "uniform")


def test_rotary_heads_keep_their_width() -> None:
    said = models.Student(hidden=16)  # without inheritance heads become narrower
    origin = model("llama")
    student = students.build(students.shape(said, origin.config), seed=1)
    with pytest.raises(UserError, match=r"cannot become one of width 4, for positions turn its units in pairs; keep"):
        inherit(student, origin, "uniform")


@pytest.mark.skipif(not MODEL.is_dir(), reason="no shared models")
@pytest.mark.parametrize(
    "said", [{"layers": 3}, {"layers": 3, "hidden": 192, "heads": 6}, {"layers": 3, "hidden": 192}]
)
def test_a_real_model_cut_down_is_better_than_a_random_one(said: dict[str, Any]) -> None:
    origin = pretrained.model_of(models.Source(source=str(MODEL)), torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    text = [
        "The city lies on the river and was founded in the twelfth century by monks.",
        "He studied mathematics at the university and later taught physics in Berlin.",
        "The species is found in forests of South America, where it feeds on insects and fruit.",
        "She played for the national team and scored three goals in the final match.",
    ]
    batch = tokenizer(text, return_tensors="pt", padding=True)
    masked = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    masked[:, 3:12:4] = True
    labels = batch["input_ids"].masked_fill(~masked, -100)
    batch["input_ids"] = batch["input_ids"].masked_fill(masked, tokenizer.mask_token_id)

    def loss(of: Any) -> float:
        with torch.no_grad():
            return of.eval()(**batch, labels=labels).loss.item()

    student = heir(origin, torch.float32, **said)
    random = loss(student)
    inherit(student, origin, "uniform")
    assert loss(origin) < loss(student) < random - 1
