"""Pictures of windows say which series and which window of it they show."""
import numpy as np
import pytest
import torch

from data_provider.data_loader import MultivariateDatasetBenchmark, UnivariateDatasetBenchmark
from data_provider.files import data_files
from data_provider.splits import Cut
from exp.evaluate import pictures
from exp.evaluate.methods import AloneMethod
from exp.settings import Settings
from utils.decoded import Decoded


class Zeros(AloneMethod):
    def __init__(self):
        pass

    def decode(self, context, observer=None):
        return Decoded(torch.zeros(len(context), 8, context.shape[2]))


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    for name, rows, width in (("a.npy", 200, 2), ("b.npy", 300, 1)):
        (tmp_path / "sub").mkdir(exist_ok=True)
        np.save(tmp_path / "sub" / name, np.random.default_rng(0).normal(size=(rows, width)))
    seen = []
    monkeypatch.setattr(pictures, "forecast_figure", lambda path, x, y, forecast, names, *rest, title, **more:
                        seen.append((path.name, names, title)))

    def draw(kind, data_path, split="test"):
        dataset = kind(data_files(str(tmp_path), data_path), Cut(split, 16, 8, 8, rolled=True))
        settings = Settings().with_("run", quiet=True).with_("data", horizon=8).with_("report", pictures=3)
        seen.clear()
        pictures.draw_forecasts(tmp_path, Zeros(), Zeros(), dataset, settings, torch.device("cpu"))
        return seen
    return draw


def test_a_window_of_a_pool_is_named_after_its_series(drawn):
    windows = 33, 33, 53  # of 40 rows, and of 60
    assert drawn(UnivariateDatasetBenchmark, "sub") == [
        ("forecast_00000.png", ["var0"], "test window 0 of sub/a.npy: var0, horizon 8"),
        ("forecast_00059.png", ["var1"], "test window 26 of sub/a.npy: var1, horizon 8"),
        ("forecast_00118.png", ["var0"], f"test window {118 - 66} of sub/b.npy: var0, horizon 8")]
    assert sum(windows) - 1 == 118
    assert drawn(UnivariateDatasetBenchmark, "sub", "val")[0][2].startswith("validation window 0 of sub/a.npy: var0")


def test_a_window_of_one_file_keeps_its_number(drawn):
    assert drawn(MultivariateDatasetBenchmark, "sub/a.npy")[2] == (
        "forecast_00032.png", ["var0", "var1"], "test window 32, horizon 8")
