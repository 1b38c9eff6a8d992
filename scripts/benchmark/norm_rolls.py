"""How far the three ways to roll a Timer are apart (`--norm_roll`), and which of them forecasts best: csv and picture.

    bash scripts/benchmark/norm_rolls.sh [--out FILE.png] [FLAGS of run.py]
    bash scripts/benchmark/norm_rolls.sh --test_dir timer-base-84m --test_seq_len 2880     # the public model

Without --test_dir a small Timer (2 x d128) is trained on ETTh1 where it is missing: a minute or two. It learns
the next patch in windows that are normalised as a whole, as `--model timer` is always trained here; another training
may prefer another way. The first patch is the same in all of them.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.program import exit_code

if TYPE_CHECKING:  # importing torch takes seconds, during which Ctrl-C must work too
    import torch

COLUMNS = ["way", "patch", "mse", "mae", "rms_from_patch_roll"]
SMALL = {"model": "timer", "data": "UnivariateDatasetBenchmark", "data_path": "ETT-small/ETTh1.csv", "seq_len": 672}
TRAINED = {"model_id": "norm_rolls", "des": "small", "d_model": 128, "n_heads": 4, "d_ff": 256, "e_layers": 2,
           "train_epochs": 1, "batch_size": 256, "learning_rate": 1e-3, "val_windows": 200, "test_pred_len": 96,
           "test_windows": 20, "quiet": True}
TESTED = {"is_training": 0, "test_pred_len": 720, "test_windows": 100, "batch_size": 100}


def main(argv=None) -> int:
    return exit_code(lambda: run(argv), "--batch_size", "no table was written")


def run(argv: list[str] | None) -> None:
    from exp.flags import Parser, given_flags
    from utils.errors import UserError
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmark/norm_rolls.png"),
                        help="the table goes next to it as .csv (default: %(default)s)")
    own, flags = parser.parse_known_args(argv)
    given = given_flags(flags, parser)
    for name in sorted(given):
        if name in ("norm_roll", "rolling", "is_training", "do_predict", "compare", "num_samples") \
                or name.startswith(("spec_", "use_spec")):
            raise UserError(f"--{name} has no effect here, where a Timer alone is rolled in all ways: leave it out")
    if own.out.suffix != ".png":
        raise UserError(f"--out {own.out} must end in .png")
    from exp.exp_basic import Exp_Basic
    from exp.options import settled
    from exp.report.results import format_table, write_csv
    if "test_dir" not in given:
        given |= {"test_dir": trained(given)}
    experiment = Exp_Basic(settled(SMALL | TESTED | given))
    rows, shown = measure(experiment)
    write_csv(own.out.with_suffix(".csv"), rows, COLUMNS)
    draw(own.out, rows, shown)
    print(format_table([row for row in rows if row["patch"] == "all"], {key: key for key in COLUMNS}))
    print(f"table: {own.out.with_suffix('.csv')}\npicture: {own.out}")


def trained(given: dict[str, Any]) -> str:
    """Name of the folder of the small Timer, which is trained if it is not there."""
    from exp.exp_forecast import Exp_Forecast
    from exp.options import settled
    from exp.stored import setting_name
    kept = {name: given[name] for name in ("root_path", "checkpoints") if name in given}
    settings = settled(SMALL | TRAINED | kept)
    folder = setting_name(settings.run, "timer")
    if not (Path(settings.run.checkpoints) / folder / "checkpoint.pth").is_file():
        Exp_Forecast(settings).run()
    return folder


def measure(experiment) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Rows by way and patch, and of one window its history, truth and forecasts [steps]."""
    import torch

    from models.timer import NORM_ROLLS
    from utils.speculative_decoder import decode_alone
    model, horizon = experiment.load_tested(experiment.tested_checkpoint()), experiment.settings.data.horizon
    n = -(-horizon // model.patch_len)
    made: dict[str, list[torch.Tensor]] = {way: [] for way in NORM_ROLLS}
    contexts, truths, units = [], [], []
    for x, y in experiment.test_part()[1]:
        contexts.append(x)
        truths.append(y[:, -horizon:])
        x = x.to(experiment.device)
        units.append(model.start(x, 1).unit[:, 0].cpu())
        for way in NORM_ROLLS:
            model.roll_by(way)
            made[way].append(decode_alone(model, x, horizon).cpu())
    truth, unit = torch.cat(truths), torch.cat(units)
    forecasts = {way: torch.cat(parts) for way, parts in made.items()}
    rows = []
    for way, forecast in forecasts.items():
        apart = ((forecast - forecasts["patch"]) / unit).square()
        for patch in ["all", *range(1, n + 1)]:
            part = slice(None) if patch == "all" else slice((patch - 1) * model.patch_len, patch * model.patch_len)
            error = (forecast - truth)[:, part]
            rows.append({"way": way, "patch": patch, "mse": f"{error.square().mean():.4f}",
                         "mae": f"{error.abs().mean():.4f}",
                         "rms_from_patch_roll": f"{apart[:, part].mean().sqrt():.4f}"})
    typical = ((forecasts["window"] - forecasts["patch"]) / unit).square().mean(dim=(1, 2)).argsort()[len(truth) // 2]
    shown = {"history": torch.cat(contexts)[typical, -horizon // 2:, 0], "truth": truth[typical, :, 0]}
    return rows, shown | {way: forecast[typical, :, 0] for way, forecast in forecasts.items()}


def draw(path: Path, rows: list[dict[str, Any]], shown: dict[str, torch.Tensor]) -> None:
    from exp.report.plots import BLACK, BLUE, GREEN, RED, save_figure, subplots
    figure, axes = subplots(1, 3, figsize=(16, 4), width_ratios=(2, 1, 1), layout="constrained")
    looks = {"window": (BLUE, "o", "-"), "frozen": (GREEN, "s", "--"), "patch": (RED, "^", "-")}
    history, truth = shown["history"], shown["truth"]
    axes[0].plot(range(-len(history), 0), history, color=BLACK, lw=0.9, label="history")
    axes[0].plot(truth, color=BLACK, lw=0.8, ls=(0, (1, 1)), label="truth")
    for way, (colour, marker, dashes) in looks.items():
        axes[0].plot(shown[way], color=colour, ls=dashes, lw=1.2, label=way)
        own = [row for row in rows if row["way"] == way and row["patch"] != "all"]
        leads = [row["patch"] for row in own]
        axes[1].plot(leads, [float(row["mse"]) for row in own], color=colour, marker=marker, ls=dashes, label=way)
        if way != "patch":
            axes[2].plot(leads, [float(row["rms_from_patch_roll"]) for row in own], color=colour, marker=marker,
                         ls=dashes, label=way)
    axes[0].set(title="the window whose forecasts differ by the median", xlabel="step", ylabel="standardised")
    axes[1].set(title="MSE", xlabel="patch of the forecast")
    axes[2].set(title="RMS from 'patch', in standard deviations\nof the context", xlabel="patch of the forecast")
    for axis in axes:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
