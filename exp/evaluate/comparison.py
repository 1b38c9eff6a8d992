"""--compare: all forecasting methods in one table, measured in one run."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from exp.evaluate.evaluation import Evaluation, evaluate
from exp.evaluate.methods import (
    AloneMethod,
    Method,
    SeasonalNaiveMethod,
    SpeculativeMethod,
    make_rule,
    make_speculative,
)
from exp.report.plots import compare_figure
from exp.report.results import DRAFT, TARGET, format_table, write_csv
from exp.settings import Settings
from utils.acceptance import Tolerance
from utils.decoded import Round
from utils.interface import Model
from utils.planner import PAYS_FROM
from utils.timing import hardware, time_side_by_side

BATCH_1_REPEATS, BATCH_N_REPEATS = 40, 7
OFTEN_ACCEPTED = 50  # per cent; below it most rounds end with their first proposal, and the draft is the reason
COLUMNS = {
    "method": "method", "mse": "MSE", "mae": "MAE", "acceptance_pct": "accepted %", "used_pct": "of proposed %",
    "target_passes": "target passes", "draft_passes": "draft passes", "ms_batch_1": "ms, batch 1",
    "speedup_batch_1": "speed-up", "ms_batch_n": "ms, batch N", "speedup_batch_n": "speed-up N",
    "rms_from_target": "RMS from target",
}
CSV_COLUMNS = [*COLUMNS, "ms_batch_1_p10", "ms_batch_1_p90", "ms_batch_n_p10", "ms_batch_n_p90", "batch_n", "windows",
               "horizon", "context", "device", "cores", "threads", "torch"]


def compared_methods(target: Model, draft: Model, settings: Settings) -> dict[str, Method]:
    """Rows of the table, in order; the others are compared with the first."""
    horizon, spec, season = settings.data.horizon, settings.spec, settings.report.season or 24
    cached = " (cached)" if getattr(target, "rolling", None) == "cache" else ""
    rows: dict[str, Method] = {
        TARGET + cached: AloneMethod(target, horizon),
        DRAFT: AloneMethod(draft, horizon, is_draft=True),
        f"seasonal-naive ({season})": SeasonalNaiveMethod(season, horizon),
    }
    rules = {"simplified, sampled": ("simplified", "sample"), "simplified, mean": ("simplified", "mean"),
             f"tolerance {spec.tol:g}": ("tolerance", "mean")}
    for name, (rule, emit) in rules.items():
        rows[f"speculative {name}"] = make_speculative(target, draft, spec, horizon, settings.run.seed,
                                                       make_rule(spec, rule=rule, emit=emit))
    return rows


def compare(methods: Mapping[str, Method], dataset, loader, settings: Settings, device: torch.device,
            folder: Path) -> list[dict]:
    """Measures every method on every test window, then times them interleaved; writes compare.csv, compare.png."""
    data, quiet, first = settings.data, settings.run.quiet, next(iter(methods))
    measured = evaluate(methods, loader, device, settings.model.config.covariate, quiet, reference=first,
                        what="compare")
    times, batch = _times(methods, dataset, data.batch_size, device, quiet)
    machine, target = hardware(device), times[first]
    rows = []
    for name, out in measured.items():
        own = times[name]
        details = _details(methods[name], out, dataset, batch, device)
        rows.append({"method": name} | out.result(data.batch_size) | own | machine | details | {
            "rms_from_target": out.rms_from_reference(), "batch_n": batch, "horizon": data.horizon,
            "context": data.test_context, "speedup_batch_1": target["ms_batch_1"] / own["ms_batch_1"],
            "speedup_batch_n": target["ms_batch_n"] / own["ms_batch_n"]})
    write_csv(folder / "compare.csv", [{key: row.get(key) for key in CSV_COLUMNS} for row in rows], CSV_COLUMNS)
    title = (f"horizon {data.horizon}, context {data.test_context}, {rows[0]['windows']} windows, "
             f"{machine['device']}")
    compare_figure(folder / "compare.png", rows, batch, title)
    return rows


def _times(methods: Mapping[str, Method], dataset, batch_size: int, device: torch.device,
           quiet: bool) -> tuple[dict[str, dict[str, float]], int]:
    """Median milliseconds per forecast at batch 1 and N, on windows spread over the test split; and N."""
    calls: dict[str, Callable[[torch.Tensor], object]] = {name: method.decode for name, method in methods.items()}
    batch = min(batch_size, len(dataset))
    result: dict[str, dict[str, float]] = {name: {} for name in methods}
    for key, size, repeats in (("ms_batch_1", 1, BATCH_1_REPEATS), ("ms_batch_n", batch, BATCH_N_REPEATS)):
        firsts = torch.linspace(0, len(dataset) - size, repeats).long().tolist()
        inputs = [dataset.__getitems__(list(range(first, first + size)))[0].to(device) for first in firsts]
        for method in methods.values():
            method.reset()  # K must not depend on earlier measurements

        def bar(rounds, size=size):
            return tqdm(rounds, desc=f"times, batch {size}", unit="round", disable=quiet)
        for name, timed in time_side_by_side(calls, inputs, device, bar=bar).items():
            result[name] |= {key: timed["ms_median"] / size, f"{key}_p10": timed["ms_p10"] / size,
                             f"{key}_p90": timed["ms_p90"] / size}
    return result, batch


def _details(method: Method, out: Evaluation, dataset, batch: int, device: torch.device) -> dict[str, Any]:
    """What `describe` says of a speculative method beyond its figures; empty for another.

    plans: batch size -> the K that was chosen for it; sampled: whether it emits samples; and, where a tolerance rejects
    often, `_median_gap`.
    """
    if not isinstance(method, SpeculativeMethod):
        return {}
    details: dict[str, Any] = {"plans": {size: plan.proposals for size, plan in method.plans.items()},
                               "sampled": getattr(method.rule, "emit", "mean") == "sample"}
    accepted = out.acceptance_pct()
    if isinstance(method.rule, Tolerance) and accepted is not None and accepted < OFTEN_ACCEPTED:
        details |= {"tol": method.rule.tol, "median_gap": _median_gap(method, dataset, batch, device)}
    return details


def _median_gap(method: SpeculativeMethod, dataset, windows: int, device: torch.device) -> float | None:
    """The median gap between draft and target that a tolerance judged, on `windows` windows spread over the split.

    The gap is the RMS in standard deviations of the window. None where nothing is proposed.
    """
    gaps: list[torch.Tensor] = []

    def note(judged: Round) -> None:
        assert judged.judgement is not None
        gaps.append(judged.judgement.score[judged.looked_at])
    spread = torch.linspace(0, len(dataset) - 1, windows).long().tolist()
    method.again().decode(dataset.__getitems__(spread)[0].to(device), note)
    return float(torch.cat(gaps).median()) if gaps else None


def describe(rows: list[dict], tolerance: float = 0.005) -> str:
    """The table, and a sentence on each method: whether it pays off here, and what to do if it does not.

    tolerance: relative difference in MSE that counts as none. Faster means by more than the clock can be trusted.
    """
    columns = COLUMNS | {"ms_batch_n": f"ms, batch {rows[0]['batch_n']}", "speedup_batch_n": "speed-up"}
    target, draft, naive = rows[0], rows[1], rows[2]
    lines = [format_table(rows, columns), "", f"Times are medians per forecast of {rows[0]['horizon']} steps on "
             f"{target['device']}, {target['threads']} threads; speed-ups are over '{target['method']}' in this run."]
    useless = naive["mse"] < target["mse"]
    if draft["mse"] <= target["mse"] * (1 + tolerance) and not (useless and naive["mse"] < draft["mse"]):
        lines.append(f"Draft alone: MSE {draft['mse']:.4f} against the target's {target['mse']:.4f}, "
                     f"{draft['speedup_batch_1']:.1f}x its speed: on this data the draft by itself is enough; "
                     "speculation pays only where the target's own forecast is wanted.")
    if useless:
        lines.append(f"{naive['method']}: MSE {naive['mse']:.4f}, better than the target's {target['mse']:.4f}: on "
                     "this data the target is of no use, and neither is speculation.")
    for row in rows[3:]:
        lines += _verdict(row, target, tolerance)
    return "\n".join(lines)


def _verdict(row: dict, target: dict, tolerance: float) -> list[str]:
    """One to three sentences on a speculative row."""
    name, sizes = row["method"], {1: "speedup_batch_1", target["batch_n"]: "speedup_batch_n"}
    plans: dict[int, int] = row.get("plans") or {}
    lines = []
    if len(set(plans.values())) > 1:
        chosen = " and ".join(f"K = {k} at batch {size}" + ("" if k else " (nothing is proposed)")
                              for size, k in plans.items())
        lines.append(f"{name}: --spec_k auto chose {chosen}. Each time is that of its own K; errors, acceptance and "
                     f"passes are those of batches of {target['batch_n']} (a smaller last batch takes the K of the "
                     "nearer size).")
    if not row.get("proposed") and not any(plans.values()):
        what = "these are samples around the target's means" if row.get("sampled") else "this is the target alone"
        why = "--spec_k auto chose K = 0" if plans and row["target_passes"] > 1 else "the horizon is a single patch"
        return [f"{name}: nothing was proposed, so {what} ({why})."]
    worse = row["mse"] > target["mse"] * (1 + tolerance)
    faster = [f"batch {size}" for size, key in sizes.items() if row[key] > 1 / PAYS_FROM]
    speeds = " and ".join(f"{row[key]:.2f}x at batch {size}" for size, key in sizes.items())
    gain = f"faster at {' and '.join(faster)}" if faster else \
        f"not faster than the target alone ({speeds}), it does not pay"
    lines.append(f"{name}: {gain}; MSE {'WORSE than' if worse else 'no worse than'} the target's"
                 f" ({100 * (row['mse'] / target['mse'] - 1):+.1f} %).")
    return lines if faster else [*lines, _advice(row)]


def _advice(row: dict) -> str:
    """What to do about a method that does not pay."""
    accepted = row.get("acceptance_pct")
    if accepted is None or accepted >= OFTEN_ACCEPTED:
        return ("  Its proposals are accepted often enough; making and verifying them takes as long as the passes that "
                "they save. Use the target alone at these batch sizes, or a smaller draft.")
    advice = (f"  {accepted:.1f} % of the judged proposals were accepted: use the target alone, or train the draft "
              "longer, so that it comes nearer to the target.")
    if row.get("median_gap") is not None:
        advice += (f" Half of them are {row['median_gap']:.2g} or more from the target (RMS, in standard deviations of "
                   f"the window), and --spec_tol is {row['tol']:g}: a larger one accepts more, and takes the forecast "
                   "further from the target's.")
    return advice
