"""--spec_rms, --spec_budget: the cheapest setting that keeps close to the target's own forecast, with a promise.

`utils.fidelity` explains what is promised and why. Here: which windows are measured, and what a run says and writes.
"""
from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_provider.data_factory import evenly_spaced, ordered_loader, spread_windows
from exp.certificates import certificate_constants
from exp.evaluate.evaluation import Evaluation, evaluate, scored
from exp.evaluate.ladders import SERIES, WINDOW, Measured, Step
from exp.evaluate.methods import AloneMethod, Method, PararealMethod, SpeculativeMethod
from exp.evaluate.promised import PromisedMethod
from exp.exp_basic import Exp_Basic
from exp.flags import in_flags
from exp.settings import Settings
from utils import fidelity
from utils.acceptance import Parareal
from utils.errors import UserError
from utils.interface import Model
from utils.speculative_decoder import patches_in

SHARE, LEVEL = 0.1, 0.05  # at most this share of the windows fails, but for this probability
AUDITED, MOST_AUDITED = 20, 1000  # every so many windows is audited, but no more than this if that is enough
VALIDATION_WINDOWS = 256  # for the constants of certificates, and for the target's MSE
UNITS = {WINDOW: "window standard deviations", SERIES: "standardised units"}
log = logging.getLogger(__name__)


@dataclass
class Kept:
    """A promise: the rule that was chosen (None: the target alone), and what metrics.json has of it.

    audited, own: what the audit has forecast, see `PromisedMethod`.
    """

    rule: Any
    unit: str
    record: dict[str, Any]
    audited: torch.Tensor | None = None
    own: torch.Tensor | None = None

    def method(self, method: SpeculativeMethod) -> PromisedMethod:
        return PromisedMethod(method, self.rule, self.audited, self.own)


def audited_windows(windows: int, ladders: int) -> int:
    """How many of `windows` to audit. Raises UserError where that would be more than half of them."""
    least = fidelity.least_audit(windows, SHARE, LEVEL / ladders)
    if 2 * least > windows:
        raise UserError(f"`promise` audit: {least} of the {windows} windows would have to be forecast by the target "
                        f"alone to promise anything of {100 * SHARE:g} % of them: too few windows; forecast more of "
                        "them, or leave out the promise")
    return max(least, min(MOST_AUDITED, windows // AUDITED))


def refuse_without_windows(settings: Settings, dataset) -> None:
    """Raises UserError where the windows to be forecast are too few for a promise, before anything is trained."""
    spec, data = settings.spec, settings.data
    if not spec.promises or not settings.run.use_speculative:
        return
    if patches_in(data.horizon, settings.model.config.patch_len) == 1:
        raise UserError(f"`{'rms' if spec.rms is not None else 'budget'}`: a horizon of {data.horizon} is a single "
                        "patch, which the target alone forecasts in one pass: leave it out")
    if spec.promise == "audit":
        audited_windows(len(spread_windows(dataset, data.test_windows)), 2 if spec.rule == Parareal.name else 1)
    elif data.test_flag == "V":
        raise UserError("`promise` validation is about windows to come, but `test_flag` V forecasts the validation "
                        "part itself: use audit")


def keep_promise(experiment: Exp_Basic, method: SpeculativeMethod, checkpoint: Path, dataset) -> Kept:
    """Chooses the cheapest setting of `method` that can be promised. Raises UserError where nothing ever can be.

    dataset: the windows to be forecast.
    """
    spec = experiment.settings.spec
    unit = WINDOW if spec.budget is None else SERIES
    target_mse = None if spec.budget is None else validation_mse(experiment, method.target)
    budget = spec.rms if target_mse is None else fidelity.rms_for_change(float(spec.budget or 0), target_mse)
    assert budget is not None
    said: dict[str, Any] = {"kind": spec.promise, "rms": budget, "unit": UNITS[unit], "budget": spec.budget,
                            "validation_mse": target_mse, "share": SHARE}
    choose = by_audit if spec.promise == "audit" else by_validation
    kept = choose(experiment, method, checkpoint, dataset, budget, unit)
    kept.record = said | kept.record
    log.info("promise: %s", promised_line(kept.record))
    return kept


def by_audit(experiment: Exp_Basic, method: SpeculativeMethod, checkpoint: Path, dataset, budget: float,
             unit: str) -> Kept:
    windows = spread_windows(dataset, experiment.settings.data.test_windows)
    constants = constants_of(experiment, method, checkpoint, unit)
    several = 2 if isinstance(method, PararealMethod) else 1  # of each ladder, also where one is missing
    level, count = LEVEL / several, audited_windows(len(windows), several)
    drawn = fidelity.draw_audit(len(windows), count, experiment.settings.run.seed)
    measured = Measured(experiment, method, unit, dataset, [windows[i] for i in drawn.tolist()], "audit")
    most = fidelity.audit_allows(len(windows), count, SHARE, level)
    best, cost = choose(measured.ladders(budget, constants), budget, most, method.patches)
    record: dict[str, Any] = {"level": LEVEL, "windows": len(windows), "audited": count, "failures_allowed": most,
                              "audit_passes": method.patches + cost} | chosen_record(best, method)
    if best is not None:
        failures = int((best.deviation > budget).sum())
        p = fidelity.hypergeometric_tail(failures, len(windows), int(SHARE * len(windows)) + 1, count)
        record |= {"failures": failures, "p_value": min(1.0, p * several)}
    return Kept(None if best is None else best.rule, unit, record, drawn, measured.own)


def by_validation(experiment: Exp_Basic, method: SpeculativeMethod, checkpoint: Path, dataset, budget: float,
                  unit: str) -> Kept:
    validation, data = experiment.validation_part()[0], experiment.settings.data
    blocks = [[first + window for window in block]
              for first, windows in zip(validation.first_items.tolist(), validation.counts.tolist())
              for block in fidelity.blocks_of(windows, data.test_context, experiment.patch_len)]
    most = fidelity.blocks_allow(len(blocks), SHARE)
    if most < 0:
        raise UserError(f"`promise` validation: the validation part has {len(blocks)} blocks of {data.test_context} "
                        f"windows with as many between them, and nothing below 1/{len(blocks) + 1} can be promised of "
                        f"the next ({100 * SHARE:g} % is wanted): use audit, or a longer file")
    measured = Measured(experiment, method, unit, validation, sum(blocks, []), "validation blocks")
    # without certificates, whose constants are fitted on these very windows
    ladder, = measured.ladders(budget)
    steps, failed = [], []
    for step in ladder:
        failed.append((step.deviation > budget).unflatten(0, (len(blocks), -1)).any(dim=1))
        steps.append(step)
        if fidelity.failing_blocks(torch.stack(failed))[-1] > most:
            break
    counts = fidelity.failing_blocks(torch.stack(failed))
    best = cheapest(steps[:fidelity.longest_safe(counts, most)], method.patches)
    record: dict[str, Any] = {"blocks": len(blocks), "failures_allowed": most, "audited": 0}
    record |= chosen_record(best, method) | ({} if best is None else {"failures": counts[steps.index(best)]})
    return Kept(None if best is None else best.rule, unit, record)


def choose(ladders: Iterable[Iterable[Step]], budget: float, most: int, patches: int) -> tuple[Step | None, float]:
    """What an audit chooses from ladders in which at most `most` windows may fail, and the passes a window of the rest.

    None: the target alone, which takes `patches` passes. No step after the first of a ladder that fails is measured.
    """
    safe: list[Step] = []
    cost = 0.0
    for ladder in ladders:
        steps: list[Step] = []

        def failures(ladder: Iterable[Step] = ladder, steps: list[Step] = steps) -> Iterator[int]:
            for step in ladder:
                steps.append(step)
                yield int((step.deviation > budget).sum())
        safe += steps[:fidelity.longest_safe(failures(), most)]
        cost += sum(step.cost for step in steps)
    return cheapest(safe, patches), cost


def cheapest(steps: Sequence[Step], patches: int) -> Step | None:
    """The step with the fewest passes; None where none has fewer than the target alone."""
    best = min(steps, key=lambda step: float(step.passes.mean()), default=None)
    return None if best is None or float(best.passes.mean()) >= patches else best


def chosen_record(step: Step | None, method: SpeculativeMethod) -> dict[str, Any]:
    if step is None:
        return {"chosen": f"the target alone, {method.patches} passes each", "settings": None}
    return {"chosen": step.words, "settings": step.record}


def constants_of(experiment: Exp_Basic, method: SpeculativeMethod, checkpoint: Path, unit: str) -> list[float] | None:
    """The constants of parareal's certificates; None, with a note, where there is no validation part to fit them on."""
    if not isinstance(method, PararealMethod):
        return None
    try:
        validation = experiment.validation_part()[0]
    except UserError as error:  # an audit does not need one
        log.info("note: windows do not stop by certificates of their own: %s", in_flags(str(error)))
        return None
    windows = evenly_spaced(min(VALIDATION_WINDOWS, len(validation)), len(validation)).tolist()
    return certificate_constants(
        experiment, checkpoint, (method.target, method.draft), windows, validation, unit,
        lambda dataset, items: Measured(experiment, method, unit, dataset, items, "certificates").by_pass())


def validation_mse(experiment: Exp_Basic, target) -> float:
    """The target's own MSE on validation windows, spread over their part."""
    data = experiment.settings.data
    dataset = experiment.dataset("val", data.test_context, rolled=True)
    items = evenly_spaced(min(VALIDATION_WINDOWS, len(dataset)), len(dataset)).tolist()
    loader = ordered_loader(dataset, data.batch_size, items, data.num_workers)
    found = evaluate({"target": AloneMethod(target, data.horizon)}, loader, experiment.device,
                     experiment.settings.model.config.covariate, experiment.settings.run.quiet, what="validation")
    return float(found["target"].point.result()["mse"])


class Deviations(Evaluation):
    """An evaluation that keeps the deviation of every window."""

    def __init__(self, unit: str, covariate: bool, walk=None, first: int = 0):
        super().__init__(covariate, walk, first)
        self.unit, self.found = unit, list[torch.Tensor]()

    def part(self, first: int) -> Deviations:
        return Deviations(self.unit, self.covariate, None if self.by_series is None else self.by_series.walk, first)

    def merge(self, part: Deviations) -> None:
        super().merge(part)
        self.found += part.found

    def deviate(self, forecast: torch.Tensor, reference: torch.Tensor, unit: torch.Tensor) -> None:
        super().deviate(forecast, reference, unit)
        forecast, reference, unit = (scored(part, self.covariate) for part in (forecast, reference, unit))
        self.found.append(fidelity.deviations(forecast, reference, None if self.unit == SERIES else unit).cpu())


def add_found(record: dict[str, Any], tested: Evaluation, alone: Evaluation) -> None:
    """What the windows show of a promise, all of which the target has forecast too."""
    assert isinstance(tested, Deviations)
    deviation, mse, own = torch.cat(tested.found), tested.point.result()["mse"], alone.point.result()["mse"]
    rms = float(deviation.square().mean().sqrt())
    passes = float(tested.cost()["target_passes"])
    audited = record["audited"] / len(deviation)
    record["found"] = {
        "windows": len(deviation), "failing": int((deviation > record["rms"]).sum()),
        "failing_pct": 100 * float((deviation > record["rms"]).double().mean()), "largest": float(deviation.max()),
        "rms": rms, "mse": mse, "mse_of_target": own, "mse_change_pct": 100 * (mse / own - 1),
        "most_mse_change_pct": 100 * fidelity.mse_change(rms, own) / own if record["unit"] == UNITS[SERIES] else None,
        # audited windows were counted with the passes of the target alone, but took those of the settings tried as well
        "target_passes": passes + audited * (record.get("audit_passes", 0.0) - alone.cost()["target_passes"])}
    log.info("promise: %s", found_line(record))


def promised_line(record: dict[str, Any]) -> str:
    """What is promised, by which assumption, and what was chosen."""
    limit = f"by more than {record['rms']:.3g} {record['unit']} (RMS) from the target's own forecast"
    if record["budget"] is not None:
        limit += (f", which changes the MSE by at most {100 * record['budget']:g} % where the target's is "
                  f"{record['validation_mse']:.4g}, as on validation windows")
    if record["kind"] == "audit":
        audited, allowed = record["audited"], record["failures_allowed"]
        said = (f"with {100 * (1 - record['level']):g} % confidence at most {100 * record['share']:g} % of these "
                f"{record['windows']} windows deviate {limit}. By an audit, which assumes nothing: the target has "
                f"forecast {audited} of them, drawn by lot, of which {allowed} may deviate more")
        failing = f" ({record.get('failures')} of the audited windows deviate more; p = {record.get('p_value', 0):.2g})"
    else:
        said = (f"with a probability of at most {100 * record['share']:g} %, some window of the next block deviates "
                f"{limit}. By validation, which assumes that the next block is like the {record['blocks']} blocks "
                f"of the validation part, of which {record['failures_allowed']} may have such a window")
        failing = f" ({record.get('failures')} of these blocks have one)"
    return f"{said}. Chosen: {record['chosen']}{failing if record['settings'] is not None else ''}"


def found_line(record: dict[str, Any]) -> str:
    found = record["found"]
    return (f"found, as the target has forecast all {found['windows']} windows here: {found['failing_pct']:.2f} % "
            f"deviate by more than {record['rms']:.3g}, the largest by {found['largest']:.3g}; MSE "
            f"{found['mse_change_pct']:+.3f} % against the target's; {found['target_passes']:.2f} target passes a "
            "window" + (", the audit's among them" if record["audited"] else ""))


def checked(kept: Kept, method: Method, target: Model, settings: Settings,
            walk) -> tuple[dict[str, Method], dict[str, Evaluation]]:
    """Methods and records for `evaluate` that check a promise: the target alone first, then `method`, 'tested'."""
    covariate = settings.model.config.covariate
    methods = {"target alone": AloneMethod(target, settings.data.horizon), "tested": method}
    return methods, {"target alone": Evaluation(covariate), "tested": Deviations(kept.unit, covariate, walk)}
