"""What takes the place of missing values: pandas, one series at a time, is the reference."""
import numpy as np
import pandas as pd
import pytest

from data_provider.panel_holes import fill, on_grid

NONE = np.nan


def random_series(seed=0, count=40):
    """Series with holes: values, positions and starts, and each as a pandas Series on its grid."""
    rng = np.random.default_rng(seed)
    values, position, starts, every = [], [], [0], []
    for _ in range(count):
        length = int(rng.integers(3, 30))
        own = rng.normal(size=length)
        own[rng.random(length) < 0.2] = NONE  # a cell without a value
        kept = np.concatenate([[True], rng.random(length - 2) < 0.7, [True]])  # a row that is not there
        values.append(own[kept])
        position.append(np.flatnonzero(kept))
        starts.append(starts[-1] + int(kept.sum()))
        grid = pd.Series(np.where(kept, own, NONE))
        every.append(grid.loc[grid.first_valid_index():] if grid.notna().any() else grid.iloc[:0])
    return np.concatenate(values), np.concatenate(position), np.array(starts), every


def seasonal(series, season):
    """A slow loop: the nearest known value whole seasons before, else after, else on a line."""
    filled, known = series.to_numpy().copy(), series.notna().to_numpy()
    for i in np.flatnonzero(~known):
        places = [*range(i - season, -1, -season), *range(i + season, len(filled), season)]
        filled[i] = next((series.iloc[place] for place in places if known[place]), NONE)
    return pd.Series(filled).interpolate().to_numpy()


REFERENCE = {"last": lambda series, _: series.ffill().to_numpy(),
             "interpolate": lambda series, _: series.interpolate().to_numpy(), "seasonal": seasonal}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", REFERENCE)
def test_holes_are_filled_as_each_series_by_itself(way, seed):
    values, position, starts, every = random_series(seed)
    on, begins, missing = on_grid(values, position, starts)
    seasons = np.arange(len(every)) % 5 + 1
    filled = fill(on, begins, way, seasons)
    for i, series in enumerate(every):
        own = slice(begins[i], begins[i + 1])
        np.testing.assert_allclose(on[own], series)
        np.testing.assert_allclose(filled[own], REFERENCE[way](series, seasons[i]), rtol=1e-12)
        last = position[starts[i + 1] - 1] + 1
        assert missing[i] == last - series.notna().sum()


def test_what_is_missing_before_the_first_value_is_cut_off_and_counted():
    on, begins, missing = on_grid(np.array([NONE, 1.0, NONE, 5.0]), np.array([0, 1, 2, 3]), np.array([0, 4]))
    assert list(on[~np.isnan(on)]) == [1.0, 5.0] and list(begins) == [0, 3] and list(missing) == [2]


def test_a_series_without_a_value_has_no_rows():
    on, begins, missing = on_grid(np.array([NONE, np.inf, 2.0]), np.array([0, 1, 0]), np.array([0, 2, 3]))
    assert list(begins) == [0, 0, 1] and list(on) == [2.0] and list(missing) == [2, 0]


def test_nothing_missing_is_nothing_changed():
    values = np.arange(5.0)
    assert fill(values, np.array([0, 5]), "last", np.array([1])) is values
