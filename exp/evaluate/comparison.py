"""--compare: all forecasting methods in one table, measured in one run."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_provider.data_factory import evenly_spaced
from exp.adapters import draft_flag
from exp.evaluate.by_series import Walk
from exp.evaluate.evaluation import Evaluation, evaluate
from exp.evaluate.methods import (
    AloneMethod,
    Method,
    SeasonalNaiveMethod,
    SpeculativeMethod,
    make_rule,
    make_speculative,
)
from exp.flags import NAMES
from exp.report.decision import (
    decide,
    draft_of,
    faster_at,
    kept_pct,
    naive_warning,
    parts_of,
    recommendation,
    speedups,
    was_tried,
)
from exp.report.plots import compare_figure
from exp.report.results import DRAFT, TARGET, format_table, write_csv, write_series
from exp.section import fields_of
from exp.settings import RunSettings, Settings
from exp.speculation import LAW_FIELDS, LOSSLESS, SpecSettings, parameters_of
from exp.team import ALONE, Team
from utils.acceptance import Parareal, Tolerance
from utils.decoded import Round
from utils.interface import Model
from utils.timing import hardware, time_side_by_side

BATCH_1_REPEATS, BATCH_N_REPEATS = 40, 7
OFTEN_ACCEPTED = 50  # per cent; below it most rounds end with their first proposal, and the draft is the reason
COLUMNS = {
    "method": "method", "mse": "MSE", "mae": "MAE", "mase": "MASE", "acceptance_pct": "accepted %",
    "used_pct": "of proposed %",
    "target_passes": "target passes", "draft_passes": "draft passes", "ms_batch_1": "ms, batch 1",
    "speedup_batch_1": "speed-up", "ms_batch_n": "ms, batch N", "speedup_batch_n": "speed-up N",
    "rms_in_windows": "RMS in windows", "kept_pct": "kept %", "plan_batch_1": "plan 1", "plan_batch_n": "plan N",
}
SOMETIMES = ("mase", "kept_pct", "plan_batch_1", "plan_batch_n")  # printed where some row has them
CSV_COLUMNS = [*COLUMNS, "rms_from_target", "ms_batch_1_p10", "ms_batch_1_p90", "ms_batch_n_p10", "ms_batch_n_p90",
               "batch_n", "windows", "horizon", "context", "device", "cores", "threads", "torch"]


def compared_methods(target: Model, pair: tuple[Model, Model | None], settings: Settings,
                     walk: Walk) -> dict[str, Method]:
    """Rows of the table, in order; the others are compared with the first, and the tolerance is the last.

    pair: target and draft; or the target with longer heads, and None: no row is then of a draft, nor of parareal.
    Every rule is there as it emits by default, `simplified` also by its means; parareal ends by the tolerance. The law
    of exact and coupling is fixed here, also where `sigma_mode` lets simplified take its sigma from the gap.
    """
    horizon, spec = settings.data.horizon, settings.spec
    seasons = walk.seasons.where(walk.seasons <= settings.data.test_context, 1)  # no context holds a whole season
    cached = " (cached)" if getattr(target, "rolling", None) == "cache" else ""
    rows: dict[str, Method] = {
        TARGET + cached: AloneMethod(target, horizon),
        **({} if pair[1] is None else {DRAFT: AloneMethod(pair[1], horizon, is_draft=True)}),
        f"seasonal-naive ({', '.join(map(str, seasons.unique().tolist()))})": SeasonalNaiveMethod(seasons, horizon),
    }
    rules = {"simplified, sampled": ("simplified", "sample"), "simplified, mean": ("simplified", "mean")}
    rules |= {name: (name, SpecSettings(rule=name).emission) for name in LOSSLESS}
    if pair[1] is not None:
        rules[f"parareal {spec.tol:g}"] = Parareal.name, "mean"
    rules[f"tolerance {spec.tol:g}"] = Tolerance.name, "mean"
    for name, (rule, emit) in rules.items():
        rows[f"speculative {name}"] = make_speculative(*pair, spec, horizon, settings.run.seed,
                                                       make_rule(spec, rule=rule, emit=emit))
    return rows


def compare(methods: Mapping[str, Method], dataset, loader, settings: Settings, device: torch.device,
            folder: Path, planned: Mapping[str, Method] | None = None, walk: Walk | None = None,
            team: Team = ALONE) -> list[dict]:
    """Measures every method on every test window, then times them interleaved; writes compare.csv, compare.png.

    planned: name -> method for which K was chosen, to be shown in the row of that name; it may be a copy, so that the
    row is measured with the K of its settings. walk: the windows, for MASE and series.csv. team: processes that share
    the windows; the main one alone times, writes and has the rows.
    """
    data, quiet, first = settings.data, settings.run.quiet, next(iter(methods))
    measured = evaluate(methods, loader, device, settings.model.config.covariate, quiet, reference=first,
                        what="compare", walk=walk, team=team)
    if not team.is_main:
        return []
    times, batch = _times(methods, dataset, data.batch_size, device, quiet)
    machine, target = hardware(device), times[first]
    rows = []
    for name, out in measured.items():
        own = times[name]
        details = _details(methods[name], out, dataset, batch, device, settings)
        plans = getattr((planned or {}).get(name), "plans", {})
        rows.append({"method": name} | out.result(data.batch_size) | own | machine | details | {
            "rms_from_target": out.rms_from_reference(), "rms_in_windows": out.rms_in_windows(), "batch_n": batch,
            "horizon": data.horizon, "context": data.test_context,
            "speedup_batch_1": target["ms_batch_1"] / own["ms_batch_1"],
            "speedup_batch_n": target["ms_batch_n"] / own["ms_batch_n"]} | {
            f"plan_batch_{key}": plans[size].proposals for key, size in (("1", 1), ("n", batch)) if size in plans})
    for row in rows:
        row["kept_pct"] = kept_pct(row, rows[0], draft_of(rows))
    write_csv(folder / "compare.csv", [{key: row.get(key) for key in CSV_COLUMNS} for row in rows], CSV_COLUMNS)
    write_series(folder, [{"method": name} | row for name, out in measured.items() if out.by_series is not None
                          for row in out.by_series.rows()])
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
        firsts = evenly_spaced(repeats, len(dataset) - size + 1).tolist()
        inputs = [dataset.__getitems__(list(range(first, first + size)))[0].to(device) for first in firsts]
        for method in methods.values():
            method.reset()  # K must not depend on earlier measurements

        def bar(rounds, size=size):
            return tqdm(rounds, desc=f"times, batch {size}", unit="round", disable=quiet)
        for name, timed in time_side_by_side(calls, inputs, device, bar=bar).items():
            result[name] |= {key: timed["ms_median"] / size, f"{key}_p10": timed["ms_p10"] / size,
                             f"{key}_p90": timed["ms_p90"] / size}
    return result, batch


def _details(method: Method, out: Evaluation, dataset, batch: int, device: torch.device,
             settings: Settings) -> dict[str, Any]:
    """What `describe` says of a speculative method beyond its figures; empty for another.

    plans: batch size -> the K that was chosen for it; sampled: whether it emits samples; flags: those of the row; and,
    where a tolerance rejects often, `_median_gap`.
    """
    if not isinstance(method, SpeculativeMethod):
        return {}
    details: dict[str, Any] = {"plans": {size: plan.proposals for size, plan in method.plans.items()},
                               "sampled": getattr(method.rule, "emit", "mean") == "sample",
                               "flags": flags_of(method, settings)}
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
    spread = evenly_spaced(windows, len(dataset)).tolist()
    method.again().decode(dataset.__getitems__(spread)[0].to(device), note)
    return float(torch.cat(gaps).median()) if gaps else None


def flags_of(method: SpeculativeMethod, settings: Settings) -> list[str]:
    """The flags that test a method by itself as it is in the table, in place of --compare and all of speculation."""
    run, rule = settings.run, method.rule
    # of a K chosen for each batch size, errors are those of the largest one; no flag says K = 0, which auto has chosen
    k = method.plans[max(method.plans)].proposals or "auto" if method.plans else settings.spec.k
    spec = replace(settings.spec, rule=rule.name, emit=getattr(rule, "emit", None), k=k, repropose=None,
                   sigma_mode=None if rule.name in LOSSLESS else settings.spec.sigma_mode)
    if run.draft == "model" and method.repropose != spec.filled().repropose:
        spec = replace(spec, repropose=method.repropose)
    known = fields_of(SpecSettings)
    apply = parameters_of(rule.name) - LAW_FIELDS if rule.name == Parareal.name else \
        parameters_of(rule.name) | {"k", "repropose", "adaptive"}
    values = {"draft": run.draft} if run.draft == "head" else {"draft_checkpoint": draft_flag(run)}
    if run.draft_model != fields_of(RunSettings)["draft_model"].default:
        values["draft_model"] = run.draft_model
    values |= {"rule": spec.rule} | {name: getattr(spec, name) for name in known if name in apply and (
        name == "tol" or getattr(spec, name) != known[name].default)}
    flags = ["--use_speculative"]
    for name, value in values.items():
        if value is not None:
            flags += [f"--{NAMES[name]}"] + ([] if value is True else [str(value)])
    return flags


def describe(rows: list[dict]) -> str:
    """The table, what a reader should know of its rows, and which way to forecast."""
    batch = rows[0]["batch_n"]
    columns = COLUMNS | {"ms_batch_n": f"ms, batch {batch}", "speedup_batch_n": "speed-up",
                         "plan_batch_n": f"plan {batch}"}
    columns = {key: heading for key, heading in columns.items()
               if key not in SOMETIMES or any(row.get(key) is not None for row in rows)}
    target, _, _, speculative = parts_of(rows)
    lines = [format_table(rows, columns), "", f"Times are medians per forecast of {target['horizon']} steps on "
             f"{target['device']}, {target['threads']} threads; speed-ups are over '{target['method']}' in this run."]
    lines += naive_warning(rows) + _notes(speculative, batch)
    for row in speculative:
        if was_tried(row) and not row.get("sampled") and not faster_at(row):
            lines.append(_advice(row))
    return "\n".join(lines + recommendation(decide(rows)))


def _notes(rows: list[dict], batch: int) -> list[str]:
    """What speculative rows are not: errors of another K, speculation without a proposal, point forecasts."""
    lines = []
    if any(len(set((row.get("plans") or {}).values())) > 1 for row in rows):
        lines.append(f"--spec_k auto chose another K at batch 1 than at batch {batch} (the columns 'plan'): each time "
                     f"is that of its own K; errors, acceptance and passes are those of batches of {batch} (a smaller "
                     "last batch takes the K of the nearer size). What the other K loses was not measured, so its "
                     "speed-up does not count below; --batch_size 1 measures it.")
    idle: dict[str, list[str]] = {}
    for row in rows:
        if not was_tried(row):
            what = "these are samples around the target's means" if row.get("sampled") else "this is the target alone"
            why = "the horizon is a single patch" if row["target_passes"] <= 1 else \
                "--spec_k auto chose K = 0" if row.get("plans") else "heads propose none of the first two patches"
            idle.setdefault(f"nothing was proposed, so {what} ({why}).", []).append(row["method"])
    lines += [f"{', '.join(names)}: {said}" for said, names in idle.items()]
    sampled = [row["method"] for row in rows if row.get("sampled") and was_tried(row)]
    if sampled:
        lines.append(f"{', '.join(sampled)}: a draw of a law, not a point forecast, and not recommended as one.")
    return lines


def _advice(row: dict) -> str:
    """What to do about a row that is not faster than the target."""
    accepted, heads = row.get("acceptance_pct"), row.get("draft_passes") == 0
    slow = " and ".join(f"{speed:.2f}x at batch {size}" for size, speed in speedups(row).items())
    advice = f"{row['method']}: not faster than the target alone ({slow}). "
    if row.get("gap_by_patch"):
        return (f"{advice}It took {row['target_passes']:.2f} of {len(row['gap_by_patch']) + 1} target passes, and "
                f"{row['draft_passes']:.1f} draft passes: a draft that comes nearer to the target takes fewer of both, "
                "a smaller one makes its own cheaper.")
    if accepted is None or accepted >= OFTEN_ACCEPTED:
        return (f"{advice}Its proposals are accepted often enough; making and verifying them takes as long as the "
                f"passes that they save: a smaller {'--spec_k' if heads else 'draft'} may help.")
    advice += (f"{accepted:.1f} % of the judged proposals were accepted: train the "
               f"{'heads' if heads else 'draft'} longer, to come nearer to the target.")
    if row.get("median_gap") is not None:
        advice += (f" Half of them are {row['median_gap']:.2g} or more from the target (RMS, in standard deviations of "
                   f"the window), and --spec_tol is {row['tol']:g}: a larger one accepts more, and takes the forecast "
                   "further from the target's.")
    return advice
