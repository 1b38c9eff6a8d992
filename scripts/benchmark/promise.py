"""How often a promise is broken, and what it costs: many simulated audits of the same windows, on several pairs.

    bash scripts/benchmark/promise.sh --out docs/results/promise.csv

Trains the pairs that are missing (those of scripts/results.sh). Every setting that --spec_rms chooses from is measured
once on every window; then the choice is made again and again, each time from other audited windows. A promise is broken
where more windows than promised deviate by more than the budget. Started again, it goes on where it stopped.
"""
import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.program import exit_code

if TYPE_CHECKING:
    from exp.evaluate.ladders import Step

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "results" / "promise.csv"
COLUMNS = ["data", "horizon", "rule", "rms", "windows", "patches", "share_pct", "level_pct", "audited", "audits",
           "broken_pct", "alone_pct", "passes_chosen", "passes_with_audit", "best", "best_passes"]
PAIRS = {"etth1": "etth1", "ettm1": "ettm1_causal", "pool": "pool"}  # name -> its settings file
HORIZON = 720
RULES, BUDGETS = ("parareal", "tolerance"), (0.02, 0.05, 0.1)
WINDOWS, AUDITS = 600, 1000  # at most so many windows, evenly spaced, audited so many times
HOPELESS = 0.5  # no audit gets past a setting at which this share of all windows fails: later ones are not measured


def work(argv: Sequence[str] | None) -> None:
    from exp.flags import Parser
    parser = Parser(prog="promise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=TABLE, help="the table (default: docs/results/promise.csv)")
    parser.add_argument("--only", default=",".join(PAIRS), metavar="A,B,...", help="pairs (default: %(default)s)")
    own = parser.parse_args(argv)
    from exp.ownership import locked_file
    from exp.report.results import write_csv
    from scripts.benchmark.pairs import names_of
    from scripts.results.table import read_rows
    names = names_of(own.out, own.only, PAIRS)
    with locked_file(own.out, "wait for it, or give another --out"):
        rows: list[dict[str, Any]] = [dict(row) for row in read_rows(own.out, COLUMNS)]
        for name in names:
            for rule in RULES:
                if not any((row["data"], row["rule"]) == (name, rule) for row in rows):
                    rows += measure(name, PAIRS[name], rule)
                    rows.sort(key=lambda row: (list(PAIRS).index(row["data"]), RULES.index(row["rule"])))
                    write_csv(own.out, rows, COLUMNS)
        if own.out.resolve() == TABLE:
            write_table(rows)
    print(f"table: {own.out}")


def measure(name: str, settings_file: str, rule: str) -> list[dict[str, Any]]:
    """The rows of one pair and rule; trains what is missing."""
    from data_provider.data_factory import evenly_spaced
    from exp.evaluate.ladders import WINDOW, Measured
    from exp.evaluate.methods import make_speculative
    from exp.evaluate.promise import constants_of
    from scripts.benchmark.pairs import trained_pair
    from scripts.results.table import text_of
    pair = trained_pair(name, settings_file, ["--spec_accept_rule", rule, "--test_pred_len", str(HORIZON)])
    settings, experiment = pair.settings, pair.experiment
    dataset = experiment.tested_split()
    items = evenly_spaced(min(WINDOWS, len(dataset)), len(dataset)).tolist()
    print(f"== {name}, {rule}", flush=True)
    method = make_speculative(pair.target, pair.draft, settings.spec, HORIZON, settings.run.seed)
    constants = constants_of(experiment, method, pair.target_file, WINDOW)
    found = []
    whole = Measured(experiment, method, WINDOW, dataset, items, "all windows")
    for budget in BUDGETS:
        ladders = [list(_until_hopeless(ladder, budget)) for ladder in whole.ladders(budget, constants)]
        row = {"data": name, "horizon": HORIZON, "rule": rule, "rms": budget} | audits(ladders, budget, method.patches)
        found.append({column: text_of(value) for column, value in row.items()})
    return found


def _until_hopeless(ladder: "Iterable[Step]", budget: float) -> "Iterator[Step]":
    for step in ladder:
        yield step
        if float((step.deviation > budget).double().mean()) > HOPELESS:
            return


def audits(ladders: "Sequence[Sequence[Step]]", budget: float, patches: int) -> dict[str, Any]:
    """Many simulated audits of the windows that the ladders were measured on, and what hindsight would choose."""
    from exp.evaluate.promise import LEVEL, SHARE, audited_windows, cheapest, choose
    from utils.fidelity import audit_allows, draw_audit
    windows = len(ladders[0][0].deviation)
    count = audited_windows(windows, len(ladders))
    most = audit_allows(windows, count, SHARE, LEVEL / len(ladders))
    steps = {step.words: step for ladder in ladders for step in ladder}
    kept = {words: float((step.deviation > budget).double().mean()) <= SHARE for words, step in steps.items()}
    broken = alone = chosen = paid = 0.0
    for seed in range(AUDITS):
        drawn = draw_audit(windows, count, seed)
        best, cost = choose(((step.of(drawn) for step in ladder) for ladder in ladders), budget, most, patches)
        passes = float(patches)
        if best is None:
            alone += 1
        else:
            broken += not kept[best.words]
            of_all = steps[best.words].passes
            passes = float(of_all.sum() - of_all[drawn].sum()) / (windows - count)
        chosen += passes
        paid += (count * (patches + cost) + (windows - count) * passes) / windows
    known = cheapest([step for words, step in steps.items() if kept[words]], patches)
    return {"windows": windows, "patches": patches, "share_pct": 100 * SHARE, "level_pct": 100 * LEVEL,
            "audited": count, "audits": AUDITS, "broken_pct": 100 * broken / AUDITS, "alone_pct": 100 * alone / AUDITS,
            "passes_chosen": chosen / AUDITS, "passes_with_audit": paid / AUDITS,
            "best": "the target alone" if known is None else known.words,
            "best_passes": float(patches if known is None else known.passes.mean())}


def write_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of docs/STOCHASTIC_DRAFT_GUIDE.md."""
    from scripts.results.documents import GUIDE, PROMISE, write_block
    write_block(ROOT, GUIDE, PROMISE, lines_of(rows))


def lines_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    from scripts.results.cells import markdown
    columns = ["data", "rule", "budget", "windows", "audited", "promises broken", "passes chosen", "with the audit",
               "best in hindsight", "its passes"]
    return markdown(columns, [
        [row["data"], f"`{row['rule']}`", row["rms"], row["windows"], row["audited"], f"{row['broken_pct']} %",
         *(f"{float(row[name]):.2f}" for name in ("passes_chosen", "passes_with_audit")), row["best"],
         f"{float(row['best_passes']):.2f}"] for row in rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done; 2 bad input, or something failed (one line on stderr says what); 130 or 143 interrupted."""
    return exit_code(lambda: work(argv), "WINDOWS in scripts/benchmark/promise.py",
                     "the pairs so far are kept; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
