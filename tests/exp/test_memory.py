"""What cannot fit into memory is refused in one line before it starts; what fits is not."""
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import DRAFT, command, save, train
from helpers import PATCH, tiny_draft, tiny_series, tiny_target, write_series

from exp import memory
from exp.memory import Shape, available, decoding_bytes, refuse_unfitting, training_bytes
from exp.predict import Forecaster
from exp.speculation import SpecSettings
from models import timesfm
from models.config import ModelConfig
from utils.errors import UserError

CPU = torch.device("cpu")
SHAPE = Shape(windows=8, variables=3, context=5 * PATCH, horizon=10 * PATCH)


@pytest.fixture
def little(monkeypatch):
    """2 MiB of memory."""
    monkeypatch.setattr(memory, "available", lambda device: 2 * 2**20)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_that_is_there_is_what_the_system_says():
    told = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    assert 2**20 < available(CPU) <= 1024 * int(told[1]) * 4  # swap included


def test_the_limit_of_a_container_counts_and_no_limit_does_not(tmp_path, monkeypatch):
    for name, text in (("limited", "12345\n"), ("unlimited", "max\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", (f"{tmp_path}/unlimited", f"{tmp_path}/nowhere"))
    assert available(CPU) > 12345
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", (f"{tmp_path}/unlimited", f"{tmp_path}/limited"))
    assert available(CPU) == 12345


def test_what_is_not_known_refuses_nothing(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: None)
    refuse_unfitting(lambda shape: 1e30, SHAPE, CPU, "everything")


def test_settings_are_named_that_help_alone(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 100 * 2**20)
    with pytest.raises(UserError) as caught:
        refuse_unfitting(lambda shape: 50.5 * 2**20 * shape.windows, SHAPE, CPU, "a batch")
    assert str(caught.value) == ("a batch takes about 404.0 MiB of memory, but 100.0 MiB is available: lower "
                                 "`batch_size`")
    refuse_unfitting(lambda shape: 12.5 * 2**20 * shape.windows, SHAPE, CPU, "a batch")  # just fits


@pytest.mark.parametrize("changes", [{"norm_mode": "causal", "norm_window": 5}, {}])
def test_keys_values_and_the_forecast_are_counted(changes):
    model = tiny_target(**changes)
    draft = tiny_draft(model)
    kept = 2 * 2 * 16 if changes else 0  # keys and values of two layers
    patches = 8 * 3 * 10**6
    long = replace(SHAPE, horizon=10**6 * PATCH)
    alone = 4 * patches * (PATCH + kept + 2 * PATCH)
    assert alone <= decoding_bytes(long, model) < 1.1 * alone + 2**30 / 4
    assert decoding_bytes(long, model, draft) > 1.5 * alone
    assert decoding_bytes(replace(SHAPE, samples=200), model) > 100 * (decoding_bytes(replace(SHAPE), model) - 2**18)


def test_half_weights_keep_half_the_keys_and_values():
    target = tiny_target(norm_mode="causal", norm_window=5)
    shape = replace(SHAPE, samples=100)
    whole = decoding_bytes(shape, target)
    target.dtype = torch.bfloat16  # as `halve` leaves it on a GPU
    tokens = 8 * 100 * (5 + 10) * 3
    kept = 2 * target.config.e_layers * target.config.d_model * tokens
    assert whole - 2 * kept >= decoding_bytes(shape, target) > whole / 2


def test_training_counts_the_square_of_the_tokens():
    config = tiny_target().config
    wide = training_bytes(replace(SHAPE, variables=3000), config, CPU)
    assert wide > 4 * 2 * 2 * 8 * (5 * 3000)**2  # float32, two layers, two heads, eight windows


def frame(columns=2):
    return pd.DataFrame(np.random.default_rng(0).normal(size=(70, columns)), columns=[f"v{i}" for i in range(columns)])


@pytest.mark.parametrize("causal", [False, True])
def test_an_absurd_horizon_is_refused_before_anything_of_its_size_is_made(place, causal):
    save("checkpoints/t", tiny_target(**({"norm_mode": "causal", "norm_window": 5} if causal else {})),
         seq_len=5 * PATCH)
    forecaster = Forecaster.load("checkpoints/t")
    with pytest.raises(UserError, match=r"2 series, 1000000000000 steps ahead, takes about .* TiB .* lower `horizon`$"):
        forecaster.predict(frame(), 10**12)
    assert len(forecaster.predict(frame(), 100)) == 200


def test_paths_of_a_forecast_are_counted_with_a_sampler_of_its_own(place, little):
    save("checkpoints/t", tiny_target(norm_mode="causal", norm_window=5), seq_len=5 * PATCH)
    forecaster = Forecaster.load("checkpoints/t", spec=SpecSettings(sigma=0.3), num_samples=10000)
    with pytest.raises(UserError, match="lower `num_samples`"):
        forecaster.predict(frame(), 20)


@pytest.mark.parametrize("flags, there, words", [
    ("", 2**18, "97 windows of 3 variables, 24 steps ahead"),
    ("--num_samples 2000", 2**23, "2000 paths each, 24 steps ahead"),
    ("--compare --spec_draft_ckpt DRAFT", 2**18, "97 windows of 3 variables, 24 steps ahead"),
])
def test_a_test_that_cannot_fit_is_refused(lab, place, monkeypatch, capsys, flags, there, words):
    monkeypatch.setattr(memory, "available", lambda device: there)
    flags = flags.replace("DRAFT", f"{lab}/checkpoints/{DRAFT}/checkpoint.pth")
    assert command(lab, f"--test_pred_len 24 --batch_size 10000 {flags}") == 2
    error = capsys.readouterr().err
    assert words in error and "of memory" in error and "lower --" in error and error.count("\n") == 1
    assert not list(Path(".").glob("test_results/*/*.json"))


def test_a_training_that_cannot_fit_is_refused(place, monkeypatch, capsys):
    write_series(tiny_series())
    monkeypatch.setattr(memory, "available", lambda device: 2**18)
    assert train("--batch_size", 100000) == 2
    error = capsys.readouterr().err
    assert "training on a batch of" in error and "lower --batch_size" in error and error.count("\n") == 1
    assert not Path("checkpoints").exists()


def test_a_model_of_short_tokens_keeps_and_reads_more_of_them():
    """Of a patch of 16 steps 4 tokens each: they are what its cache holds and a pass encodes."""
    config = timesfm.PUBLIC | {"d_model": 16, "n_heads": 2, "d_ff": 24, "e_layers": 2}
    model = timesfm.Model(ModelConfig.from_mapping(config | {"input_token_len": 4, "output_token_len": 16}), 4)
    shape = Shape(windows=2, variables=3, context=36, horizon=64)
    numbers = 4 + 2 * 2 * 16  # of a token: its steps, and a key and a value in both layers
    assert memory._state_bytes(model, 2, shape, 4) == 4 * 2 * 3 * (9 + 4 * 4) * numbers
    assert memory._pass_bytes(model, shape, 3) == memory._pass_bytes(model, replace(shape, context=36 + 3 * 16), 0)
