"""What an earlier state of limbeck left is read as it was meant: runs go on, caches are found, a page shows the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import artefacts
import pytest
import torch
from runfiles import hashes, reasons, tensors

import limbeck
from limbeck.lab.page import report

DRAWN = {"test_the_page_of_an_old_run"}
TOGETHER = {"cached": 1e-6}  # what a cache holds is unpacked in fp32, and another processor rounds it otherwise
EXACT = 1e-9  # another processor adds in another order


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artefacts.unpacked(tmp_path_factory.mktemp("artefacts"))


@pytest.mark.parametrize("name", artefacts.RUNS)
def test_a_run_that_was_begun_goes_on(name: str, there: Path, fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of the run that was not stopped; no token and no answer of a teacher is written anew."""
    monkeypatch.chdir(there)
    before, done = hashes(there / "cache"), limbeck.Run(Path(f"{name}-done"))
    run = limbeck.run(artefacts.table(name, name), quiet=True)
    assert hashes(there / "cache") == before
    assert len(run.metrics) == len(done.metrics) == 2 * 6
    near = TOGETHER.get(name, EXACT)
    for mine, theirs in ((run.metrics, done.metrics), (run.evals, done.evals), (reasons(run), reasons(done))):
        assert [close(row) for row in mine] == [
            pytest.approx(close(row), rel=max(1e-7, near), abs=near) for row in theirs
        ]
    for student in done.students:
        mine, theirs = tensors(run, student), tensors(done, student)
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            torch.testing.assert_close(tensor, theirs[key], rtol=near, atol=near)


def close(row: dict[str, Any]) -> dict[str, float]:
    """The plain numbers of a line."""
    return {
        key: value
        for key, value in row.items()
        if isinstance(value, float) and key not in ("seconds", "tokens_per_second")
    }


def test_the_page_of_an_old_run(there: Path) -> None:
    before = hashes(there / "told")
    report.write(there / "told")
    after = {name: said for name, said in hashes(there / "told").items() if not name.endswith(".png")}
    assert after == before
