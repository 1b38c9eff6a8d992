"""What the tests of `exp` share: command lines over a trained pair, trainings, and loops of their own to check by."""
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers import PATCH as TINY_PATCH
from helpers import tiny_draft, tiny_series, write_series

import run
from models.checkpoint import read_settings, read_state, save_checkpoint
from models.config import ModelConfig
from models.registry import MODELS
from models.timer_xl import Model
from models.timer_xl_draft import Model as DraftModel
from utils.errors import UserError

CONTEXT, PATCH, ROWS = 48, 12, 600
BASE = f"--quiet --data_path tiny.csv --seq_len {CONTEXT} --input_token_len {PATCH}"
SIZES = "--d_model 16 --n_heads 2 --d_ff 32 --use_norm --learning_rate 0.003 --train_epochs 1 --test_pred_len 12"
TARGET, DRAFT = "forecast_t_timer_xl_test_0", "forecast_d_timer_xl_draft_test_0"
CAUSAL_TARGET, CAUSAL_DRAFT = "forecast_tc_timer_xl_test_0", "forecast_dc_timer_xl_draft_test_0"
# between the smallest and the largest gap of the pair: some proposals pass, some do not
TOLERANCE = 0.5


def save(folder, model, **settings):
    """An untrained model as training would leave it."""
    name = next(name for name, kind in MODELS.items() if type(model) is kind)
    save_checkpoint(Path(folder), model.state_dict(), model.config.as_dict() | {"model": name} | settings)


def save_pair(config, data_path, **settings):
    """An untrained target and a draft with its weights, in the folders `target` and `draft` of checkpoints/."""
    torch.manual_seed(0)
    for name, model in (("target", Model(config)), ("draft", DraftModel(replace(config, draft_stochastic=True)))):
        save(Path("checkpoints") / name, model, data_path=data_path, **settings)


@contextmanager
def workplace_with_series(factory, name):
    """A folder of its own, with tiny.csv, as the current directory; factory: pytest's tmp_path_factory."""
    folder = factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_series(tiny_series())
        yield folder


# kinds of normalisation: changes of `tiny_target`
NORMALISED = {"plain": {"use_norm": False}, "norm": {}, "causal": {"norm_mode": "causal", "norm_window": 5}}


def keep(folder, model, **settings):
    """An untrained model with the context of five patches, as a training on another file would leave it."""
    save(folder, model, seq_len=5 * TINY_PATCH, data_path="other.csv", **settings)


def keep_pair(folder, target, **settings):
    """A target, and its draft in folder_draft."""
    keep(folder, target, **settings)
    keep(f"{folder}_draft", tiny_draft(target), **settings)


def assert_setting_refused(read, folder, name, value, wanted):
    """That `read(checkpoint)` refuses the value of a setting in args.json, in words of bearable length."""
    (folder / "args.json").write_text(json.dumps({"model": "timer_xl", name: value}))
    with pytest.raises(UserError, match=rf"args\.json: {name} is ") as caught:
        read(folder / "checkpoint.pth")
    assert wanted in str(caught.value) and len(str(caught.value)) < 300 + len(str(folder))


def count(notes, words):
    """How many of the notes (level, text) hold some words."""
    return sum(words in text for _, text in notes)


def load(lab, setting):
    """The model of a run, without the program's own loader."""
    path = lab / "checkpoints" / setting / "checkpoint.pth"
    settings = read_settings(path)
    model = MODELS[settings["model"]](ModelConfig.from_mapping(settings))
    model.load_state_dict(read_state(path))
    return model.eval()


def command(lab, flags, tested=TARGET):
    """Exit code of a test of one of the lab's checkpoints."""
    places = f"--is_training 0 --root_path {lab} --checkpoints {lab}/checkpoints --test_dir {tested}"
    return run.main(f"{BASE} {places} {flags}".split())


def speculate(lab, flags="", horizon=60, pair=(TARGET, DRAFT)):
    """metrics.json of a speculative test."""
    draft = f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{pair[1]}/checkpoint.pth"
    assert command(lab, f"--test_pred_len {horizon} {draft} {flags}", pair[0]) == 0
    return metrics()


def results():
    """The folder of results in the current directory that was written last."""
    return max(Path("test_results").iterdir(), key=lambda folder: (folder / "settings.json").stat().st_mtime_ns)


def metrics(folder=None):
    return json.loads(((results() if folder is None else Path("test_results") / folder) / "metrics.json").read_text())


def standardised(rows=ROWS):
    """[rows, 3] as a csv holds it, by mean and deviation of the first 70 %."""
    values = tiny_series(rows).round(5)
    train = values[:int(rows * 0.7)]
    return (values - train.mean(axis=0)) / train.std(axis=0)


def rolling_errors(model, horizon, context=CONTEXT, univariate=False, growing=False):
    """forecast - truth of every test window [windows, horizon, C], by a loop that knows nothing of the program's
    loaders, decoder and metrics: it re-encodes the last `context` steps (or, growing, all of them) for every patch."""
    values, test = standardised(), int(ROWS * 0.2)
    errors = []
    for column in ([[0], [1], [2]] if univariate else [[0, 1, 2]]):
        part = values[ROWS - test - context:, column]
        for start in range(len(part) - context - horizon + 1):
            series = part[start:start + context].astype(np.float32)
            while len(series) < context + horizon:
                with torch.no_grad():
                    out = model(torch.from_numpy(series[None, 0 if growing else -context:].copy()))
                out = out[0] if isinstance(out, tuple) else out
                series = np.concatenate([series, out[0, -PATCH:].numpy()])
            errors.append(series[context:context + horizon] - part[start + context:start + context + horizon])
    return np.stack(errors)


def assert_picture(path):
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 100
    assert pixels[..., :3].std() > 0.01  # not an empty page


# --- trainings in a folder of their own

TRAIN_ROWS = 602
STEPS = 12  # an epoch: 362 training windows in batches of 32
TRAIN_SIZES = dict(d_model=16, n_heads=2, d_ff=32, e_layers=1)
TRAIN = (f"--quiet --root_path . --data_path tiny.csv --seq_len {CONTEXT} --input_token_len {PATCH} --test_pred_len 36 "
         "--d_model 16 --n_heads 2 --d_ff 32 --use_norm --learning_rate 0.003 --batch_size 32").split()
SETTING = "forecast_test_timer_xl_test_0"
DISTIL = ("--model timer_xl_draft --draft_stochastic --distill --distill_target_ckpt target/checkpoint.pth "
          "--draft_teacher_noise 0.2 --draft_teacher_dropout 0.3 --draft_nll_var_reg 0.01 "
          "--draft_scale_d_ff 0.5")


def train(*flags, base=TRAIN):
    return run.main([*base, *map(str, flags)])


def weights(folder="checkpoints", setting=SETTING, name="checkpoint.pth"):
    content = torch.load(Path(folder) / setting / name, weights_only=True)
    return content["model"] if name == "resume.pth" else content


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


def clone(state):
    return {key: value.clone() for key, value in state.items()}


def untrained_target(folder="target", seed=7):
    torch.manual_seed(seed)
    model = Model(ModelConfig(input_token_len=PATCH, dropout=0.1, use_norm=True, **TRAIN_SIZES))
    save(folder, model)
    return model


def stop_at(monkeypatch, step, failure):
    """Raises `failure` instead of doing step number `step` (from 0) of the next training."""
    done, real = [], torch.optim.Adam.step

    def broken(self, *args, **kwargs):
        if len(done) == step:
            raise failure
        done.append(1)
        return real(self, *args, **kwargs)
    monkeypatch.setattr(torch.optim.Adam, "step", broken)
