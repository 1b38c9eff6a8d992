"""--compare: every way to forecast in one table, measured in one run."""
import torch
from tqdm import tqdm

from exp.evaluation import (
    AloneMethod,
    Evaluation,
    SeasonalNaiveMethod,
    SpeculativeMethod,
    interruptible,
    make_speculative,
    scored,
)
from utils.metrics import SpeculationMetrics
from utils.plots import compare_figure
from utils.results import DRAFT, TARGET, format_table, refuse_overflow, write_csv
from utils.timing import hardware, time_side_by_side

BATCH_1_REPEATS, BATCH_N_REPEATS = 40, 7
COLUMNS = {
    "method": "method", "mse": "MSE", "mae": "MAE", "acceptance_pct": "accepted %", "used_pct": "of proposed %",
    "target_passes": "target passes", "draft_passes": "draft passes", "ms_batch_1": "ms, batch 1",
    "speedup_batch_1": "speed-up", "ms_batch_n": "ms, batch N", "speedup_batch_n": "speed-up N",
    "rms_from_target": "RMS from target",
}
CSV_COLUMNS = [*COLUMNS, "ms_batch_1_p10", "ms_batch_1_p90", "ms_batch_n_p10", "ms_batch_n_p90", "batch_n", "windows",
               "horizon", "context", "device", "cores", "threads", "torch"]


def compared_methods(target, draft, args) -> dict:
    """Rows of the table, in order; the first is what the others are held against."""
    horizon = args.test_pred_len
    return {
        TARGET: AloneMethod(target, horizon),
        DRAFT: AloneMethod(draft, horizon),
        f"seasonal-naive ({args.season})": SeasonalNaiveMethod(args.season, horizon),
        "speculative simplified, sampled": make_speculative(target, draft, args, "simplified", "sample"),
        "speculative simplified, mean": make_speculative(target, draft, args, "simplified", "mean"),
        f"speculative tolerance {args.spec_tol:g}": make_speculative(target, draft, args, "tolerance", "mean"),
    }


def compare(methods: dict, dataset, loader, args, device: torch.device, folder) -> list[dict]:
    """Measures every method on every test window, then their times side by side; writes compare.csv, compare.png."""
    accuracy, deviation = _accuracy(methods, loader, args, device)
    for name, out in accuracy.items():
        refuse_overflow(out.point.result()["mse"], name)
    times = _times(methods, dataset, args, device)
    machine = hardware(device)
    rows = []
    for name in methods:
        row = {"method": name} | accuracy[name].result(args.batch_size) | times[name] | machine
        row |= {"rms_from_target": deviation[name], "batch_n": times["batch_n"], "horizon": args.test_pred_len,
                "context": args.test_seq_len,
                "speedup_batch_1": times[TARGET]["ms_batch_1"] / row["ms_batch_1"],
                "speedup_batch_n": times[TARGET]["ms_batch_n"] / row["ms_batch_n"]}
        if name in (TARGET, DRAFT):
            row["target_passes" if name == TARGET else "draft_passes"] = float(methods[name].passes)
        rows.append(row)
    write_csv(folder / "compare.csv", [{key: row.get(key) for key in CSV_COLUMNS} for row in rows], CSV_COLUMNS)
    title = (f"horizon {args.test_pred_len}, context {args.test_seq_len}, {rows[0]['windows']} windows, "
             f"{machine['device']}")
    compare_figure(folder / "compare.png", rows, times["batch_n"], title)
    return rows


@torch.inference_mode()
def _accuracy(methods, loader, args, device):
    """All methods on all windows: evaluations, and the rms deviation of each forecast from the target's own."""
    results = {name: Evaluation(speculation=SpeculationMetrics() if isinstance(method, SpeculativeMethod) else None)
               for name, method in methods.items()}
    squares, elements = dict.fromkeys(methods, 0.0), 0
    with interruptible(results), tqdm(loader, desc="compare", unit="batch", disable=args.quiet) as bar:
        for x, y in bar:
            x, y = x.to(device), scored(y.to(device), args.covariate)
            made = {name: method.decode(x) if results[name].speculation else method.forecast(x)
                    for name, method in methods.items()}
            reference = None
            for name, forecast in made.items():  # after all of them: interrupted, each has the same windows
                out = results[name]
                if out.speculation:
                    out.speculation.update(forecast)
                    forecast = forecast.forecast
                    bar.set_postfix(acceptance=f"{out.speculation.result()['acceptance_pct']:.1f} %", refresh=False)
                forecast = scored(forecast, args.covariate)
                reference = forecast if reference is None else reference
                out.point.update(forecast, y)
                out.windows += len(x)
                squares[name] += float((forecast - reference).double().square().sum())
            elements += y.numel()
    return results, {name: (value / elements) ** 0.5 for name, value in squares.items()}


def _times(methods, dataset, args, device) -> dict:
    """Median milliseconds per forecast at batch 1 and at --batch_size, on windows spread over the test split."""
    calls = {name: method.forecast for name, method in methods.items()}
    batch = min(args.batch_size, len(dataset))
    result = {name: {} for name in methods} | {"batch_n": batch}
    for key, size, repeats in (("ms_batch_1", 1, BATCH_1_REPEATS), ("ms_batch_n", batch, BATCH_N_REPEATS)):
        firsts = torch.linspace(0, len(dataset) - size, repeats).long().tolist()
        inputs = [dataset.__getitems__(list(range(first, first + size)))[0].to(device) for first in firsts]
        for method in methods.values():
            if isinstance(method, SpeculativeMethod):
                method.reset()  # K must not depend on what was measured before
        bar = None if args.quiet else f"times, batch {size}"
        for name, timed in time_side_by_side(calls, inputs, device, bar=bar).items():
            result[name] |= {key: timed["ms_median"] / size, f"{key}_p10": timed["ms_p10"] / size,
                             f"{key}_p90": timed["ms_p90"] / size}
    return result


def describe(rows: list[dict], tolerance: float = 0.005) -> str:
    """The table and what it says: which way to forecast pays here, and which does not."""
    columns = COLUMNS | {"ms_batch_n": f"ms, batch {rows[0]['batch_n']}", "speedup_batch_n": "speed-up"}
    target, draft = rows[0], rows[1]
    lines = [format_table(rows, columns), "", f"Times are medians per forecast of {rows[0]['horizon']} steps on "
             f"{target['device']}, {target['threads']} threads; speed-ups are over '{TARGET}' in this run."]
    if draft["mse"] <= target["mse"] * (1 + tolerance):
        lines.append(f"Draft alone: MSE {draft['mse']:.4f} against the target's {target['mse']:.4f}, "
                     f"{draft['speedup_batch_1']:.1f}x its speed: on this data the draft by itself is enough; "
                     "speculation pays only where the target's own forecast is wanted.")
    for row in rows[3:]:
        worse = row["mse"] > target["mse"] * (1 + tolerance)
        faster = [f"batch {b}" for b, key in ((1, "speedup_batch_1"), (target["batch_n"], "speedup_batch_n"))
                  if row[key] > 1]
        gain = f"faster at {' and '.join(faster)}" if faster else "not faster than the target alone, it does not pay"
        lines.append(f"{row['method']}: {gain}; MSE {'WORSE than' if worse else 'no worse than'} the target's"
                     f" ({100 * (row['mse'] / target['mse'] - 1):+.1f} %).")
    return "\n".join(lines)
