"""Grids of whole numbers against their definition in fp64, and the files that say which weights lie on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.compressed import COMPRESSION, Compressed, Grid, from_grid, on_grid, read, write


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 4])
def test_weights_on_a_grid_are_found_again(bits: int, group: int | None) -> None:
    """Each group uses one of the ends of its grid, whichever sign it has."""
    draw, grid = torch.Generator().manual_seed(bits), Grid(bits, group)
    least, greatest = grid.bounds
    whole = torch.randint(least, greatest + 1, (6, 12), generator=draw, dtype=torch.int8)
    whole[:, ::4], whole[1::2, ::4] = greatest, least
    scale = torch.rand(6, 12 // (group or 12), generator=draw) + 0.01
    found, steps = on_grid(from_grid(whole, scale), grid)
    assert torch.equal(found, whole)
    torch.testing.assert_close(steps, scale, rtol=1e-6, atol=0)


def test_the_nearest_number_and_the_smallest_scale() -> None:
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    whole, scale = on_grid(weight, Grid(4))
    for row, numbers, (step,) in zip(weight.double(), whole, scale.double(), strict=True):
        assert step.item() == pytest.approx(max(row.max().item() / 7, row.min().item() / -8), rel=1e-6)
        assert (row - numbers * step).abs().max() <= step / 2 * (1 + 1e-5)
    assert on_grid(torch.zeros(2, 4), Grid())[1].tolist() == [[1.0], [1.0]]
    with pytest.raises(UserError, match="groups of 3 do not divide 8 columns"):
        on_grid(weight, Grid(4, 3))


def test_the_files(tmp_path: Path) -> None:
    assert read(tmp_path) == Compressed()
    said = Compressed({"a.down": Grid(4, 2), "b": Grid(8, None, 8)}, {"a": (torch.ones(2, 6), torch.zeros(4, 2))})
    write(tmp_path, said)
    found = read(tmp_path)
    assert found.quantised == said.quantised and torch.equal(found.factors["a"][0], torch.ones(2, 6))
    for damage in (
        "{",
        '{"quantised": {"a": {"bit": 8}}}',
        '{"factorised": ["c"]}',
        '{"quantised": {"a": {"bits": 1}}}',
    ):
        (tmp_path / COMPRESSION).write_text(damage)
        with pytest.raises(UserError, match=r"compression\.json: "):
            read(tmp_path)
