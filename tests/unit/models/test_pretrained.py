"""Where models come from: folders, sound and damaged, the embedded teacher, and a Hub that cannot be reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from kernel import TEACHER_DEPTH, TEACHER_WIDTH, lay_out

from limbeck.errors import Interrupted, UserError
from limbeck.models import pretrained
from limbeck.recipe.models import Source

EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass C: pass\n"


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return lay_out(tmp_path) / "teacher"


def config(**words: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | words))

    return change


def without(name: str) -> Callable[[Path], Any]:
    return lambda folder: [path.unlink() for path in folder.glob(name)]


def cut(name: str, text: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(text)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def remote(folder: Path) -> None:
    config(model_type="frob", auto_map={"AutoConfig": "evil.C", "AutoModelForMaskedLM": "evil.C"})(folder)
    (folder / "evil.py").write_text(EVIL)


DAMAGE = {
    "no config": (without("config.json"), "not a usable model folder"),
    "no weights": (without("model.safetensors"), "no file named model.safetensors"),
    "only a pickle": (pickled, "no file named model.safetensors"),
    "no tokenizer": (without("tok*"), "there is no tokenizer"),
    "broken tokenizer": (cut("tokenizer.json", b"{"), "not a usable model folder"),
    "broken config": (cut("config.json", b"{ nope"), "not a valid JSON file"),
    "broken weights": (cut("model.safetensors", b"nope"), "not a usable model folder"),
    "list as config": (cut("config.json", b"[1]"), "not a usable model folder"),
    "a family without a row": (config(model_type="mamba"), "limbeck knows no model family 'mamba'"),
    "an unheard-of family": (config(model_type="frobnicate"), "model type `frobnicate`"),
    "code of its own": (remote, "custom code"),
    "another width": (config(hidden_size=16), f"are ({TEACHER_WIDTH},), but (16,) by the config"),
    "more layers": (config(num_hidden_layers=6), "the weights of bert.encoder.layer.4."),
    "fewer layers": (config(num_hidden_layers=2), "the config has no place for the weights of bert.encoder.layer.2."),
    "strange sizes": (config(hidden_size="wide"), "not a usable model folder"),
}


@pytest.mark.parametrize("how", [{}, {"device_map": "meta"}], ids=["run", "check"])
@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_one_line(what: str, how: dict[str, str], teacher: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = DAMAGE[what]
    damage(teacher)
    source = Source(source=str(teacher))
    with pytest.raises(UserError) as caught:
        (pretrained.tokenizer_of(source), pretrained.model_of(source, torch.float32, **how))
    said = str(caught.value)
    assert message in said
    assert said.isprintable()
    assert ";" in said, "a remedy"
    assert not (teacher / "ran").exists()
    assert capfd.readouterr() == ("", ""), "the library's own words stay away"


def test_a_sound_folder(teacher: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = Source(source=str(teacher))
    assert pretrained.config_of(source).hidden_size == TEACHER_WIDTH
    assert len(pretrained.tokenizer_of(source)) == 60
    model = pretrained.model_of(source, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers == TEACHER_DEPTH
    assert next(pretrained.model_of(source, torch.float32, device_map="meta").parameters()).is_meta
    assert capfd.readouterr() == ("", "")


def test_a_known_family_runs_no_code_of_the_folder(teacher: Path) -> None:
    config(auto_map={"AutoConfig": "evil.C", "AutoModelForMaskedLM": "evil.C"})(teacher)
    (teacher / "evil.py").write_text(EVIL)
    pretrained.model_of(Source(source=str(teacher)), torch.float32)
    assert not (teacher / "ran").exists()


def test_the_embedded_teacher() -> None:
    source = Source(source=pretrained.EMBEDDED)
    assert len(pretrained.tokenizer_of(source)) == pretrained.config_of(source).vocab_size


@pytest.mark.parametrize(
    "source", ["nope", "/nope", "./no/pe", "~/no/pe", "a/b/c", "org/na me", "https://huggingface.co/a/b", __file__]
)
def test_no_such_folder(source: str) -> None:
    with pytest.raises(UserError, match="no such model folder; give a folder, 'embedded', or a Hub id") as caught:
        pretrained.config_of(Source(source=source))
    assert not isinstance(caught.value, pretrained.NotDownloaded)


def test_a_model_without_a_head_is_named_so(teacher: Path, tmp_path: Path) -> None:
    source = Source(source=str(tmp_path))
    pretrained.model_of(Source(source=str(teacher)), torch.float32).base_model.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"are missing \(\d+ in all\); it was saved as \w+Model, without a head; take the"
    ):
        pretrained.model_of(source, torch.float32)


def test_an_interruption_is_no_damaged_model(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any, **how: Any) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", stopped)
    with pytest.raises(Interrupted):
        pretrained.config_of(Source(source="nobody/interrupted"))
    monkeypatch.setattr(pretrained.AutoConfig, "from_pretrained", stopped)
    with pytest.raises(Interrupted):
        pretrained.config_of(Source(source=str(teacher)))


def test_a_hub_out_of_reach_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def down(*args: Any, **how: Any) -> None:
        asked.append(args)
        raise OSError("the network is down")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", down)
    for fetch in (pretrained.config_of, pretrained.tokenizer_of):
        with pytest.raises(pretrained.NotDownloaded, match=r"not to be had from the Hub \(the network is down\)"):
            fetch(Source(source="nobody/nothing"))
    assert len(asked) == 1
    for _ in range(2):
        with pytest.raises(pretrained.NotDownloaded) as caught:
            pretrained.config_of(Source(source="nobody/other"), offline=True)
        assert caught.value.far == {"nobody/other": "the network is down"}
    assert len(asked) == 2
