"""OpenLTM's UTSD: every file of a folder, 90/5/5 % of its rows, each variable a series of its own."""
import numpy as np
import pandas as pd
import pytest
from exp_helpers import metrics
from sklearn.preprocessing import StandardScaler

import run
from data_provider.data_loader import UTSD
from data_provider.files import data_files
from data_provider.splits import Cut, TooShort, split_borders
from exp.options import read_command_line

CONTEXT, PATCH, HORIZON = 24, 8, 16
SHAPES = {"Energy/a.npy": (900, 3), "Energy/deep/b.npy": (1400, 1), "Health/c.npy": (1010, 2)}


@pytest.fixture
def utsd(tmp_path):
    """Folders of npy files [time, variables] by domain, among them one that is too short and one of another kind."""
    for number, (name, shape) in enumerate(SHAPES.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).normal(number, 2, size=shape)
        np.save(tmp_path / name, (np.sin(np.arange(shape[0]) / 4)[:, None] + noise).astype(np.float32))
    np.save(tmp_path / "Health" / "short.npy", np.arange(20.0)[:, None])
    pd.DataFrame({"v": np.arange(600.0)}).to_csv(tmp_path / "Health" / "other.csv", index=False)
    return tmp_path


def published(folder, split):
    """(x, y) of every window, by the loop that OpenLTM's data set makes: file, variable, time."""
    pairs = []
    for name in SHAPES:
        data = np.load(folder / name)
        train, test = int(len(data) * 0.9), int(len(data) * (1 - 0.9) / 2)
        validation = len(data) - train - test
        data = StandardScaler().fit(data[:train]).transform(data)
        first, end = {"train": (0, train), "val": (train - CONTEXT, train + validation),
                      "test": (len(data) - test - CONTEXT, len(data))}[split]
        data, ahead = data[first:end], HORIZON if split == "test" else PATCH
        for variable in range(data.shape[1]):
            for start in range(len(data) - CONTEXT - ahead + 1):
                from_step = start + (CONTEXT if split == "test" else PATCH)
                pairs.append((data[start:start + CONTEXT, variable], data[from_step:start + CONTEXT + ahead, variable]))
    return pairs


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_windows_are_those_of_openltm(utsd, split):
    dataset = UTSD(data_files(str(utsd), "**/*.npy"), Cut(split, CONTEXT, PATCH, HORIZON))
    expected = published(utsd, split)
    assert len(dataset) == len(expected) and dataset.n_series == 6
    x, y = dataset.__getitems__(list(range(len(dataset))))
    np.testing.assert_allclose(x[..., 0], np.stack([pair[0] for pair in expected]), atol=2e-5)
    np.testing.assert_allclose(y[..., 0], np.stack([pair[1] for pair in expected]), atol=2e-5)
    assert any("short.npy" in note for note in dataset.notes)


def test_parts_are_rounded_as_there():
    assert split_borders("ETTh1.csv", 1000, 0.9) == ([0, 900, 951], [900, 951, 1000])  # 0.05 of 1000 is 49.99... there


def test_a_file_that_is_too_short_says_how_long_it_must_be():
    with pytest.raises(TooShort, match=r"about (\d+) rows are needed") as caught:
        Cut("test", CONTEXT, PATCH, HORIZON, train_share=0.9).rows("x.npy", 100)
    enough = int(str(caught.value).partition("about ")[2].split()[0])
    for rows, works in ((enough, True), (enough - 1, False)):
        cuts = [Cut(split, CONTEXT, PATCH, HORIZON, train_share=0.9) for split in ("train", "val", "test")]
        try:
            assert [cut.rows("x.npy", rows) for cut in cuts] and works
        except TooShort:
            assert not works


FLAGS = f"--quiet --seq_len {CONTEXT} --input_token_len {PATCH} --output_token_len {PATCH} --test_pred_len {PATCH}"
SMALL = "--d_model 16 --n_heads 2 --d_ff 32 --use_norm --train_epochs 1 --subset_rand_ratio 0.1 --val_windows 9"


def test_the_whole_folder_is_meant_and_another_file_later(utsd, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    assert run.main(f"{FLAGS} {SMALL} --data Utsd_Npy --root_path {utsd} --model_id utsd".split()) == 0
    assert set(metrics()["files"]) == set(SHAPES)
    csv = utsd / "Health"
    later = f"{FLAGS} --is_training 0 --test_dir forecast_utsd_timer_xl_test_0 --root_path {csv} --data_path other.csv"
    settings = read_command_line(later.split())
    assert settings.data.kind == "UnivariateDatasetBenchmark" and settings.data.label == "other"
    assert len(settings.data.files) == 1


def test_csv_files_of_a_folder(utsd):
    settings = read_command_line(f"{FLAGS} {SMALL} --data Utsd --root_path {utsd}".split())
    assert [file.label for file in settings.data.files] == ["Health/other.csv"] and settings.data.univariate
