"""Mutated folders of models: each is used, or refused in one line that names it; nothing in it runs, and no run is begun."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from kernel import lay_out, recipe, tokenizer
from mutants import ODD, halves, of_bytes, of_table, refusal
from rows import bare, small

import limbeck
from limbeck import api
from limbeck.lab.page import report

FEW, ALL, RUNS = 40, 500, 25  # of those that are let through, every RUNS-th is trained with
SHARES = 4  # of the slow ones, so that processes share them
PARTS = [
    pytest.param(range(FEW), id="few"),
    *(
        pytest.param(range(FEW + share, ALL, SHARES), id=f"share-{share}", marks=pytest.mark.slow)
        for share in range(SHARES)
    ),
]
JSON = ("config.json", "config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = "model.safetensors"
SIZES = (-1, 0, 1, 2, 3, 5, 16, 23, 25, 61, 10**4, 10**7, 10**12, 2**63, "24", 24.0, None, [24], True)


class Opened:
    """What a pickle would do when it is read."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("opened"),)


def lay_out_models(folder: Path) -> Path:
    """A masked and a causal teacher, and a corpus."""
    lay_out(folder)
    small("gpt2", layers=3).save_pretrained(folder / "gpt2")
    bare("<s>", "$A", "</s>").save_pretrained(folder / "gpt2")
    return folder


def json_of(folder: Path, draw: Random) -> None:
    """Another value somewhere in a configuration or a tokenizer."""
    path = folder / draw.choice(JSON)
    table = json.loads(path.read_text())
    if path.name == "config.json" and draw.random() < 0.5:
        sizes = [name for name, value in table.items() if isinstance(value, int)]
        table[draw.choice(sizes)] = draw.choice(SIZES)
    else:
        table = of_table(table, draw, (*ODD, *SIZES))
    path.write_text(json.dumps(table, default=str), encoding="utf-8", errors="surrogatepass")


def bytes_of(folder: Path, draw: Random) -> None:
    path = draw.choice(sorted(folder.iterdir()))
    path.write_bytes(of_bytes(path.read_bytes(), draw))


def header_of(folder: Path, draw: Random) -> None:
    """Another header in front of the same weights."""
    raw = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.dumps(of_table(json.loads(raw[8 : 8 + size]), draw, (*ODD, *SIZES)), default=str).encode(
        "utf-8", "replace"
    )
    length = draw.choice((len(header), len(header), len(header), 0, 2**40, 2**63))
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + header + raw[8 + size :])


def gone(folder: Path, draw: Random) -> None:
    draw.choice(sorted(folder.iterdir())).unlink()


def pickled(folder: Path, draw: Random) -> None:
    """Pickles under all names that a library may look for, with or without the real weights."""
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(Opened()))
    if draw.random() < 0.7:
        (folder / WEIGHTS).unlink()
    if draw.random() < 0.3:
        (folder / WEIGHTS).write_bytes(pickle.dumps(Opened()))


def linked(folder: Path, draw: Random) -> None:
    path = draw.choice(sorted(folder.iterdir()))
    target = draw.choice(
        (path.rename(folder.parent / f"outside-{path.name}"), Path("/dev/zero"), Path("/etc/hostname"), folder, path)
    )
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def remote(folder: Path, draw: Random) -> None:
    """Code of its own, which a configuration asks for."""
    (folder / "evil.py").write_text("from pathlib import Path\nPath('opened').touch()\nclass C: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        table = json.loads((folder / name).read_text())
        kinds = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoTokenizer")
        table["auto_map"] = {
            kind: draw.choice(("evil.C", ["evil.C", "evil.C"], "../evil.C", "org/other--evil.C")) for kind in kinds
        }
        if draw.random() < 0.5:
            table[draw.choice(("model_type", "tokenizer_class"))] = draw.choice(("frob", "evil", "C"))
        (folder / name).write_text(json.dumps(table))


def indexed(folder: Path, draw: Random) -> None:
    """Weights that an index looks for elsewhere."""
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    name = draw.choice(
        ("../outside.safetensors", str(folder.parent / "outside.safetensors"), "missing.safetensors", 3, None, ["x"])
    )
    index = draw.choice(({"weight_map": {"x": name}}, {"weight_map": [name]}, {"weight_map": None}, {}, [], "x"))
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def adapter(folder: Path, draw: Random) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": draw.choice(("nobody/nothing", "/", 3))})
    )


HOW: tuple[Callable[[Path, Random], Any], ...] = (
    *(json_of,) * 6, *(bytes_of,) * 3, *(header_of,) * 3, gone, pickled, linked, remote, indexed, adapter,
)  # fmt: skip


def mutant(number: int, world: Path, folder: Path) -> dict[str, Any]:
    """A recipe over a damaged copy of a model."""
    draw, kind = Random(number), ("teacher", "gpt2")[number % 2]
    shutil.copytree(world / kind, folder / kind)
    draw.choice(HOW)(folder / kind, draw)
    said = recipe(world, folder / "run", train={"steps": 1, "reasons_blocks": 0})
    said["data"] |= {"cache": str(folder / "cache")} | ({"positions": "all"} if kind == "gpt2" else {})
    said["models"]["teacher"] = str(folder / kind)
    if draw.random() < 0.3:
        said["models"]["student"] = {"layers": 1, "init": "teacher"}
    return said


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out_models(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("numbers", PARTS)
def test_a_folder_is_used_or_refused(
    numbers: range, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write", lambda folder: folder)
    used = 0
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        said = mutant(number, world, folder)
        try:
            line = refusal(lambda said=said: api.check(said))
            assert not (folder / "run").exists() and halves(folder / "cache") == []
            used += not line
            if not line and used % RUNS == 1:
                refusal(lambda said=said: limbeck.run(said, quiet=True))
            assert not (tmp_path / "opened").exists(), "code of the folder was run"
        except BaseException as error:
            error.add_note(f"mutant({number})")
            raise
        shutil.rmtree(folder)
    assert 0.1 < used / len(numbers) < 0.9, "else nothing is tried"
    said = capfd.readouterr().out.splitlines()
    assert all(line.startswith("Ignored unknown kwarg option") for line in said), "tokenizers says this, and no more"


def test_the_sound_folders_are_used(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "HOW", (lambda folder, draw: None,))
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        assert refusal(lambda number=number: api.check(mutant(number, world, tmp_path / str(number)))) == ""
    assert len(tokenizer()) == 60
