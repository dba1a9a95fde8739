"""From a term of a recipe to a term of a lesson: layers, projections and other modules, heads; and losses of one's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from families import CONFIGS, tiny
from kernel import recipe, tokenizer
from torch import nn

import limbeck
from limbeck import api
from limbeck.assemble import design, terms
from limbeck.assemble.text import read_text
from limbeck.distil import projections
from limbeck.distil.contrastive import ContrastiveMemory
from limbeck.distil.lessons import Term, each
from limbeck.distil.paraphraser import Paraphraser
from limbeck.errors import UserError
from limbeck.families import heads_of, width_of
from limbeck.models import students
from limbeck.models.taps import Tapped
from limbeck.recipe.load import load
from limbeck.recipe.settings import Setting


def shape(width: int = 16, depth: int = 2, heads: int = 4, inner: int = 32) -> tf.PretrainedConfig:
    return tf.BertConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=inner, vocab_size=60
    )


STUDENT, TEACHER = shape(), shape(24, 4, 4, 48)


def made(
    *said: dict[str, Any], student: tf.PretrainedConfig = STUDENT, teacher: tf.PretrainedConfig = TEACHER
) -> tuple[Term, ...]:
    return terms.of_setting(
        Setting.model_validate({"terms": said}), student, {"teacher": teacher} if teacher else {}, "settings.a"
    )


def refusal(*said: dict[str, Any], **configs: Any) -> str:
    with pytest.raises(UserError) as caught:
        made(*said, **configs)
    assert str(caught.value).startswith("settings.a.") and ";" in str(caught.value), "a place and a remedy"
    return str(caught.value)


def modules(term: Term) -> nn.ModuleDict:
    return projections.build(term.modules, projections.Making(0, blocks=12))


def sizes(module: Any) -> tuple[int, int]:
    return module.in_features, module.out_features


# layers


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ("uniform", [(1, 2), (2, 4)]),
        ("skip", [(1, 2), (2, 4)]),
        ("last", [(2, 4)]),
        ("top", [(1, 3), (2, 4)]),
        ("all-to-one", [(1, 4), (2, 4)]),
        ({1: 3, "last": -1}, [(1, 3), (2, 4)]),
        ({2: 1}, [(2, 1)]),
    ],
)
@pytest.mark.parametrize(("loss", "tap"), [("mse", "hidden"), ("attention_kl", "scores"), ("relation_kl", "value")])
def test_layer_maps(loss: str, tap: str, layers: Any, pairs: list[tuple[int, int]]) -> None:
    (term,) = made({"loss": loss, "tap": tap, "layers": layers})
    assert [(pair.student, pair.teacher) for pair in term.pairs] == [(f"{tap}.{s}", f"{tap}.{t}") for s, t in pairs]


@pytest.mark.parametrize("tap", ["embedding", "pooled", "logits"])
def test_taps_without_layers(tap: str) -> None:
    (term,) = made({"loss": "forward_kl" if tap == "logits" else "mse", "tap": tap})
    assert [(pair.student, pair.teacher) for pair in term.pairs] == [(tap, tap)]


def test_layer_0_is_the_embedding() -> None:
    (term,) = made({"loss": "cka", "tap": "hidden", "layers": {0: 0, 2: 4}})
    assert [(pair.student, pair.teacher) for pair in term.pairs] == [("hidden.0", "hidden.0"), ("hidden.2", "hidden.4")]
    for loss, tap in (("cka", "ffn"), ("attention_kl", "scores"), ("relation_kl", ["query", "key"])):
        said = refusal({"loss": loss, "tap": tap, "layers": {0: 0}})
        assert "layer 0 is the embedding and has no" in said


def test_several_taps_are_one_pair_a_layer() -> None:
    (term,) = made({"loss": "relation_kl", "tap": ["query", "key", "value"]})
    assert term.name == "relation" and not term.modules
    assert [pair.student for pair in term.pairs] == [(f"query.{n}", f"key.{n}", f"value.{n}") for n in (1, 2)]
    assert [pair.teacher for pair in term.pairs] == [(f"query.{n}", f"key.{n}", f"value.{n}") for n in (2, 4)]


def test_a_tap_named_twice_is_refused() -> None:
    """As a layer that stands twice is; it would count twice."""
    with pytest.raises(ValueError, match=r"(?i)twice|once"):
        Setting.model_validate({"terms": [{"loss": "relation_kl", "tap": ["query", "query"]}]})


def test_a_list_of_one_tap_is_not_called_empty() -> None:
    table = {"name": "a", "models": {"teacher": "embedded"}}
    with pytest.raises(UserError) as caught:
        load(table | {"settings": {"a": {"terms": [{"loss": "relation_kl", "tap": ["query"]}]}}})
    assert "tap" in str(caught.value) and "empty" not in str(caught.value)


# projections


@pytest.mark.parametrize(
    ("tap", "widths"), [("embedding", (16, 24)), ("pooled", (16, 24)), ("hidden", (16, 24)), ("ffn", (32, 48))]
)
def test_projections_are_as_wide_as_their_tap(tap: str, widths: tuple[int, int]) -> None:
    for how in ("auto", "each"):
        (term,) = made({"loss": "mse", "tap": tap, "projection": how})
        assert set(term.modules) == {pair.projection for pair in term.pairs}
        assert len(term.modules) == len(term.pairs), "one for each pair"
        assert {sizes(module) for module in modules(term).values()} == {widths}


@pytest.mark.parametrize("tap", ["embedding", "hidden", "ffn", "pooled"])
def test_equal_widths_need_no_projection(tap: str) -> None:
    equal = shape(24, 2, 4, 48)
    for how, projected in (("auto", False), ("none", False), ("each", True), ("shared", True)):
        (term,) = made({"loss": "mse", "tap": tap, "projection": how}, student=equal)
        assert bool(term.modules) == projected and all(bool(pair.projection) == projected for pair in term.pairs)
    assert "widths 16 and 24 differ; set projection to each or shared" in refusal(
        {"loss": "mse", "tap": "hidden", "projection": "none"}
    )


def test_equal_states_and_other_inner_widths() -> None:
    near = shape(24, 2, 4, 32)
    hidden, ffn = made({"loss": "mse", "tap": "hidden"}, {"loss": "mse", "tap": "ffn"}, student=near)
    assert not hidden.modules and {sizes(module) for module in modules(ffn).values()} == {(32, 48)}
    assert "widths 32 and 48 differ" in refusal({"loss": "mse", "tap": "ffn", "projection": "none"}, student=near)


def test_a_shared_projection_is_one() -> None:
    """Of all terms that say so and have the widths of hidden states; pre-activations are wider and have their own."""
    found = made(
        {"loss": "mse", "tap": "hidden", "projection": "shared"},
        {"loss": "cosine", "tap": "embedding", "projection": "shared"},
        {"loss": "mse", "tap": "ffn", "projection": "shared"},
    )
    hidden, embedding, ffn = ({pair.projection for pair in term.pairs} for term in found)
    assert hidden == embedding and len(hidden) == len(ffn) == 1 and not ffn & hidden
    for term, widths in zip(found, [(16, 24), (16, 24), (32, 48)], strict=True):
        assert [sizes(module) for module in modules(term).values()] == [widths]


@pytest.mark.parametrize(("loss", "tap"), [("attention_transfer", "hidden"), ("cka", "pooled"), ("similarity", "ffn")])
def test_losses_without_widths_have_no_projection(loss: str, tap: str) -> None:
    (term,) = made({"loss": loss, "tap": tap})
    assert not term.modules and not any(pair.projection for pair in term.pairs)
    with pytest.raises(ValueError, match="needs no projection; leave the key out"):
        made({"loss": loss, "tap": tap, "projection": "each"})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"loss": "mse", "tap": "embedding", "name": "a.b"}, {"loss": "mse", "tap": "embedding", "name": "a_b"}),
        ({"loss": "mse", "tap": "embedding", "name": "hidden-1"}, {"loss": "mse", "tap": "hidden"}),
        ({"loss": "mse", "tap": "embedding", "name": "a-1"}, {"loss": "mse", "tap": "ffn", "name": "a"}),
        ({"loss": "mse", "tap": "pooled", "name": "shared"}, {"loss": "mse", "tap": "hidden", "projection": "shared"}),
    ],
    ids=["dot", "layer", "other widths", "shared"],
)
def test_terms_do_not_take_each_others_projections(first: dict[str, Any], second: dict[str, Any]) -> None:
    one, other = made(first, second)
    assert not set(one.modules) & set(other.modules)


@pytest.mark.parametrize("name", ["a.b", "values", "train", "type"])
@pytest.mark.parametrize(("loss", "tap"), [("mse", "pooled"), ("mse", "hidden"), ("contrastive", "pooled")])
def test_a_term_may_have_any_name(name: str, loss: str, tap: str) -> None:
    """Names are those of metrics; that torch's containers have attributes of their own is no concern of a recipe."""
    (term,) = made({"loss": loss, "tap": tap, "name": name})
    built = modules(term)
    for pair in term.pairs:
        assert (pair.projection or pair.memory) in built


# modules of losses


def test_flow_goes_from_each_mapped_layer_to_the_next() -> None:
    (term,) = made({"loss": "flow", "tap": "hidden", "layers": {3: 4, 1: 1, 2: 3}}, student=shape(depth=3))
    assert [pair.student for pair in term.pairs] == [("hidden.1", "hidden.2"), ("hidden.2", "hidden.3")]
    assert [pair.teacher for pair in term.pairs] == [("hidden.1", "hidden.3"), ("hidden.3", "hidden.4")]
    (first, second), (same, third) = (each(pair.projection or ()) for pair in term.pairs)
    assert second == same and {first, second, third} == set(term.modules), "one for each layer"
    assert [sizes(module) for module in modules(term).values()] == [(16, 24)] * 3
    (term,) = made({"loss": "flow", "tap": "hidden", "projection": "shared"})
    (name,) = term.modules
    assert [pair.projection for pair in term.pairs] == [(name, name)]
    (term,) = made({"loss": "flow", "tap": "hidden"}, student=shape(24))
    assert [pair.projection for pair in term.pairs] == [None] and not term.modules


@pytest.mark.parametrize("layers", ["last", {1: 2}])
def test_flow_needs_two_layers(layers: Any) -> None:
    said = refusal({"loss": "flow", "tap": "hidden", "layers": layers})
    assert "map at least two, such as layers: uniform" in said


@pytest.mark.parametrize(("rate", "factors"), [(None, 12), (0.25, 6), (2.0, 48), (1e-3, 1)])
def test_factor_transfer_has_a_translator_and_a_paraphraser_a_pair(rate: float | None, factors: int) -> None:
    said = {"loss": "factor_transfer", "tap": "hidden", "paraphraser_steps": 7} | ({"rate": rate} if rate else {})
    (term,) = made(said)
    built = modules(term)
    assert len(built) == 4
    for pair in term.pairs:
        assert isinstance(pair.projection, str) and pair.teacher_module
        translator, paraphraser = built[pair.projection], built[pair.teacher_module]
        assert translator(torch.zeros(2, 3, 16)).shape == paraphraser(torch.zeros(2, 3, 24)).shape == (2, 3, factors)
        assert isinstance(paraphraser, Paraphraser) and paraphraser.steps == 7
        assert not any(p.requires_grad for p in paraphraser.parameters())


def test_contrastive_has_a_memory() -> None:
    (term,) = made({"loss": "contrastive", "tap": "pooled", "width": 8, "negatives": 3, "momentum": 0.9})
    (pair,), (memory,) = term.pairs, modules(term).values()
    assert (pair.student, pair.teacher, pair.projection) == ("pooled", "pooled", None) and {pair.memory} == set(
        term.modules
    )
    assert isinstance(memory, ContrastiveMemory)
    assert (sizes(memory.student), sizes(memory.teacher)) == ((16, 8), (24, 8))
    assert memory.student_bank.shape == memory.teacher_bank.shape == (12, 8)
    assert (memory.negatives, memory.momentum) == (3, 0.9)


# heads


ATTENTION = [("attention_scores_mse", "scores"), ("attention_kl", "scores"), ("attention_mse", "probs")]


@pytest.mark.parametrize(("loss", "tap"), ATTENTION)
def test_maps_are_compared_where_heads_can_be_grouped(loss: str, tap: str) -> None:
    for mine, theirs in ((4, 4), (2, 4), (1, 4), (8, 4), (6, 2)):
        (term,) = made({"loss": loss, "tap": tap}, student=shape(48, heads=mine), teacher=shape(24, 4, theirs))
        assert len(term.pairs) == 2
    for mine, theirs in ((3, 4), (4, 3), (6, 4)):
        said = refusal({"loss": loss, "tap": tap}, student=shape(48, heads=mine), teacher=shape(24, 4, theirs))
        assert f"{mine} student heads and {theirs} teacher heads cannot be grouped" in said
        assert f"set models.student.heads to a divisor of {theirs}, or use relation_kl" in said


@pytest.mark.parametrize("tap", ["query", ["query", "key", "value"]])
def test_relation_heads_that_do_not_divide(tap: Any) -> None:
    """The message offers what both widths can be cut into, all of it and nothing else."""
    student = shape(18, heads=3)
    for said in ({"relation_heads": 5}, {}):  # left out: the teacher's 4 heads
        message = refusal({"loss": "relation_kl", "tap": tap} | said, student=student)
        assert f"{said.get('relation_heads', 4)} relation heads do not divide the widths of query, 18" in message
        assert offered(message) == [1, 2, 3, 6]
    for count in offered(message):
        (term,) = made({"loss": "relation_kl", "tap": tap, "relation_heads": count}, student=student)
        assert len(term.pairs) == 2


def offered(message: str) -> list[int]:
    found = re.search(r"set relation_heads to one of ([\d, ]+)$", message)
    assert found, message
    return [int(number) for number in found[1].split(", ")]


def llama(width: int, heads: int, shared: int, **more: Any) -> tf.PretrainedConfig:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": shared}
    return tf.LlamaConfig(**sizes, num_hidden_layers=2, intermediate_size=24, vocab_size=60, **more)


def test_grouped_queries_have_narrow_keys() -> None:
    """Query 32 and 32, key and value 8 and 16 wide: what divides the queries need not divide the keys."""
    student, teacher = llama(32, 4, 1), llama(32, 4, 2)
    said = {"loss": "relation_kl", "tap": "query", "relation_heads": 16}
    assert len(made(said, student=student, teacher=teacher)[0].pairs) == 2
    for tap in ("key", "value", ["query", "key"]):
        message = refusal(said | {"tap": tap}, student=student, teacher=teacher)
        assert re.search(r"the widths of (key|value), 8 \(student\) and 16 \(teacher\)", message)
        assert offered(message) == [1, 2, 4, 8]
    narrow = llama(12, 2, 1)  # keys 6 wide: the teacher's 2 heads of keys divide them, its 4 heads of queries do not
    (term,) = made({"loss": "relation_kl", "tap": "key"}, student=narrow, teacher=teacher)
    assert len(term.pairs) == 2


def test_what_is_offered_for_several_taps_fits_all_of_them() -> None:
    student, teacher = llama(32, 4, 1), llama(32, 4, 2)
    said = {"loss": "relation_kl", "tap": ["query", "key", "value"]}
    for count in offered(refusal(said | {"relation_heads": 5}, student=student, teacher=teacher)):
        made(said | {"relation_heads": count}, student=student, teacher=teacher)


WIDE = {"llama-wide": lambda: llama(32, 4, 2, head_dim=16, pad_token_id=0), "bert-narrow": lambda: shape(32, 2, 4, 12)}


@pytest.mark.parametrize("name", [*CONFIGS, *WIDE])
def test_widths_and_heads_are_those_of_the_tensors(name: str) -> None:
    """What is said of a config is what its model gives."""
    config = WIDE[name]() if name in WIDE else CONFIGS[name]()
    model = students.build(config, seed=0)
    layered = ("hidden", "query", "key", "value", "ffn")
    taps = {tap: f"{tap}.1" for tap in layered} | {"embedding": "embedding", "pooled": "pooled"}
    ids = torch.arange(3, 11).view(2, 4)
    readout = Tapped(model, taps.values())({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    for tap, place in taps.items():
        tensor = readout[place]
        if tap in ("query", "key", "value"):
            assert tensor.shape[1] == heads_of(config, tap), tap
            assert tensor.shape[1] * tensor.shape[3] == width_of(config, tap), tap
        else:
            assert tensor.shape[-1] == width_of(config, tap), tap


# hyper-parameters


@pytest.mark.parametrize(
    ("said", "word", "message"),
    [
        ({"loss": "forward_kl", "temperature": 0}, "temperature", "a number above 0, not 0"),
        ({"loss": "topk_kl", "temperature": True}, "temperature", "a number above 0, not true"),
        ({"loss": "jensen_shannon", "beta": 2}, "beta", "a number from 0 to 1, not 2"),
        ({"loss": "topk_jensen_shannon", "beta": -0.1}, "beta", "a number from 0 to 1, not -0.1"),
        ({"loss": "skew_reverse_kl", "alpha": 1}, "alpha", "a number, at least 0 and below 1, not 1"),
        ({"loss": "decoupled_kl", "beta": -1}, "beta", "a number, at least 0, not -1"),
        ({"loss": "pearson", "inter": "much"}, "inter", "a number, at least 0, not 'much'"),
        ({"loss": "topk_kl", "tail": 3}, "tail", "true or false, not 3"),
        ({"loss": "topk_kl", "k": True}, "k", "a whole number above 0, not true"),
        ({"loss": "topk_reverse_kl", "k": 2.0}, "k", "a whole number above 0, not 2.0"),
        ({"loss": "relation_kl", "tap": "key", "relation_heads": 0}, "relation_heads", "a whole number above 0, not 0"),
        ({"loss": "patient", "tap": "hidden", "position": "middle"}, "position", "first or last, not 'middle'"),
        ({"loss": "patient", "tap": "hidden", "position": 0}, "position", "first or last, not 0"),
        ({"loss": "activation_boundary", "tap": "ffn", "margin": 0}, "margin", "a number above 0, not 0"),
        ({"loss": "factor_transfer", "tap": "hidden", "rate": 0}, "rate", "a number above 0, not 0"),
        ({"loss": "factor_transfer", "tap": "hidden", "paraphraser_steps": 0}, "paraphraser_steps", "a whole number above 0"),
        ({"loss": "contrastive", "tap": "pooled", "momentum": 1}, "momentum", "a number, at least 0 and below 1, not 1"),
        ({"loss": "contrastive", "tap": "pooled", "negatives": 0}, "negatives", "a whole number above 0, not 0"),
        ({"loss": "contrastive", "tap": "pooled", "log_partition": float("inf")}, "log_partition", "a finite number, not inf"),
    ],
    ids=str,
)  # fmt: skip
def test_values_of_the_wrong_kind(said: dict[str, Any], word: str, message: str, tmp_path: Path, world: Path) -> None:
    """One line: the place, what may stand there, what does. Without the key the term is sound."""

    def table(term: dict[str, Any]) -> dict[str, Any]:
        return recipe(world, tmp_path / "run", settings={"a": {"terms": [term]}})

    design.design(load(table({key: value for key, value in said.items() if key != word})))
    with pytest.raises(UserError) as caught:
        api.check(table(said))
    assert str(caught.value).startswith(f"recipe: settings.a.terms[0].{word}: must be {message}")


# causal models


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """A world whose teacher predicts the next token, with grouped queries."""
    folder = tmp_path_factory.mktemp("causal")
    (folder / "corpus.txt").write_text((world / "corpus.txt").read_text())
    tiny("llama", dtype=torch.float32).save_pretrained(folder / "teacher")
    tokenizer().save_pretrained(folder / "teacher")
    return folder


def of_causal(folder: Path, out: Path, *said: dict[str, Any], **train: Any) -> dict[str, Any]:
    """A recipe with a setting for each term."""
    settings = {f"{term['loss']}-{i}": {"terms": [term]} for i, term in enumerate(said)}
    table = recipe(folder, out, settings=settings, train=train)
    table["models"]["student"] = {"layers": 2, "hidden": 16, "heads": 2, "kv_heads": 1, "intermediate": 32}
    table["data"] |= {"positions": "all", "heldout": 0.9, "max_length": 20}
    return table


def test_a_causal_student_reads_its_last_token(causal: Path, tmp_path: Path) -> None:
    patient = {"loss": "patient", "tap": "hidden"}
    for said in (patient, patient | {"position": "first"}, patient | {"tap": "embedding"}):
        with pytest.raises(UserError, match=r"settings\.patient-0: patient reads the first .*; set position: last"):
            design.design(load(of_causal(causal, tmp_path / "run", said)))
    for said in (patient | {"position": "last"}, patient | {"tap": "pooled"}):
        assert design.design(load(of_causal(causal, tmp_path / "run", said))).causal


@pytest.mark.slow
def test_a_grouped_query_student_learns_every_part(causal: Path, tmp_path: Path, fast: None) -> None:
    """Query 16 and 32, key and value 8 and 16 wide; 2 and 4 heads; a gated feed-forward layer. Always the same batch."""
    said: list[dict[str, Any]] = [
        {"loss": "forward_kl"},
        {"loss": "relation_kl", "tap": ["query", "key", "value"], "layers": "last"},
        {"loss": "relation_kl", "tap": "key", "layers": "all-to-one", "relation_heads": 4},
        {"loss": "attention_kl", "tap": "scores"},
        {"loss": "attention_mse", "tap": "probs"},
        {"loss": "activation_boundary", "tap": "ffn", "projection": "shared"},
        {"loss": "patient", "tap": "hidden", "position": "last"},
        {"loss": "contrastive", "tap": "pooled", "negatives": 50, "width": 8, "temperature": 1.0},
    ]
    blocks = len(read_text(design.design(load(of_causal(causal, tmp_path, *said))), lambda line: None).corpus.train)
    how = {"steps": 4, "probe_every": 1, "batch_size": blocks, "lr": 2e-3, "warmup": 0, "eval_every": 4}
    run = limbeck.run(of_causal(causal, tmp_path / "run", *said, **how), quiet=True)
    for i, term in enumerate(said):
        rows = [row for row in run.metrics if row["setting"] == f"{term['loss']}-{i}"]
        values = [row["loss"] for row in rows]
        assert len(values) == 4 and values[-1] < values[0], term
        assert all(list(row["gradient_share"].values()) == [1.0] for row in rows)
