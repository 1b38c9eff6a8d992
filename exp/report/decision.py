"""The opinion at the end of a comparison: which way to forecast, decided by the figures of its rows.

rows: those of the comparison in its order: the target, its draft if it has one, seasonal-naive, then speculation.
"""
from __future__ import annotations

import shlex
from typing import Any

from utils.planner import PAYS_FROM

NO_LOSS = 0.005  # relative; a way loses nothing if its MSE and its MAE are at most this much above the target's
ERRORS = ("mse", "mae")


def draft_of(rows: list[dict]) -> dict | None:
    """The row of the draft; None where the target's own heads propose."""
    return next((row for row in rows[1:2] if row["method"].startswith("draft")), None)


def parts_of(rows: list[dict]) -> tuple[dict, dict | None, dict, list[dict]]:
    """The target, its draft or None, seasonal-naive, and the speculative rows."""
    draft = draft_of(rows)
    naive, *speculative = rows[1:] if draft is None else rows[2:]
    return rows[0], draft, naive, speculative


def kept_pct(row: dict, target: dict, draft: dict | None) -> float | None:
    """Per cent of the target's advantage over its draft that a row keeps; None where it has none, or no draft.

    In MAE: squares leave the answer to the few largest errors, and a mixture of two forecasts, as speculation is,
    gains more of MSE by being a mixture. A row without a model has no part in either forecast.
    """
    if draft is None:
        return None
    advantage = draft["mae"] - target["mae"]
    if draft["mae"] <= target["mae"] * (1 + NO_LOSS) or not (row.get("target_passes") or row.get("draft_passes")):
        return None
    return 100 * (draft["mae"] - row["mae"]) / advantage


def was_tried(row: dict) -> bool:
    """Whether a speculative row had any proposals: at a horizon of one patch, and with K = 0, there are none."""
    return bool(row.get("proposed") or row.get("gap_by_patch") or any((row.get("plans") or {}).values()))


def faster_at(row: dict) -> list[int]:
    """Batch sizes at which a row is faster than the target by more than the clock can be trusted."""
    return [size for size, speedup in speedups(row).items() if speedup > 1 / PAYS_FROM]


def pays_at(row: dict) -> list[int]:
    """`faster_at`, where the row's errors are those of the same K.

    Where a K was chosen for each batch size, errors are those of the K for batches of N: a batch size with another K,
    whose loss was not measured, does not count, and neither does one with K = 0, the target itself.
    """
    plans, batch = row.get("plans") or {}, row["batch_n"]
    return [size for size in faster_at(row) if not plans or plans.get(size) == plans.get(batch, 0) > 0]


def speedups(row: dict) -> dict[int, float]:
    """Batch size -> speed-up over the target."""
    return {1: row["speedup_batch_1"]} | ({row["batch_n"]: row["speedup_batch_n"]} if row["batch_n"] > 1 else {})


def decide(rows: list[dict]) -> dict[str, Any]:
    """The recommendation, in JSON types.

    use: 'draft', 'speculation', 'target' or 'seasonal-naive'; method: its row; flags: those that reproduce it, of
    speculation only; batch_sizes: where it is faster than the target; ways: name -> the loss and the gain of each way,
    None for speculation where no row of it makes a point forecast, and for a draft where there is none.
    """
    target, draft, naive, others = parts_of(rows)
    speculation = _best(others, target)
    found = {"draft": draft, "speculation": speculation, "target": target, "seasonal-naive": naive}
    ways = {name: None if row is None else _way(row, target) for name, row in found.items()}
    use = _use(target, draft, naive, speculation)
    row = found[use]
    assert row is not None
    return {"use": use, "method": row["method"], "flags": row.get("flags", []), "batch_sizes": pays_at(row),
            "ways": ways}


def _use(target: dict, draft: dict | None, naive: dict, speculation: dict | None) -> str:
    # a model that is beaten by repeating a season has nothing to offer, and speculation imitates the target
    if _beats(naive, target) and not (draft is not None and _beats(draft, naive)):
        return "seasonal-naive"
    # as a rule a draft is faster; one that is neither faster nor better has nothing to offer
    if draft is not None and _lossless(draft, target) and (pays_at(draft) or _beats(draft, target)):
        return "draft"
    if speculation is not None and _lossless(speculation, target) and pays_at(speculation):
        return "speculation"
    return "target"


def _best(rows: list[dict], target: dict) -> dict | None:
    """The fastest speculative row without loss, one that pays if there is one; else the row that loses least.

    Rows that emit samples do not count, whatever their errors: each is a draw of a law, and another draw has others.
    The way to the target's point forecast is one that emits means.
    """
    points = [row for row in rows if was_tried(row) and not row.get("sampled")]
    lossless = [row for row in points if _lossless(row, target)]
    if not lossless:
        return min(points, key=lambda row: [row[error] for error in ERRORS], default=None)

    def speed(row: dict) -> tuple[bool, float]:
        paying = pays_at(row)
        return bool(paying), max(speedups(row)[size] for size in paying or speedups(row))
    return max(lossless, key=speed)


def _lossless(row: dict, target: dict) -> bool:
    return all(row[error] <= target[error] * (1 + NO_LOSS) for error in ERRORS)


def _beats(row: dict, other: dict) -> bool:
    return all(row[error] < other[error] for error in ERRORS)


def _way(row: dict, target: dict) -> dict[str, Any]:
    """mse_pct, mae_pct: per cent above the target's error, None above an error of 0."""
    losses = {f"{error}_pct": 100 * (row[error] / target[error] - 1) if target[error] else None if row[error] else 0.0
              for error in ERRORS}
    return {"method": row["method"], "lossless": _lossless(row, target), "faster_at": pays_at(row)} | losses | {
        name: row[name] for name in ("batch_n", "speedup_batch_1", "speedup_batch_n")}


def naive_warning(rows: list[dict]) -> list[str]:
    """A sentence where repeating a season beats the target, if only in one of the two errors."""
    target, _, naive, _ = parts_of(rows)
    better = [error for error in ERRORS if naive[error] < target[error]]
    if not better:
        return []
    figures = " and ".join(f"{error.upper()} ({naive[error]:.4f} to {target[error]:.4f})" for error in better)
    judgement = ": on this data the target is of no use, and neither is speculation" if len(better) > 1 else \
        f", but not in {'MAE' if better == ['mse'] else 'MSE'}"
    return [f"{naive['method']}: better than the target in {figures}{judgement}."]


def recommendation(decision: dict[str, Any]) -> list[str]:
    """The three ways with their loss and gain, and the recommendation, which is the last line."""
    ways = decision["ways"]
    lines = [f"Loss and gain against the target ({100 * NO_LOSS:g} % or less counts as no loss):"]
    lines += [f"  {_in_words(ways[name])}" for name in ("draft", "speculation") if ways[name] is not None]
    lines += [f"  {ways['target']['method']}: no loss, 1x"]
    return [*lines, f"Recommendation: {_verdict(decision)}"]


def _in_words(way: dict[str, Any]) -> str:
    losses = ", ".join(f"{error.upper()} {_change(way[f'{error}_pct'])}" for error in ERRORS)
    speeds = ", ".join(f"{speed:.2f}x at batch {size}" for size, speed in speedups(way).items())
    return f"{way['method']}: {losses}; {speeds}"


def _change(per_cent: float | None) -> str:
    return "above 0" if per_cent is None else f"{per_cent:+.1f} %"


def _verdict(decision: dict[str, Any]) -> str:
    use, fast = decision["use"], decision["batch_sizes"]
    if use == "draft":
        return "use the draft alone"
    if use == "seasonal-naive":
        return f"use no model, {decision['method']} is better than the target"
    if use == "target":
        return "use the target alone: none of the others is known to be faster without loss"
    slow = [size for size in speedups(decision["ways"]["target"]) if size not in fast]
    where = f"at batch {' and '.join(map(str, fast))}" + (f", the target alone at {slow[0]}" if slow else "")
    return (f"use speculation with these flags ({where}), in place of --compare and every other --spec flag: "
            f"{shlex.join(decision['flags'])}")
