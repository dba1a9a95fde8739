from __future__ import annotations

import numpy as np
import pytest

from limbeck.lab.data.curves import across_seeds, binned, over_seeds, running_mean
from limbeck.lab.data.run import read


def test_running_mean_by_hand():
    values = np.array([1.0, 2.0, np.nan, 6.0])
    np.testing.assert_allclose(running_mean(values, 3), [1.5, 1.5, 4.0, 6.0])
    assert np.isnan(running_mean(np.array([np.nan, np.nan]), 3)).all()
    assert running_mean(values, 1) is values


def test_mean_and_range_over_the_steps_that_all_seeds_have():
    curve = over_seeds(
        [(np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0])), (np.array([2, 3, 4]), np.array([4.0, 9.0, 1.0]))]
    )
    assert curve is not None
    assert (curve.steps.tolist(), curve.mean.tolist()) == ([2, 3], [3.0, 6.0])
    assert (curve.low.tolist(), curve.high.tolist(), curve.seeds) == ([2.0, 3.0], [4.0, 9.0], 2)


def test_layers_are_averaged_and_what_nobody_measured_is_none(make_run):
    run = read(make_run())
    layers, mean = (across_seeds(run, name, "multi") for name in ("grad_norm_layers", "grad_norm_mean"))
    assert layers is not None
    assert mean is not None
    np.testing.assert_allclose(layers.mean, mean.mean)
    assert across_seeds(run, "nothing", "multi") is None
    update = across_seeds(run, "update_ratio_layers", "multi", "test")
    assert update is not None
    assert update.steps.tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize(("bins", "edges"), [(2, [0.5, 2.5, 4.5]), (9, [0.5, 1.5, 2.5, 3.5, 4.5])])
def test_bins_average_and_cover_all_steps(bins, edges):
    values, found = binned(np.array([[1.0], [3.0], [5.0], [7.0]]), np.array([1, 2, 3, 4]), bins)
    assert found.tolist() == edges
    assert values[0, 0] == (2.0 if bins == 2 else 1.0)
