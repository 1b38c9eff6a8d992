"""Pictures of a forecast: as many as are wanted, under names that a file system takes."""
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from exp_helpers import assert_picture, save
from helpers import PATCH, tiny_target

import run

ROWS = 60


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """Forecasts series of these names; returns the pictures, in order."""
    monkeypatch.chdir(tmp_path)
    save("checkpoints/t", tiny_target(use_norm=False), seq_len=5 * PATCH, data_path="mine.csv")

    def predict(names, flags=""):
        values = np.random.default_rng(0).normal(size=(ROWS, len(names)))
        pd.DataFrame(values, columns=names).to_csv("mine.csv", index=False)
        command = "--quiet --do_predict --root_path . --data_path mine.csv --test_dir t --test_pred_len 8"
        assert run.main([*command.split(), *flags.split()]) == 0
        return sorted(tmp_path.glob("test_results/*/forecast_*.png"))
    return predict


@pytest.mark.parametrize("flags, drawn, words", [("", 12, "12 of 14 series (--pictures N for more)"),
                                                 ("--pictures 2", 2, "2 of 14 series (--pictures N for more)"),
                                                 ("--pictures 14", 14, "14 of 14 series: "),
                                                 ("--pictures 0", 0, "0 of 14 series")])
def test_as_many_pictures_as_are_wanted_and_a_line_that_says_so(predicted, capsys, monkeypatch, flags, drawn, words):
    monkeypatch.setattr("exp.predict.files.prediction_figure", lambda path, *_: path.touch())
    assert len(predicted([f"v{i}" for i in range(14)], flags)) == drawn
    assert words in capsys.readouterr().out


def test_no_pictures_leaves_none_of_an_older_run(predicted):
    assert len(predicted(["a", "b"])) == 2
    assert predicted(["a", "b"], "--pictures 0") == []


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_any_length_and_letters(predicted, tmp_path):
    names = [40000 * "a", "温度", "---", 40000 * "a" + "b", "a" * 41]
    pictures = predicted(names)
    assert [path.name for path in pictures] == [
        f"forecast_000_{40 * 'a'}.png", "forecast_001.png", "forecast_002.png", f"forecast_003_{40 * 'a'}.png",
        f"forecast_004_{40 * 'a'}.png"]
    for path in pictures:
        assert_picture(path)
        assert max(matplotlib.image.imread(path).shape) < 2000  # the label of a long name is no part of the size
    (table,) = tmp_path.glob("test_results/*/forecast.csv")
    assert list(pd.read_csv(table).unique_id.unique()) == names
