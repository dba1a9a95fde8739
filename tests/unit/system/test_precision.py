"""What `train.precision: auto` becomes, where it is told, and that a run that has begun keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kernel import answer, recipe
from runfiles import untimed, weights

import limbeck
from limbeck.recipe import identity
from limbeck.recipe.load import built_in, load
from limbeck.system import precision

Train = Callable[..., limbeck.Run]
X86, ARM = {"architecture": "x86_64", "avx2": True}, {"architecture": "arm64", "neon": True}
AVX512 = X86 | {"avx512_f": True, "avx512_bw": True, "avx512_vnni": True}
SHORT = {"steps": 2, "eval_every": 2, "reasons_blocks": 0}


@pytest.mark.parametrize(
    ("instructions", "answer"),
    [
        (X86 | {"avx512_bf16": False}, "fp32"),
        (AVX512 | {"avx512_bf16": False, "amx_bf16": False}, "fp32"),
        (AVX512 | {"avx512_bf16": True}, "bf16"),
        (AVX512 | {"amx_tile": True, "amx_bf16": True}, "bf16"),
        (ARM | {"bf16": False}, "fp32"),
        (ARM | {"bf16": True}, "bf16"),
        ({"architecture": "riscv64", "bf16": True}, "fp32"),
    ],
)
def test_of_a_processor(instructions: dict[str, Any], answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert precision.fastest(torch.device("cpu")) == answer
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert precision.fastest(torch.device("cpu")) == "fp32", "torch alone does not use these instructions"


@pytest.mark.parametrize(
    ("capability", "answer"), [((7, 0), "fp32"), ((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_of_a_gpu(capability: tuple[int, int], answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without bf16 computes in fp32, never in fp16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert precision.fastest(torch.device("cuda:0")) == answer


@pytest.mark.parametrize("supported", [True, False])
def test_of_an_amd_gpu(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation
    )
    assert precision.fastest(torch.device("cuda")) == ("bf16" if supported else "fp32")


def test_an_untried_device_gets_the_safe_one() -> None:
    assert precision.fastest(torch.device("mps")) == "fp32"
    assert "has not been tried on mps" in precision.because("fp32", torch.device("mps"))


def test_this_processor_agrees() -> None:
    """Emulated products are tens of times slower, products by instructions several times faster."""
    ratio = precision.matrix_rate("bf16", 0.05) / precision.matrix_rate("fp32", 0.05)
    assert precision.fastest(torch.device("cpu")) == ("bf16" if ratio > 1 else "fp32"), ratio


@pytest.mark.parametrize("name", built_in())
def test_every_built_in_recipe_says_auto(name: str) -> None:
    plain = yaml.safe_load(built_in()[name].read_text(encoding="utf-8"))
    assert plain["train"]["precision"] == "auto"


def without(said: dict[str, Any]) -> dict[str, Any]:
    """The recipe without the key."""
    return said | {"train": {word: value for word, value in said["train"].items() if word != "precision"}}


def on(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """As if the machine were of the other kind."""
    monkeypatch.setattr(precision, "fastest", lambda device: answer)


def test_auto_is_what_it_becomes(world: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said = recipe(world, tmp_path / "said", train=SHORT)
    on(monkeypatch, "fp32")
    auto = limbeck.run(without(said) | {"out": str(tmp_path / "auto")}, quiet=True)
    plain = limbeck.run(said, quiet=True)
    assert (auto.manifest["precision"], plain.manifest["precision"]) == ("fp32", "fp32")
    assert auto.manifest["recipe_sha256"] == plain.manifest["recipe_sha256"] == identity.identity(load(said))
    assert untimed(auto.evals) == untimed(plain.evals)
    assert [weights(auto, name) for name in auto.students] == [weights(plain, name) for name in plain.students]
    assert yaml.safe_load((auto.folder / "recipe.yaml").read_text())["train"]["precision"] == "fp32"


@pytest.mark.parametrize("varied", [{}, {"vary": {"train.lr": [1e-2, 1e-3]}}])
def test_what_has_begun_keeps_its_own(
    varied: dict[str, Any], world: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that would choose another one, and whether the recipe says auto, nothing or the key."""
    said = recipe(world, tmp_path / "run", train=SHORT | {"precision": "auto"}) | varied
    on(monkeypatch, "fp32")
    begun = limbeck.run(said, quiet=True)
    before = [run.manifest for run in begun.arms.values() or [begun]]
    on(monkeypatch, "bf16")
    for later in (said, without(said), said | {"train": said["train"] | {"precision": "fp32"}}):
        again = limbeck.run(later | {"report_to": []}, quiet=True)
        assert [run.manifest for run in again.arms.values() or [again]] == before
    with pytest.raises(limbeck.UserError, match="another"):
        limbeck.run(said | {"train": said["train"] | {"precision": "bf16"}}, quiet=True)


def test_longer_it_goes_on_in_its_own(world: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a run of before there was the key, whose recipe.yaml tells it."""
    how = SHORT | {"schedule": "constant", "precision": "auto"}
    runs = []
    for name, steps in (("whole", 4), ("parts", 2)):
        on(monkeypatch, "fp32")
        runs.append(limbeck.run(recipe(world, tmp_path / name, train=how | {"steps": steps}), quiet=True))
    path = runs[1].folder / "manifest.json"
    path.write_text(json.dumps({word: it for word, it in runs[1].manifest.items() if word != "precision"}))
    on(monkeypatch, "bf16")
    longer = limbeck.run(recipe(world, tmp_path / "parts", train=how | {"steps": 4}), quiet=True)
    assert [weights(longer, name) for name in longer.students] == [weights(runs[0], name) for name in runs[0].students]


def test_it_is_told(
    world: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among the first lines of a run, and by check; with how slow it is where a processor emulates what a recipe says."""
    said = without(recipe(world, tmp_path / "run", train=SHORT))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(said))
    on(monkeypatch, "fp32")
    rates = {"fp32": 7e9, "bf16": 1e8}
    monkeypatch.setattr(precision, "matrix_rate", lambda precision, seconds=0.3: rates[precision])
    monkeypatch.setattr(precision, "_slower", precision._slower.__wrapped__)
    _, out, _ = answer(monkeypatch, capsys, "check", str(file))
    assert "\nprecision         fp32\n" in out and "bf16" not in out
    status, _, log = answer(monkeypatch, capsys, "run", str(file))
    assert status == 0 and log.splitlines()[0] == "precision fp32 (auto: the faster one here) on cpu, 1 thread"
    slow = "this processor has no bf16 instructions: a product in bf16 takes 70 times as long as one in fp32; write train.precision: auto"
    more = ("train.precision=bf16", f"out={tmp_path / 'slow'}")
    _, out, _ = answer(monkeypatch, capsys, "check", str(file), *more)
    assert slow in out
    _, _, log = answer(monkeypatch, capsys, "run", str(file), *more)
    assert log.splitlines()[:2] == ["precision bf16 on cpu, 1 thread", slow]
