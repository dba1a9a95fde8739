"""`limbeck sensitivity`: one layer after another in few bits, against the same done by hand with transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import yaml
from families import CAUSAL, CONFIGS, tiny
from kernel import answer, lay_out, recipe
from rows import framed, small, table
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from limbeck.errors import UserError
from limbeck.lab.terminal import sensitivities
from limbeck.measure.sensitivity import Sensitivity, left_alone, of_layers
from limbeck.models.changes import fake_quantise
from limbeck.models.changes.quantise import Quantise
from limbeck.models.taps import Tapped
from limbeck.recipe.data import Data
from limbeck.recipe.load import load
from limbeck.tools.sensitivity import of_model


def quiet(count: int, total: int) -> None:
    assert 0 <= count < total


def asked() -> dict[str, Tensor]:
    ids = torch.randint(3, 100, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "select": mask.bool()}


@pytest.mark.parametrize("name", ["bert", "electra", "gpt2", "llama"])
def test_each_is_measured_alone(name: str) -> None:
    """The KL by its formula, of models whose one weight was rounded by hand; the model is afterwards as it was."""
    model, given = tiny(name), asked()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = of_layers(Tapped(model), [given, given], Quantise(4, 4, 4), quiet)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    changes = [it.change for it in found]
    assert changes == sorted(changes, reverse=True) and changes[-1] > 0
    kind: Any = tf.AutoModelForCausalLM if name in CAUSAL else tf.AutoModelForMaskedLM
    for it in (found[0], found[-1]):
        other = kind.from_config(CONFIGS[name](), attn_implementation="sdpa").eval().double()
        other.load_state_dict(before)
        layer = other.get_submodule(it.names[0])
        turned = isinstance(layer, Conv1D)
        with torch.no_grad():
            rounded = fake_quantise(layer.weight.mT if turned else layer.weight, 4)
            layer.weight.copy_(rounded.mT if turned else rounded)
            old, new = (each(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits for each in (model, other))  # fmt: skip
        old, new = (each[given["select"]].log_softmax(-1) for each in (old, new))
        assert it.change == pytest.approx((old.exp() * (old - new)).sum(-1).mean().item(), rel=1e-8)
        size = layer.weight.numel()
        rows = layer.weight.shape[1 if turned else 0]
        assert it.bytes == 8 * size - size // 2 - 4 * rows
    kinds = (nn.Linear, Conv1D)
    names = {name for it in found for name in it.names}
    assert {name for name, it in model.named_modules() if isinstance(it, kinds)} < names, "and the embedding"


def test_a_tied_weight_is_one() -> None:
    found = of_layers(Tapped(tiny("bert")), [asked()], Quantise(8, 8, 8, 16), quiet)
    assert [it.names for it in found if len(it.names) > 1] == [
        ("bert.embeddings.word_embeddings", "cls.predictions.decoder")
    ]
    assert len(found) == 1 + 18 + 1
    sizes = {it.names[0]: it.bytes for it in found}
    assert sizes["bert.encoder.layer.0.intermediate.dense"] == 32 * 48 * 8 - 32 * 48 - 4 * 2 * 48, "a scale a group"


def test_who_is_left_alone() -> None:
    """More than ten times the median of what a saved byte costs, not of the change: a small layer costs little to keep."""
    common = [Sensitivity((f"l{i}",), 1.0, 1000) for i in range(5)]
    odd = [Sensitivity(("small",), 0.5, 40), Sensitivity(("large",), 9.0, 1000), Sensitivity(("bad",), 11.0, 1000)]
    assert [it.names[0] for it in left_alone([*common, *odd])] == ["small", "bad"]
    assert left_alone(common) == [] and left_alone(common[:1]) == []


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A table, the line for the recipe and the same numbers as a file; the same sample each time."""
    world, told = (
        lay_out(tmp_path / "world") if (tmp_path / "world").mkdir() is None else tmp_path,
        tmp_path / "said.json",
    )
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe(world, tmp_path / "run")))
    words = ["sensitivity", str(world / "teacher"), "--bits", "2", "--task", str(tmp_path / "mine.yaml")]
    status, out, _ = answer(monkeypatch, capsys, *words, "--group", "8", "--json", str(told))
    facts = json.loads(told.read_text())
    assert status == 0 and facts["bits"] == 2 and facts["group"] == 8 and facts["measured"] == "KL"
    assert out.splitlines()[-1] == f"skip: [{', '.join(facts['skip'])}]"
    assert facts["skip"] == [name for it in facts["layers"] if it["alone"] for name in it["names"]]
    assert len(facts["layers"]) == 26 and facts["rows"] <= 32 and facts["tokens"] > 10
    again = of_model(world / "teacher", load(recipe(world, tmp_path / "run")).data, bits=2, group=8)
    assert again == facts
    status, _, said = answer(monkeypatch, capsys, *words, "--group", "7")
    assert status == 2 and "groups of 7 do not divide the 24 inputs of" in said
    status, _, said = answer(monkeypatch, capsys, *words, "--json", str(tmp_path / "none" / "it.json"))
    assert status == 2 and "choose another file with --json" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_task(kind: str, tmp_path: Path) -> None:
    """Of classes the KL for each row; of a score how far it moved, squared."""
    score = kind == "regression"
    model = small(classes=1 if score else 2)
    model.save_pretrained(tmp_path / "model")
    framed().save_pretrained(tmp_path / "model")
    words = ("ba", "be", "bi", "bo", "bu", "da", "de", "di")
    said = [" ".join(words[(i * k + k * k + i) % 8] for k in range(3 + i % 5)) for i in range(30)]
    rows = [{"sentence": it, "label": len(it) / 7 if score else ("good", "bad")[i % 2]} for i, it in enumerate(said)]
    train, held = table(tmp_path / "train.jsonl", rows[9:]), table(tmp_path / "dev.jsonl", rows[:9])
    task: Any = {"kind": kind}
    data = Data(corpus=str(train), heldout=str(held), task=task, cache=str(tmp_path / "cache"), max_length=12)
    found = of_model(tmp_path / "model", data, bits=3)
    assert found["rows"] == found["tokens"] == 9 and found["measured"] == ("squared error" if score else "KL")
    assert all(it["change"] >= 0 for it in found["layers"]) and found["layers"][0]["change"] > 0
    assert ("squared error" if score else "KL") in sensitivities.lines(found)[0]


def test_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    world = lay_out(tmp_path / "world")
    plain = recipe(world, tmp_path / "run")
    data = load(plain | {"data": plain["data"] | {"masking": {"mode": "none"}, "positions": "all"}}).data
    with pytest.raises(UserError, match="is measured by masked tokens, and none is masked"):
        of_model(world / "teacher", data, bits=4)
