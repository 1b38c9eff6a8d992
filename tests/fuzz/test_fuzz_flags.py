"""Command lines: settings or one line; whole runs: exit code 0, or 2 with one line and nothing written."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fuzz.damage import damaged
from fuzz.endings import program_ends_well, share
from helpers import save_pair
from hypothesis import given
from hypothesis import strategies as st

import run
from exp.flags import FLAGS, flat
from exp.options import read_command_line
from exp.program import exit_code
from scripts.sweeps import param_sweep
from utils.limits import OneOf, OrNone, Switch

DRAFT = "--spec_draft_ckpt given/draft"
TEST = "--is_training 0 --checkpoints given --test_dir target"
PREDICT = "--do_predict --checkpoints given --test_dir target"
MODES = [TEST, f"{TEST} --use_speculative {DRAFT}", f"{TEST} --compare {DRAFT}", PREDICT, f"{PREDICT} {DRAFT}"]
TRAINING = ["", "--model timer_xl_draft --distill --distill_target_ckpt given/target",
            "--adaptation --pretrain_model_path given/target", "--use_norm --norm_mode causal"]
SMALL = ("--quiet --root_path . --data_path times.csv --seq_len 24 --input_token_len 12 --test_pred_len 12 "
         "--d_model 16 --n_heads 2 --d_ff 32 --train_epochs 1")
NUMBERS = ["0", "-1", "1", "2", "3", "12", "24", "36", "48", "0.5", "0.25", "1e-9", "0.999"]
EDGES = ["1e6", "1000001", "2147483648", "99999999999999999999", "nan", "inf", "-inf", "1e400", "x", "", " 3", "+3",
         "3 ", "1_0", "0x3", "١", "1,2", "None", "auto", "calibrated", "True", "--seed", "-0", "1e5"]
PLACES = ["given/target", "given/target/checkpoint.pth", "given/draft/checkpoint.pth", "nowhere", "times.csv", ".",
          "..", "/dev/null", "", " ", "a/../b", "~", "target", "draft", "x" * 300, "$HOME", "`seed`", "ä", "args.json",
          "*.csv"]
SLOW = {"num_workers", "compile", "itr", "ddp", "train_epochs", "amp"}


def value_of(flag: str, numbers: list[str]):
    """What may be written after a flag: good and bad, for its own kind and for another."""
    limit = FLAGS[flag].field.metadata["limit"]
    inner = limit.limit if isinstance(limit, OrNone) else limit
    if isinstance(inner, Switch):
        return st.none()
    if isinstance(inner, OneOf):
        return st.sampled_from([*sorted(inner.names)] * 2 + ["nonsense"])
    if hasattr(inner, "low") or hasattr(inner, "word") or flag == "devices":
        return st.sampled_from(numbers)
    return st.sampled_from(PLACES) | st.text(st.characters(exclude_characters="\0"), max_size=5)


@st.composite
def some_flags(draw, names: list[str], numbers: list[str], most: int) -> list[str]:
    words = []
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=most)):
        value = draw(value_of(name, numbers))
        forms = [[f"--{name}"]] if value is None else [[f"--{name}", value], [f"--{name}={value}"]]
        words += draw(st.sampled_from(forms))
    return words


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pair, and a series with times."""
    folder = tmp_path_factory.mktemp("flags")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("RANK", raising=False)
        save_pair()
        values = np.sin(np.arange(200)[:, None] / [2, 3]).round(4)
        frame = pd.DataFrame(values, columns=["a", "b"])
        frame.insert(0, "date", pd.date_range("2024-01-01", periods=200, freq="h"))
        frame.to_csv("times.csv", index=False)
        yield folder


@share(20)
@given(st.sampled_from(MODES + TRAINING), some_flags(sorted(FLAGS), NUMBERS + EDGES, 3))
def test_any_flags_make_settings_or_one_line(place, mode, words):
    def read(argv):
        return exit_code(lambda: json.dumps(flat(read_command_line(argv)), allow_nan=False), "nothing", "nothing")
    program_ends_well(read, [*SMALL.split(), *mode.split(), *words], place)


@share(3)
@given(st.sampled_from(MODES), some_flags(sorted(set(FLAGS) - SLOW), NUMBERS, 2))
def test_any_flags_make_a_forecast_or_one_line(place, mode, words):
    program_ends_well(run.main, [*SMALL.split(), *mode.split(), *words], place)


@share(1.5)
@given(st.sampled_from(TRAINING), some_flags(sorted(set(FLAGS) - SLOW - {"checkpoints"}), NUMBERS, 2))
def test_any_flags_make_a_training_or_one_line(place, mode, words):
    program_ends_well(run.main, [*SMALL.split(), *mode.split(), *words], place)


SWEPT = {"rule": ["tolerance", "exact", "simplified,coupling", "x", ""], "emit": ["mean", "sample", "x"],
         "sigma": ["0.5", "0", "x", "1,,2"], "bias": ["1", "-1"], "tol": ["0.1", "0", "nan"],
         "k": ["1", "0", "1,all", "auto"], "grid": ["published", "gap", "x"], "horizon": ["24", "12", "0", "400"],
         "windows": ["1", "9999", "0"],
         "out": ["s.csv", "s.txt", "given", "times.csv"],
         "batch_size": ["1", "0", "64"], "seq_len": ["24", "12", "13", "0"], "rolling": ["cache", "window", "x"],
         "spec_temp": ["1", "0"], "spec_sigma_mode": ["calibrated", "adaptive", "fixed"], "threads": ["1", "0"],
         "data_path": ["times.csv", "x.csv", "given"], "target": ["given/target/checkpoint.pth", "given", "x"],
         "draft": ["given/draft/checkpoint.pth", "given/target/checkpoint.pth", "x"]}


@share(2)
@given(st.dictionaries(st.sampled_from(sorted(SWEPT)), st.integers(0, 4), min_size=1, max_size=3))
def test_any_flags_make_a_sweep_or_one_line(place, chosen):
    usual = {"target": "given/target/checkpoint.pth", "draft": "given/draft/checkpoint.pth", "root_path": ".",
             "data_path": "times.csv", "seq_len": "24", "horizon": "24", "windows": "3", "out": "s.csv", "k": "1",
             "sigma": "0.5", "bias": "1", "threads": "1"}
    flags = usual | {name: SWEPT[name][at % len(SWEPT[name])] for name, at in chosen.items()}
    if flags.get("rule", "").startswith(("tolerance", "exact")):
        flags = {name: value for name, value in flags.items() if name not in {"sigma", "bias"} - set(chosen)}
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    try:
        program_ends_well(param_sweep.main, [*words, "--quiet"], place)
    finally:
        Path("s.csv").unlink(missing_ok=True)


@share(1.5)
@given(st.data())
def test_damaged_files_make_a_prediction_or_one_line(place, data):
    """The whole way of a damaged file through the program, not only its reader."""
    name = data.draw(st.sampled_from(["times.csv", "given/target/args.json", "given/draft/checkpoint.pth"]))
    before = Path(name).read_bytes()
    Path(name).write_bytes(data.draw(damaged(before, most=1)))
    try:
        program_ends_well(run.main, [*SMALL.split(), *MODES[4].split()], place)
    finally:
        Path(name).write_bytes(before)
