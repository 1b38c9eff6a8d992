"""What the tests share: tiny models, tiny series, and a command line over them."""
import csv
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models import timer, timer_xl, timer_xl_draft
from models.checkpoint import save_checkpoint
from models.config import ModelConfig
from models.longer_heads import LongerHeads
from utils.speculative_decoder import decode_alone

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path(os.environ.get("REFERENCE_ROOT", ROOT.parent / "shared" / "reference"))
PATCH = 8
TINY = ModelConfig(input_token_len=PATCH, d_model=16, n_heads=2, d_ff=32, e_layers=2, use_norm=True)


def tiny_target(seed: int = 0, **changes):
    torch.manual_seed(seed)
    return timer_xl.Model(ModelConfig(**TINY.as_dict() | changes)).eval()


def tiny_draft(target, stochastic: bool = True, distance: float = 0.03, seed: int = 1, patches: int = 1):
    """The target's own weights, disturbed: near enough to be accepted now and then, far enough to be rejected.

    Heads that speak of several patches say of each what the target says of the next.
    """
    config = ModelConfig(**target.config.as_dict() | {"draft_stochastic": stochastic, "draft_patches": patches})
    torch.manual_seed(seed)
    draft = timer_xl_draft.Model(config).eval()
    state = {key.replace("head.", "head_mean."): torch.cat([value] * patches) if key.startswith("head.") else value
             for key, value in target.state_dict().items()}
    draft.load_state_dict(state, strict=False)
    with torch.no_grad():
        for name, weight in draft.named_parameters():
            if "logvar" not in name:
                weight += distance * torch.randn_like(weight)
    return draft


def tiny_timer(norm_roll: str = "patch", seed: int = 0, distance: float = 0.0, **changes):
    """With biases that are not zero; norm_roll 'none': without normalisation; distance: of weights, for a draft."""
    torch.manual_seed(seed)
    config = TINY.as_dict() | {"activation": "silu", "use_norm": norm_roll != "none"}
    model = timer.Model(ModelConfig(**config | changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
        for weight in model.parameters():
            weight += distance * torch.randn_like(weight)
    if norm_roll != "none":
        model.roll_by(norm_roll)
    return model


def public_folder(path, model, suffix=".safetensors", **changes):
    """A Timer as the hub has it: config.json and model.safetensors (or weights.pth); changes: of config.json."""
    config, path = model.config, Path(path)
    said = {"model_type": "timer", "architectures": ["TimerForPrediction"], "hidden_size": config.d_model,
            "num_attention_heads": config.n_heads, "intermediate_size": config.d_ff, "rope_theta": 10000,
            "num_hidden_layers": config.e_layers, "input_token_len": config.input_token_len, "hidden_act": "silu",
            "output_token_lens": [config.input_token_len], "max_position_embeddings": 10000}
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(said | changes))
    if suffix == ".safetensors":
        from safetensors.torch import save_file
        save_file(model.state_dict(), path / "model.safetensors")
    else:
        torch.save(model.state_dict(), path / f"weights{suffix}")
    return path


def public_outputs(name: str):
    """Inputs and outputs of a public model on random weights; the test is skipped where they are missing."""
    path = REFERENCE / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no parity vectors in {REFERENCE}: set REFERENCE_ROOT (the slow reference is tested without them)")
    return np.load(path, allow_pickle=False)


def with_heads(target, count: int = 3):
    """The target with longer heads, fitted to its own forecasts of windows like those of the fixture `series`."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(64, 5 * target.patch_len, 3, generator=generator)
    context = torch.sin(0.6 * torch.arange(noise.shape[1])[:, None] + 6 * noise[:, :1]) + 0.7 * noise
    longer = LongerHeads(target.config.d_model, target.patch_len, count)
    later = target.to_patches(decode_alone(target, context, (1 + count) * target.patch_len)[:, target.patch_len:])
    with torch.no_grad():
        hidden, stats, _ = target.encode(target.to_patches(context), 1)
        inputs = torch.cat([hidden, torch.ones_like(hidden[..., :1])], dim=-1).flatten(0, 2)
        labels = stats.normalise(later).permute(0, 3, 1, 2).flatten(2).flatten(0, 1)
        found = torch.linalg.lstsq(inputs, labels).solution
        longer.heads.weight.copy_(found[:-1].T)
        longer.heads.bias.copy_(found[-1])
    return target.with_heads(longer.eval())


def any_order_of_calls(model, context, patches, seed, check, calls=16, room=12):
    """Rolls a state back, selects, fans out and extends it at random; returns how often it was extended.

    patches: (rows, steps, variables, seed) -> [rows, steps, variables]. check: (row, its predictions [k + 1, P, C],
    those of its longer heads or None, the series [T, C] behind each of the k + 1).
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))
    P, (_, length, C), extended = model.patch_len, context.shape, 0
    state, histories = model.start(context, room), list(context)
    for _ in range(calls):
        lengths, action = [(len(history) - length) // P for history in histories], pick(0, 5)
        if action == 0:
            kept = [pick(0, each) for each in lengths]
            state.rollback(torch.tensor(kept))
            histories = [history[:length + k * P] for history, k in zip(histories, kept)]
        elif action == 1:
            kept = pick(0, min(lengths))
            state.rollback(kept)
            histories = [history[:length + kept * P] for history in histories]
        elif action == 2 and len(histories) > 1:
            rows = torch.randperm(len(histories), generator=generator)[:-1]
            state.select(rows)
            histories = [histories[row] for row in rows]
        elif action == 3 and len(histories) < 4:
            model.fan_out(state, 2)
            histories = [history for history in histories for _ in range(2)]
        elif max(lengths) <= room - 3:
            k = pick(0, 3)
            new = patches(len(histories), max(1, k) * P, C, seed=pick(0, 99))
            made = model.extend(state, new.unflatten(1, (-1, P)) if k else None)
            for row, history in enumerate(histories):
                grown = [torch.cat([history, new[row, :j * P]]) for j in range(k + 1)]
                check(row, made.mean[row], None if made.ahead is None else made.ahead[row], grown)
                histories[row] = grown[-1]
            extended += 1
    return extended


def tiny_series(rows: int = 600):
    """Three seasonal variables [rows, 3]; the first rows do not depend on how many there are."""
    t = np.arange(rows)[:, None]
    waves = np.sin(2 * np.pi * t / np.array([24, 24, 36]) + np.array([0, 1, 2]))
    return waves + 0.3 * np.random.default_rng(0).normal(size=(rows, 3))


def write_series(values, path="tiny.csv"):
    """A csv with hourly dates; its name is not ETT's, so the split is 70/10/20."""
    frame = pd.DataFrame(values.round(5), columns=["a", "b", "c"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=len(values), freq="h"))
    frame.to_csv(path, index=False)


# run.py over what `write_rows` and `save_small` write
SMALL = ("--quiet --root_path . --data_path good.csv --seq_len 48 --input_token_len 12 --test_pred_len 36 "
         "--d_model 16 --n_heads 2 --d_ff 32 --train_epochs 1")


def write_rows(name, rows, edit=None, header="date,HUFL,OT"):
    """A csv of noise, whose dates are no times; edit: row -> the line in its place."""
    values = np.random.default_rng(0).normal(size=(rows, 2)).round(4)
    lines = [f"2020-01-01 {i:05d},{a},{b}" for i, (a, b) in enumerate(values)]
    for row, text in (edit or {}).items():
        lines[row] = text
    Path(name).write_text("\n".join([header, *lines]) + "\n")


def save_small(folder, name="timer_xl", **changes):
    """An untrained model of the size that SMALL asks for, with its args.json."""
    config = ModelConfig(**({"input_token_len": 12, "d_model": 16, "n_heads": 2, "d_ff": 32, "e_layers": 1,
                             "use_norm": False} | changes))
    model = (timer_xl if name == "timer_xl" else timer_xl_draft).Model(config)
    save_checkpoint(Path(folder), model.state_dict(), config.as_dict() | {"model": name})


def save_pair(**draft_changes):
    """given/target and given/draft, see `save_small`."""
    save_small("given/target")
    save_small("given/draft", "timer_xl_draft", draft_stochastic=True, **draft_changes)


def rows_of(path, without=()):
    """The rows of a table with comment lines, but for some columns."""
    with open(path, newline="", encoding="utf-8") as handle:
        lines = [line for line in handle if not line.startswith("#")]
    return [{name: value for name, value in row.items() if name not in without} for row in csv.DictReader(lines)]


def untimed(path):
    return rows_of(path, without=("ms_per_forecast",))
