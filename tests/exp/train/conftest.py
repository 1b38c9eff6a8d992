"""A folder of its own for every training."""
import pytest
from exp_helpers import TRAIN_ROWS
from helpers import tiny_series, write_series


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current directory holds the tiny series; its name is not ETT's, so the split is 70/10/20."""
    monkeypatch.chdir(tmp_path)
    write_series(tiny_series(TRAIN_ROWS))
    return tmp_path
