"""How the bands of sampled paths hold at every lead, on validation windows and on test windows.

    bash scripts/benchmark/bands.sh --out docs/results/bands.csv

For the target of each pair (those of scripts/results.sh): paths that are all equally wide or not, as sampled and
widened with the lead, and which of these the program chooses on the validation part. Started again, it goes on where it
stopped.
"""
import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.program import exit_code

if TYPE_CHECKING:
    from exp.exp_basic import Exp_Basic
    from utils.target_law import TargetLaw

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "results" / "bands.csv"
BANDS = (50, 80, 95)
# default: 1 for what the program does unless told otherwise. patch: from 1 on, all of them, or all of the newer windows
COLUMNS = ["data", "horizon", "width", "growth", "default", "part", "patch", *(f"coverage_{band}" for band in BANDS),
           "factor", "crps", "windows"]
DATA, SEED = ("etth1", "etth2", "ettm1", "weather", "pool"), 2021
LAW = "--use_speculative --spec_accept_rule coupling --spec_sigma_mode calibrated --num_samples 40 --batch_size 64"


def work(argv: Sequence[str] | None) -> None:
    from exp.flags import Parser
    parser = Parser(prog="bands", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=TABLE, help="the table (default: docs/results/bands.csv)")
    parser.add_argument("--only", default=",".join(DATA), metavar="A,B,...", help="pairs (default: %(default)s)")
    parser.add_argument("--horizon", type=int, default=720, help="default: %(default)s")
    own = parser.parse_args(argv)
    from exp.ownership import locked_file
    from exp.report.results import write_csv
    from scripts.results.documents import BANDS_AT_EVERY_LEAD, GUIDE, write_block
    from scripts.results.measure import chosen
    from scripts.results.table import read_rows
    from utils.errors import UserError
    if own.out.suffix != ".csv":
        raise UserError(f"--out {own.out} must end in .csv")
    if own.horizon < 1:
        raise UserError(f"--horizon {own.horizon}: give a number of steps")
    entries = chosen(own.only)
    for entry in entries:
        if entry.name not in DATA:
            raise UserError(f"--only {entry.name}: there are bands of {', '.join(DATA)}")
    with locked_file(own.out, "wait for it, or give another --out"):
        rows: list[dict[str, Any]] = [dict(row) for row in read_rows(own.out, COLUMNS)]
        for entry in entries:
            if not any((row["data"], int(row["horizon"])) == (entry.name, own.horizon) for row in rows):
                rows += measure(entry.name, entry.settings, own.horizon)
                rows.sort(key=lambda row: (DATA.index(row["data"]), int(row["horizon"])))
                write_csv(own.out, rows, COLUMNS)
        if own.out.resolve() == TABLE:
            write_block(ROOT, GUIDE, BANDS_AT_EVERY_LEAD, table_lines(rows))
    print(f"table: {own.out}")


def measure(name: str, settings_file: str, horizon: int) -> list[dict[str, Any]]:
    """The rows of one target at one horizon; trains it if it is missing."""
    from exp.evaluate.bands import bands_of
    from exp.exp_basic import Exp_Basic, load_model
    from exp.laws import calibrated
    from scripts.results.measure import train
    from scripts.results.plans import plan_of_seed, settings_of
    from scripts.results.table import text_of
    from utils.calibration import GROWTHS, WIDTHS
    plan = plan_of_seed(settings_file, SEED)
    train(plan, name)
    print(f"== {name}, horizon {horizon}", flush=True)
    flags = [flag for flag in plan.compare if flag != "--compare"]
    experiment = Exp_Basic(settings_of([*flags, *LAW.split(), "--test_pred_len", str(horizon)]))
    model = load_model(experiment.settings, plan.target_file, experiment.settings.model.name, experiment.device)
    calibration, rows = calibrated(experiment, model, plan.target_file), []
    for width in WIDTHS:
        law = calibration.law_of(width)
        bands = bands_of(experiment, model, plan.target_file, law)
        assert bands is not None
        default = bands.chosen(None) if width == calibration.best else ""
        tested = on_test(experiment, model, law, bands.growth)
        for growth in GROWTHS:
            factors = bands.growth.tolist() if growth == "rollouts" else [1.0] * len(bands.growth)
            of = {"data": name, "horizon": horizon, "width": width, "growth": growth, "default": int(growth == default)}
            validation = bands.found[growth] | {"windows": bands.found["windows"]}
            for part, found in (("validation", validation), ("test", tested[growth])):
                rows += [of | {"part": part} | row for row in rows_of(found, factors)]
    return [{column: text_of(value) for column, value in row.items()} for row in rows]


def on_test(experiment: "Exp_Basic", model, law: "TargetLaw", growth) -> dict[str, dict[str, Any]]:
    """Coverage and CRPS by patch on test windows spread as those of the validation part are, for every growth."""
    from exp.evaluate.bands import sampled, scores_of, spread
    from utils.calibration import GROWTHS
    settings = experiment.settings
    dataset = experiment.dataset("test", settings.data.test_context, rolled=True)
    items = spread(dataset, settings.data.horizon)
    paths, truth = sampled(experiment, dataset, items, model, law)
    found = {}
    for name in GROWTHS:
        scores = scores_of(paths, truth, model.patch_len, growth if name == "rollouts" else None)
        found[name] = scores["by_patch"] | {"mean": scores, "windows": len(items)}
    return found


def rows_of(found: Mapping[str, Any], factors: Sequence[float]) -> list[dict[str, Any]]:
    """A row for every patch, and one for all of them where their mean is known."""
    rows = [{"patch": number, "factor": factor, "windows": found["windows"]}
            | {f"coverage_{band}": found[f"coverage_{band}_pct"][number - 1] for band in BANDS}
            | ({"crps": found["crps"][number - 1]} if "mean" in found else {})
            for number, factor in enumerate(factors, 1)]
    if "mean" in found:
        rows.append({"patch": "all", "windows": found["windows"], "crps": found["mean"]["crps"]}
                    | {f"coverage_{band}": found["mean"][f"coverage_{band}_pct"] for band in BANDS})
    else:
        rows.append({"patch": "newer", "windows": found["windows"], "crps": found["crps"]})
    return rows


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For every law: how far the bands are from their shares in the worst patch, what they hold in the last, CRPS."""
    from scripts.results.cells import markdown
    parts: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault(tuple(row[name] for name in ("data", "horizon", "width", "growth")), []).append(row)
    lines = []
    for (data, horizon, width, growth), some in parts.items():
        cells = [data if horizon == "720" else f"{data}, {horizon}", width,
                 growth + (" (default)" if some[0]["default"] == "1" else "")]
        for part in ("validation", "test"):
            patches = [row for row in some if row["part"] == part and row["patch"].isdecimal()]
            worst = [max(abs(float(row[f"coverage_{band}"]) - band) for row in patches) for band in BANDS]
            cells += [" / ".join(f"{value:.1f}" for value in worst),
                      " / ".join(f"{float(patches[-1][f'coverage_{band}']):.1f}" for band in BANDS)]
        score = {(row["part"], row["patch"]): row["crps"] for row in some}
        cells += [f"{float(score[key]):.4f}" for key in (("validation", "newer"), ("test", "all"))]
        lines.append(cells)
    return markdown(["data", "`--spec_width`", "`--spec_growth`", "validation: furthest from 50 / 80 / 95 %",
                     "in the last patch", "test: furthest", "in the last patch", "CRPS, newer half of validation",
                     "CRPS, test"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done; 2 bad input, or something failed (one line on stderr says what); 130 or 143 interrupted."""
    return exit_code(lambda: work(argv), "MOST_NUMBERS in exp/evaluate/bands.py",
                     "the pairs so far are kept; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
