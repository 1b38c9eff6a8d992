"""Pictures show what users write into their files, whatever it is."""
import numpy as np
import pytest

from exp.report.plots import forecast_figure


@pytest.mark.parametrize("name", ["US$", "$a_{", "price $ and $ cost", "a\\$b$"])
def test_a_name_with_dollar_signs_is_drawn(tmp_path, name):
    values = np.zeros((24, 1))
    forecast_figure(tmp_path / "f.png", values, values, values, [name], patch_len=12, label="forecast")
    assert (tmp_path / "f.png").stat().st_size > 1000
