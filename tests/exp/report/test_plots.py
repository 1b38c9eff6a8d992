"""Pictures show what users write into their files, whatever it is."""
import numpy as np
import pytest

from exp.report import plots
from exp.report.plots import forecast_figure


@pytest.mark.parametrize("name", ["US$", "$a_{", "price $ and $ cost", "a\\$b$"])
def test_a_name_with_dollar_signs_is_drawn(tmp_path, name):
    values = np.zeros((24, 1))
    forecast_figure(tmp_path / "f.png", values, values, values, [name], patch_len=12, label="forecast")
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_the_gap_of_every_patch_stands_below_the_forecast(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.append(figure))
    values = np.arange(30.0)[:, None]
    forecast_figure(tmp_path / "f.png", values, values, values, ["a"], patch_len=12, label="speculative (parareal)",
                    gap=np.array([0.0, 0.0312]))
    axis = kept[0].axes[0]
    (text,) = axis.texts
    assert text.get_text() == "0.031" and text.get_position()[0] == 18  # in the middle of the second patch
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axis.patches]
    assert spans == [(0, 12), (12, 24)]  # the third patch is cut to 6 steps, and never proposed
    labels = [entry.get_text() for entry in kept[0].legends[0].get_texts()]
    assert {"the target's own patch", "gap left, in standard deviations of the window"} <= set(labels)


def test_every_row_of_a_comparison_looks_different(tmp_path, monkeypatch):
    """Of as many as there can be: two models, seasonal-naive, and a rule and its means each."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    rows = [{"method": f"method {i}", "mse": 0.1 * i, "target_passes": 1.0, "rms_from_target": 0.0}
            | {f"ms_batch_{batch}{part}": 1.0 + i for batch in "1n" for part in ("", "_p10", "_p90")} for i in range(9)]
    plots.compare_figure(tmp_path / "compare.png", rows, 64, "title")
    for axis in figures[0].axes[:2]:
        looks = {(tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in axis.collections
                 if len(dots.get_offsets()) and hasattr(dots, "get_sizes") and len(dots.get_paths()) == 1
                 and dots.get_label().startswith("method")}
        assert len(looks) == 9 == len({colour for colour, _ in looks})
