"""`limbeck export`: what a file answers by its own runtime is what transformers' own model answers, or the file is refused."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from exports import INNER, OUTER, RANK, classifier, quantised, squeezed, usage
from kernel import answer
from rows import framed, opinions, recipe, small, table
from spelling import FAMILIES, lay_out

import limbeck
from limbeck.errors import UserError
from limbeck.models import compressed
from limbeck.models.compressed import Compressed, Grid
from limbeck.recipe.data import Data
from limbeck.tools import export as tools_export
from limbeck.tools import profile
from limbeck.tools.evaluate_model import examine
from limbeck.tools.export import export
from limbeck.tools.formats import known

torch.set_num_threads(1)
CAUSAL = ("gpt2", "llama", "qwen3")


@pytest.fixture(scope="module", autouse=True)
def briefly() -> Any:
    """Two timed passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tools_export, "ROUNDS", 2)
        patch.setattr(tools_export, "BATCHES", (1, 3))
        yield


def need(*names: str) -> None:
    for name in names:
        pytest.importorskip(name)


def kind(folder: Path) -> Any:
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(tf, name).from_pretrained(folder).eval()


def batches(vocabulary: int, types: bool) -> Any:
    """Padded rows of shapes that no example had."""
    for rows, length in ((1, 1), (1, 9), (3, 12), (5, 20)):
        draw = torch.Generator().manual_seed(length)
        ids = torch.randint(5, vocabulary, (rows, length), generator=draw)
        seen = (torch.arange(length) < length - 3 * torch.arange(rows)[:, None]).long()
        seen[:, 0] = 1
        batch = {"input_ids": ids * seen, "attention_mask": seen}
        yield batch | ({"token_type_ids": (torch.arange(length) > 4).long() * seen} if types else {})


def held(folder: Path, student: Path, bound: float, types: bool = False) -> None:
    """Whether a file of ONNX, run by onnxruntime alone, answers as transformers' model of the student."""
    session = importlib.import_module("onnxruntime").InferenceSession(folder / "model.onnx")
    model = kind(student)
    names = {one.name for one in session.get_inputs()}
    for batch in batches(model.config.vocab_size, types):
        (said,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items() if name in names})
        with torch.no_grad():
            logits = model(**batch).logits
        if logits.dim() == 3:
            kept = batch["attention_mask"].bool()
            said, logits = torch.from_numpy(said)[kept].numpy(), logits[kept]
        assert np.abs(said - logits.numpy()).max() <= bound * logits.abs().max().item()


@pytest.fixture(scope="module")
def in_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    need("onnx", "onnxscript", "onnxruntime")
    student = classifier(tmp_path_factory.mktemp("student") / "a")
    return student, export(student, "onnx")


def test_onnx_answers_as_transformers(in_onnx: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    student, found = in_onnx
    assert found.held and found.folder == student.with_name("a-onnx")
    held(found.folder, student, 1e-4, types=True)
    whole = (found.folder / "model.onnx").read_bytes()
    assert found.facts["bytes"] == len(whole) and b"site-packages" not in whole and b"limbeck" not in whole
    monkeypatch.chdir(found.folder)
    assert len(usage(found.folder).strip().splitlines()) == 5
    exec(usage(found.folder), {})
    told = json.loads((found.folder / "export.json").read_text())
    assert told == json.loads(json.dumps(found.facts)) and set(told["latency"]["batches"]["3"]) == {"student", "export"}


def test_a_folder_of_onnx_is_profiled_and_evaluated(in_onnx: tuple[Path, Any], tmp_path: Path) -> None:
    student, found = in_onnx
    rows = [row for row in opinions(40) if row["label"] != "middling"]
    train, dev = table(tmp_path / "train.jsonl", rows[:12]), table(tmp_path / "dev.jsonl", rows[12:])
    task: Any = {"kind": "classification"}
    data = Data(corpus=str(train), heldout=str(dev), task=task, cache=str(tmp_path / "cache"), max_length=12)
    one, other = examine(student, data), examine(found.folder, data)
    assert other.metrics == one.metrics and other.label_loss == pytest.approx(one.label_loss, rel=1e-4)
    with pytest.raises(UserError, match="leave --precision and --device out"):
        examine(found.folder, data, precision="bf16")
    facts = profile.of_sources([str(student), str(found.folder)], length=8, batches=(1,), rounds=2)["models"]
    assert facts[0]["parameters"] == facts[1]["parameters"] and facts[1]["peak_memory"]["1"] is None
    assert facts[1]["bytes_on_disk"] == found.facts["bytes"] and facts[1]["latency"]["1"]["p50"] > 0


def test_factors_and_few_bits_in_onnx_int8(tmp_path: Path) -> None:
    """The factors stay two, tied tables one, and 4 bits are half a byte; all of it exactly on the student's own grid."""
    need("onnx", "onnxscript", "onnxruntime")
    student = squeezed(tmp_path / "a")
    found = export(student, "onnx-int8")
    assert found.held and found.facts["parity"]["agreement"] > 0.9
    held(found.folder, student, 0.1)
    onnx: Any = importlib.import_module("onnx")
    stored = {it.name: it for it in onnx.load(found.folder / "model.onnx").graph.initializer}
    whole = [(name, it) for name, it in stored.items() if len(it.dims) == 2 and 1 not in it.dims]
    tokens = kind(student).config.vocab_size
    ((_, table),) = ((name, it) for name, it in whole if tokens in it.dims)  # of the embedding and of the head
    assert table.data_type == onnx.TensorProto.INT4 and len(table.raw_data) == tokens * RANK // 2
    kinds = {
        part: it.data_type for name, it in whole for part in (f"{INNER}.down", f"{INNER}.up", OUTER) if part in name
    }
    few, eight = onnx.TensorProto.INT4, onnx.TensorProto.INT8
    assert kinds == {f"{INNER}.down": eight, f"{INNER}.up": few, OUTER: few}
    expected = compressed.on_grid(kind(student).get_submodule(OUTER).weight, Grid(3))[0]
    assert np.array_equal(onnx.numpy_helper.to_array(stored[f"model.{OUTER}.weight.packed"]), expected.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "onnx-int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_onnx(name: str, to: str, tmp_path: Path) -> None:
    need("onnx", "onnxscript", "onnxruntime")
    student = lay_out(name, tmp_path / "a")
    found = export(student, to)
    assert found.held
    held(found.folder, student, 1e-4 if to == "onnx" else 0.5)
    if to == "onnx-int8":
        assert found.facts["bytes"] < 0.5 * export(student, "onnx").facts["bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["roberta", "distilbert", "gpt2", "llama", "modernbert"])
def test_every_classifier_in_onnx(name: str, tmp_path: Path) -> None:
    need("onnx", "onnxscript", "onnxruntime")
    from rows import classifier as made

    made(name).float().save_pretrained(tmp_path / "a")
    framed(types=False).save_pretrained(tmp_path / "a")
    found = export(tmp_path / "a", "onnx")
    assert found.held
    held(found.folder, tmp_path / "a", 1e-4)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"gpt2"}))
def test_torchao_is_read_by_transformers_alone(name: str, tmp_path: Path) -> None:
    need("torchao")
    student = lay_out(name, tmp_path / "a")
    found = export(student, "torchao")
    assert found.held and found.facts["parity"]["relative"] < 1e-5
    one, other = kind(found.folder), kind(student)
    quantised = [p for p in one.parameters() if type(p).__name__ == "IntxUnpackedToInt8Tensor"]
    assert len(quantised) > 5 and found.facts["bytes"] < 0.6 * found.facts["student_bytes"]
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        gap = (one(input_ids=ids).logits - other(input_ids=ids).logits).abs().max()
    assert 0 < gap < 0.3 * other(input_ids=ids).logits.abs().max()


@pytest.mark.parametrize("grid", [Grid(3), Grid(4, 8), Grid(8)])
def test_torchao_keeps_the_grid_of_the_student(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("torchao")
    student = quantised(tmp_path / "a", "bert", grid)
    found = export(student, "torchao", tmp_path / "out")
    one, other = kind(found.folder), kind(student)
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(one(input_ids=ids).logits, other(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    monkeypatch.chdir(found.folder)
    exec(usage(found.folder), {})


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("grid", [None, Grid(8), Grid(4, 32)])
def test_gguf_is_read_by_transformers(
    name: str, grid: Grid | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("gguf")
    student = lay_out(name, tmp_path / "a") if grid is None else quantised(tmp_path / "a", name, grid)
    found = export(student, "gguf")
    assert found.held
    config = tf.AutoConfig.from_pretrained(student)
    one: Any = tf.AutoModelForCausalLM.from_pretrained(found.folder, gguf_file="model.gguf", config=config).eval()
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        said, expected = one(input_ids=ids).logits, kind(student)(input_ids=ids).logits
    assert (said - expected).abs().max() <= (1e-5 if grid is None else 1e-2) * expected.abs().max()
    gguf: Any = importlib.import_module("gguf")
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(found.folder / "model.gguf").tensors}
    assert kinds == ({"F32"} if grid is None else {"F32", "Q8_0"})
    if grid is None:
        monkeypatch.chdir(found.folder)
        exec(usage(found.folder), {})


def test_gguf_says_by_itself_what_a_llama_is(tmp_path: Path) -> None:
    need("gguf")
    student = lay_out("llama", tmp_path / "a")
    found = export(student, "gguf")
    one = tf.AutoModelForCausalLM.from_pretrained(found.folder, gguf_file="model.gguf").eval()
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(one(input_ids=ids).logits, kind(student)(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    here, there = (tf.AutoTokenizer.from_pretrained(student), tf.AutoTokenizer.from_pretrained(found.folder))
    assert here("ba de fi")["input_ids"] == there("ba de fi")["input_ids"]


def test_a_student_of_a_run_is_measured_on_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fast: None
) -> None:
    need("torchao")
    small(layers=2, classes=3).save_pretrained(tmp_path / "bert")
    framed().save_pretrained(tmp_path / "bert")
    table(tmp_path / "rows" / "train.jsonl", opinions(40))
    table(tmp_path / "rows" / "dev.jsonl", opinions(21, 40))
    data = {"corpus": str(tmp_path / "rows"), "task": {"kind": "classification"}}
    models = {"teacher": str(tmp_path / "bert"), "student": {"init": str(tmp_path / "bert")}}
    run = limbeck.run(recipe(data, models, tmp_path / "run", "forward_kl"), quiet=True)
    folder = run.students["a-seed0"]
    status, out, _ = answer(monkeypatch, capsys, "export", str(folder), "--to", "torchao")
    told = json.loads((folder.with_name("a-seed0-torchao") / "export.json").read_text())
    assert status == 0 and "21 predictions, 21 held-out rows of rows" in out and "bound 0.0001: held" in out
    last = [row for row in run.evals if row["split"] == "test"][-1]
    assert told["scores"]["student"]["accuracy"] == pytest.approx(last["metrics"]["accuracy"], rel=1e-5)
    assert told["scores"]["memory"] == pytest.approx(told["scores"]["export"], rel=1e-4)
    assert set(told["latency"]["batches"]["1"]) == {"student", "teacher", "export"}
    (tmp_path / "rows" / "dev.jsonl").unlink()
    (tmp_path / "rows" / "train.jsonl").unlink()
    said: list[str] = []
    again = export(folder, "torchao", tmp_path / "again", tell=said.append)
    assert again.facts["scores"] == {} and "cannot be used" in said[0]


def test_what_answers_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need("gguf")
    student, form = lay_out("llama", tmp_path / "a"), known.FORMATS["gguf"]

    def wrong(model: Any, *others: Any) -> None:
        model = tf.AutoModelForCausalLM.from_config(model.config)
        model.limbeck_grids = {}
        form.write(model, *others)

    monkeypatch.setitem(known.FORMATS, "gguf", replace(form, write=wrong))
    status, out, err = answer(monkeypatch, capsys, "export", str(student), "--to", "gguf")
    place = tmp_path / "a-gguf"
    assert status == 3 and "bound 0.0001: not held" in out and "its files are named .refused" in err
    assert {"model.gguf.refused", "export.json", "README.md"} <= set(os.listdir(place))
    assert not (place / "model.gguf").exists()
    with pytest.raises(UserError, match="refused when it was exported"):
        profile.of_sources([str(place)], rounds=1)


def broken(student: Path) -> None:
    compressed.write(student, Compressed({"nowhere": Grid()}))


def strange(student: Path) -> None:
    compressed.write(student, Compressed({}, {INNER: (torch.ones(2, 5), torch.ones(3, 2))}))


def half(student: Path) -> None:
    compressed.write(student, Compressed({f"{INNER}.up": Grid()}, {INNER: (torch.ones(2, 32), torch.ones(48, 2))}))


def nothing(student: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("to", "prepare", "line"),
    [
        ("onx", nothing, "--to: onx is no format; did you mean 'onnx'?"),
        ("gguf", nothing, "gguf is for the decoders gpt2, llama, qwen3, and this is bert; export to onnx or torchao"),
        ("torchao", broken, "nowhere: quantised, and no layer of the model; export the student of its run anew"),
        ("onnx", strange, "its factors fit no layer of the model; export the student of its run anew"),
        (
            "torchao",
            half,
            "is quantised and one of two factors, which torchao's folders do not have; export to onnx-int8",
        ),
        (
            "onnx",
            lambda student: student.with_name("a-onnx").mkdir(),
            "a-onnx: is there already; choose another folder",
        ),
    ],
)
def test_bad_input(
    to: str,
    prepare: Callable[[Path], None],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    need("torchao", "onnx", "onnxscript", "onnxruntime", "gguf")
    student = lay_out("bert", tmp_path / "a")
    prepare(student)
    before = sorted(os.listdir(tmp_path))
    status, _, err = answer(monkeypatch, capsys, "export", str(student), "--to", to)
    last = err.strip().splitlines()[-1]
    assert status == 2 and line in last and last.startswith("limbeck: error: ")
    assert sorted(os.listdir(tmp_path)) == before


def test_models_and_packages_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = answer(monkeypatch, capsys, "export", str(tmp_path / "none"), "--to", "onnx")
    assert status == 2 and "no such model folder" in err
    student, find = classifier(tmp_path / "a"), importlib.util.find_spec
    small("gpt2", classes=2).save_pretrained(tmp_path / "b")
    framed().save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="a sequence classifier; export to onnx"):
        export(tmp_path / "b", "gguf")
    with pytest.raises(UserError, match="no quantised form of the layers of gpt2; export to onnx-int8"):
        export(tmp_path / "b", "torchao")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnxruntime" else find(name))
    status, _, err = answer(monkeypatch, capsys, "export", str(student), "--to", "onnx-int8")
    assert status == 2 and "--to onnx-int8 needs onnxruntime; pip install 'limbeck[export]'" in err
