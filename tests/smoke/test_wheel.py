"""Installed, not only cloned: the wheel, in an environment of its own outside of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`limbeck` of an environment in which the wheel is installed; what it depends on is read from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "tests", "docs", "benchmarks", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("limbeck-*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    return folder / "env" / "bin" / "limbeck"


def answer(command: Path, folder: Path, *words: str) -> str:
    """What it prints, in a folder with nothing of the repository."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([command, *words], capture_output=True, text=True, cwd=folder, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_runs_where_no_repository_is(command: Path, tmp_path: Path) -> None:
    """Recipes, the embedded teacher, the template and the script of the page, stop words: all are inside."""
    python = command.parent / "python"
    where = subprocess.run(
        [python, "-c", "import limbeck; print(limbeck.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert str(command.parents[1]) in where.stdout, "the wheel's, not the repository's"
    assert "quickstart" in answer(command, tmp_path, "recipes")
    short = [
        "train.steps=2",
        "train.eval_blocks=2",
        "train.reasons_blocks=2",
        "train.batch_size=2",
        "seeds=[0]",
        "only=[logit]",
    ]
    said = answer(command, tmp_path, "run", "quickstart", *short, f"data.cache={tmp_path / 'cache'}")
    assert "report: runs/quickstart/report.html" in said
    page = (tmp_path / "runs" / "quickstart" / "report.html").read_text(encoding="utf-8")
    assert "<script>" in page and "<svg" in page
    assert "report.html" in answer(command, tmp_path, "report", "runs/quickstart")
    stop = "from limbeck.text.augment.proposals import STOP; assert len(STOP) > 100"
    subprocess.run([python, "-c", stop], check=True, cwd=tmp_path)
