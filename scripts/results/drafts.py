"""Drafts of the pool's target that differ in a few flags: what each change is worth, on validation windows.

    bash scripts/distillation/pool_drafts.sh

Trains the target (settings `pool`) and every draft that is missing, compares each with the target, and writes
docs/results/pool_drafts.csv and the table made of it in docs/STOCHASTIC_DRAFT_SUCCESS.md. Started again, it continues.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.program import exit_code

if TYPE_CHECKING:
    from scripts.results.plans import Plan

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "results" / "pool_drafts.csv"
SETTINGS, SEED, HORIZONS, WINDOWS = "pool", 2021, (96, 720), 12  # windows per series, evenly spread over validation
COLUMNS = ["draft", "flags", "parameters", "horizon", "target_mse", "target_mae", "mse", "mae", "mae_above_pct",
           "rms_in_windows", "tolerance_mse", "tolerance_mae", "target_passes", "windows", "target_sha256"]


@dataclass(frozen=True)
class Variant:
    """name: of the draft's folder; title: what the table calls it; flags: of run.py, after those of the settings."""

    name: str
    title: str
    flags: str = ""

    @property
    def des(self) -> str:
        return f"variant_{self.name}"


def scaled(width: float, depth: float) -> str:
    sizes = dict.fromkeys(("d_model", "n_heads", "d_ff"), width) | {"e_layers": depth}
    return " ".join(f"--draft_scale_{size} {scale:g}" for size, scale in sizes.items())


QUARTER = scaled(0.25, 0.25)
ONE_PATCH = f"{QUARTER} --draft_patches 1"
VARIANTS = (
    Variant("published", "0.25x, one patch a pass, the target's predictions on real windows, as published",
            f"{ONE_PATCH} --draft_rollout 0 --draft_rollout_context 0 --draft_noise_unit series"),
    Variant("forecasts", "the target's forecasts in their place",
            f"{ONE_PATCH} --draft_rollout_context 0 --draft_noise_unit series"),
    Variant("both", "both", f"{ONE_PATCH} --draft_noise_unit series"),
    Variant("window_noise", "both, noise in units of each window", ONE_PATCH),
    Variant("quarter", "also seven patches a pass", QUARTER),
    Variant("longer", "that one, twice as many epochs", f"{QUARTER} --train_epochs 24 --tmax 24 --patience 24"),
    Variant("batch", "that one, twice as many windows a step", f"{QUARTER} --batch_size 896 --subset_rand_ratio 0.1"),
    Variant("wide", "that one, twice as wide", scaled(0.5, 0.25)),
    Variant("deep", "that one, four times as deep", scaled(0.25, 1)),
    Variant("half", "that one, twice as wide and twice as deep: the preset `pool`"),
)


def work(argv: Sequence[str] | None) -> None:
    from exp.flags import Parser
    parser = Parser(prog="drafts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    parser.add_argument("--only", metavar="A,B,...", help="drafts to train and compare: "
                        + ", ".join(variant.name for variant in VARIANTS))
    parser.add_argument("--table", action="store_true", help="measure nothing, only write the table again")
    own = parser.parse_args(argv)
    variants = chosen(own.only)
    from exp.ownership import locked_file
    with locked_file(TABLE, "wait for it, or stop it"):
        for variant in [] if own.table else variants:
            put(TABLE, COLUMNS, measured(variant), [(known.name,) for known in VARIANTS])
        write_table()
    print(f"table: {TABLE.relative_to(ROOT)}")


def chosen(only: str | None) -> list[Variant]:
    """Variants by name. Raises UserError for a name that there is not."""
    from utils.errors import UserError
    by_name = {variant.name: variant for variant in VARIANTS}
    names = list(by_name) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in by_name:
            raise UserError(f"--only {name}: there is no such draft: give some of {','.join(by_name)}")
    return [variant for variant in VARIANTS if variant.name in names]


def measured(variant: Variant) -> list[dict[str, Any]]:
    """Trains what is missing and compares; one row per horizon."""
    from scripts.results.measure import run_program
    from scripts.results.plans import plan_of_seed
    from utils.files import digest
    plan = plan_of_seed(SETTINGS, SEED)
    checkpoint = trained(plan, variant)
    rows = []
    for horizon in HORIZONS:
        print(f"== {variant.name}, horizon {horizon}: comparing", flush=True)
        said = run_program([*plan.compare, "--spec_draft_ckpt", str(checkpoint), "--des", variant.des, "--test_flag",
                            "V", "--test_windows", str(WINDOWS), "--test_pred_len", str(horizon)])
        metrics = json.loads((ROOT / Path(said["table"]).parent / "metrics.json").read_text(encoding="utf-8"))
        rows.append(row_of(variant, horizon, metrics) | {
            "parameters": json.loads((checkpoint.parent / "args.json").read_text(encoding="utf-8"))["parameters"],
            "target_sha256": digest(plan.target_file)[:12]})
    return rows


def trained(plan: Plan, variant: Variant) -> Path:
    """The checkpoint of a draft of the plan's target; trains what is missing."""
    from scripts.results.measure import run_program
    from scripts.results.plans import missing
    checkpoint, flags = plan.draft_file, variant.flags.split()
    if flags:
        own = plan.draft[plan.draft.index("--des") + 1]
        folder = checkpoint.parent.name.replace(f"_{own}_", f"_{variant.des}_")
        checkpoint, flags = checkpoint.parent.parent / folder / checkpoint.name, [*flags, "--des", variant.des]
    for training in (plan.target, [*plan.draft, *flags]):
        left = missing(training)
        if left is not None:
            print(f"== {variant.name}: training", flush=True)
            run_program(left)
    return checkpoint


def row_of(variant: Variant, horizon: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison at one horizon says of a draft."""
    target, draft, tolerance = (next(row for row in metrics["rows"] if name in row["method"])
                                for name in ("target alone", "draft alone", "tolerance"))
    return {"draft": variant.name, "flags": variant.flags, "horizon": horizon, "target_mse": target["mse"],
            "target_mae": target["mae"], "mse": draft["mse"], "mae": draft["mae"],
            "mae_above_pct": 100 * (draft["mae"] / target["mae"] - 1), "rms_in_windows": draft["rms_in_windows"],
            "tolerance_mse": tolerance["mse"], "tolerance_mae": tolerance["mae"],
            "target_passes": tolerance["target_passes"], "windows": draft["windows"]}


def put(path: Path, columns: list[str], rows: Sequence[Mapping[str, Any]], keys: Sequence[tuple[str, ...]]) -> None:
    """Puts the rows of a draft in the place of its former ones. keys: values of the first columns, in order."""
    from exp.report.results import write_csv
    from scripts.results.table import read_rows, text_of

    def key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(row[column] for column in columns[:len(keys[0])])
    kept = [row for row in read_rows(path, columns) if key(row) in keys and key(row) != key(rows[0])]
    new = [{column: text_of(value) for column, value in row.items()} for row in rows]
    write_csv(path, sorted([*kept, *new], key=lambda row: keys.index(key(row))), columns)


def write_table() -> None:
    """Writes the table of docs/STOCHASTIC_DRAFT_SUCCESS.md again."""
    from scripts.results.documents import POOL_DRAFTS, SUCCESS, write_block
    from scripts.results.table import read_rows
    write_block(ROOT, SUCCESS, POOL_DRAFTS, lines_of(read_rows(TABLE, COLUMNS)))


def lines_of(rows: Sequence[Mapping[str, str]]) -> list[str]:
    from scripts.results.cells import markdown
    if not rows:
        return ["Not measured yet: `bash scripts/distillation/pool_drafts.sh` fills this section."]
    at = {(row["draft"], int(row["horizon"])): row for row in rows}
    target = ", ".join(f"{float(row['target_mae']):.4f} at {row['horizon']}" for row in rows[:len(HORIZONS)])
    columns = ["draft", "parameters", *(f"MAE, {horizon}" for horizon in HORIZONS),
               f"RMS in windows, {HORIZONS[-1]}", "MAE with speculation", "target passes of 8"]
    return [f"The target's MAE on the same windows is {target}. In brackets: how much more a draft has.", "",
            *markdown(columns, [_cells(variant, [at[variant.name, horizon] for horizon in HORIZONS])
                                for variant in VARIANTS if (variant.name, HORIZONS[0]) in at])]


def _cells(variant: Variant, rows: Sequence[Mapping[str, str]]) -> list[str]:
    last = rows[-1]
    return [variant.title, f"{int(last['parameters']) / 1000:.0f} k",
            *(f"{float(row['mae']):.4f} ({float(row['mae_above_pct']):+.1f} %)" for row in rows),
            f"{float(last['rms_in_windows']):.3f}", f"{float(last['tolerance_mae']):.4f}",
            f"{float(last['target_passes']):.2f}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done; 2 bad input, or something failed (one line on stderr says what); 130 or 143 interrupted."""
    return exit_code(lambda: work(argv), "--batch_size of scripts/settings/pool.sh",
                     "the rows so far are kept; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
