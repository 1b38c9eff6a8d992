"""Pictures. Colours are the Okabe-Ito set, safe for colour-blind readers; markers help in grey.

Figures are made without pyplot, so that the backend of a notebook stays as it is.
"""
from pathlib import Path

import numpy as np
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure

from utils.decoded import ACCEPTED, BONUS, REJECTED
from utils.files import replace_when_done
from utils.scores import BANDS

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00",
                                                    "#CC79A7")
BROWN = "#7F4F24"  # not of the set
ORIGINS = {ACCEPTED: ("accepted", GREEN, ""), REJECTED: ("rejected, target's own", RED, "//"),
           BONUS: ("target's bonus patch", "#BBBBBB", "..")}

MOST_LETTERS = 30


def subplots(rows: int = 1, columns: int = 1, figsize: tuple[float, float] = (8, 5), **keywords):
    """A figure and its axes, as pyplot gives them, but without a window or a global state."""
    figure = Figure(figsize=figsize, layout=keywords.pop("layout", None))
    return figure, figure.subplots(rows, columns, **keywords)


def save_figure(figure: Figure, path: Path) -> None:
    with replace_when_done(path) as beside:
        figure.savefig(beside, format="png", dpi=110, bbox_inches="tight")


def label_of(name: str) -> str:
    """The name, cut to what an axis has room for: text is drawn letter by letter, however long."""
    return name if len(name) <= MOST_LETTERS else f"{name[:MOST_LETTERS - 1]}…"


def forecast_figure(path: Path, history, truth, forecast, names, patch_len: int, label: str, target_alone=None,
                    draft_mean=None, draft_sigma=None, origin=None, gap=None, title: str = "") -> None:
    """One panel per variable: the end of the history, the truth, the forecast; below it, the origin of each patch.

    history [L, C], truth and forecast [H, C], optional target_alone, draft_mean, draft_sigma [H, C], origin [n]:
    numpy arrays in standardised units. The band is the draft's mean +- 2 sigma, where it was consulted.
    gap [n - 1], in place of the origin: what parareal left (`Decoded.gap`).
    """
    horizon, panels = len(truth), len(names)
    shown = history[-min(len(history), max(horizon // 2, 2 * patch_len)):]
    figure, axes = subplots(panels, 1, figsize=(11, 2.9 * panels), sharex=True, squeeze=False)
    past, future = np.arange(-len(shown), 0), np.arange(horizon)
    for c, (axis, name) in enumerate(zip(axes[:, 0], names)):
        if draft_sigma is not None:
            low, high = (draft_mean[:, c] + sign * draft_sigma[:, c] for sign in (-2, 2))
            axis.fill_between(future, low, high, color=SKY, alpha=0.5, lw=0, label="draft, mean ± 2 sigma")
        if target_alone is not None:  # pale and wide, so that curves on top stay visible
            axis.plot(future, target_alone[:, c], color=ORANGE, lw=2.6, alpha=0.7, label="target alone")
        axis.plot(past, shown[:, c], color=BLACK, lw=0.9, label="history")
        axis.plot(future, truth[:, c], color=BLACK, lw=0.8, ls=(0, (1, 1)), label="truth")
        axis.plot(future, forecast[:, c], color=BLUE, lw=1.2, label=label)
        axis.axvline(-0.5, color=BLACK, lw=0.6, ls=":")
        axis.set_ylabel(f"{label_of(name)}\n(standardised)", parse_math=False)  # a name may hold a '$'
        axis.margins(x=0.01)
        borders = [*range(0, horizon, patch_len), horizon]
        if origin is not None:
            _origin_strip(axis, origin, borders)
        if gap is not None:
            _gap_strip(axis, gap, borders)
    axes[-1, 0].set_xlabel("steps after the end of the context")
    _legend_above(figure, axes[0, 0], 4, title)
    save_figure(figure, path)


def prediction_figure(path: Path, name: str, past, history, future, mean, bands=(), origin=None, patch_len: int = 1,
                      title: str = "") -> None:
    """The end of a history and the forecast after it, in the units of the series.

    past, future: times or integers (pandas); history [L], mean [H]; bands: (label, low [H], high [H]), widest first;
    origin [n] of each patch.
    """
    if hasattr(past, "tz_localize"):  # wall-clock times, as in the file
        past, future = past.tz_localize(None), future.tz_localize(None)
    figure, axis = subplots(figsize=(11, 3.4))
    for shade, (label, low, high) in zip((0.25, 0.45, 0.7), bands):
        axis.fill_between(future, low, high, color=SKY, alpha=shade, lw=0, label=label)
    axis.plot(past, history, color=BLACK, lw=0.9, label="history")
    axis.plot(future, mean, color=BLUE, lw=1.6, label="forecast, mean")
    axis.axvline(past[-1], color=BLACK, lw=0.6, ls=":")
    axis.margins(x=0.01)
    axis.set_ylabel(f"{label_of(name)}\n(units of the series)", parse_math=False)
    axis.set_xlabel("time" if hasattr(past, "tz_localize") else "row")
    if hasattr(past, "tz_localize"):
        axis.xaxis.set_major_formatter(ConciseDateFormatter(axis.xaxis.get_major_locator()))
    if origin is not None:
        starts = range(0, len(future), patch_len)
        _origin_strip(axis, origin, [*(future[start] for start in starts), future[-1]])
    _legend_above(figure, axis, 7, title)
    save_figure(figure, path)


def _legend_above(figure, axis, columns: int, title: str) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=columns, fontsize=8,
                  frameon=False, title=title)


def _origin_strip(axis, origin, borders) -> None:
    """One box per patch, coloured and hatched by origin; borders [n + 1] on x."""
    _strip(axis, borders, [(*ORIGINS[int(kind)], "") for kind in origin])


def _gap_strip(axis, gap, borders) -> None:
    """One box per patch with its gap; the last patch, which is never proposed, has none."""
    _strip(axis, borders, [("gap left, in standard deviations of the window", SKY, "", f"{value:.2g}") if value else
                           ("the target's own patch", GREEN, "", "") for value in gap])


def _strip(axis, borders, boxes) -> None:
    """A strip of boxes below the curves. boxes: name for the legend, colour, hatch and text of each."""
    low, high = axis.get_ylim()
    axis.set_ylim(low - 0.09 * (high - low), high)
    seen = set()
    for (name, colour, hatch, text), start, stop in zip(boxes, borders, borders[1:]):
        axis.axvspan(start, stop, ymin=0, ymax=0.06, facecolor=colour, edgecolor="white", hatch=hatch, lw=0.8,
                     label=None if name in seen else name)
        seen.add(name)
        if text:
            axis.text(start + (stop - start) / 2, 0.03, text, transform=axis.get_xaxis_transform(), ha="center",
                      va="center", fontsize=7)


def compare_figure(path: Path, rows: list[dict], batch_size: int, title: str) -> None:
    """Time against error, one panel for batch 1 and one for `batch_size`; whiskers: 10th to 90th percentile.

    A method without a model (seasonal-naive) would squash the axes: it is named in the legend with its figures.
    """
    figure, axes = subplots(1, 2, figsize=(12, 4.6), sharey=True)
    colours, markers = [BLACK, ORANGE, "#999999", RED, SKY, GREEN, BLUE, PURPLE, BROWN], "s^xvDoP*h"
    for axis, key, batch in zip(axes, ("ms_batch_1", "ms_batch_n"), (1, batch_size)):
        for i, row in enumerate(rows):
            drawn = row.get("target_passes") or row.get("draft_passes")
            label = row["method"] + ("" if drawn else f": MSE {row['mse']:.3f}, not drawn")
            axis.scatter(*([row[key]], [row["mse"]]) if drawn else ([], []), s=80, color=colours[i % len(colours)],
                         marker=markers[i % len(colours)], label=label)
            if drawn:
                axis.hlines(row["mse"], row[f"{key}_p10"], row[f"{key}_p90"], color=colours[i % len(colours)], lw=1.5)
        axis.axhline(rows[0]["mse"], color=BLACK, lw=0.7, ls=":", zorder=0)
        axis.axvline(rows[0][key], color=BLACK, lw=0.7, ls=":", zorder=0)
        axis.set_xlim(left=0)
        axis.set_xlabel(f"time per forecast at batch {batch} (ms); left and low is better")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("MSE (standardised)")
    _legend_above(figure, axes[0], 4, f"{title}; whiskers: 10th to 90th percentile of the times")
    save_figure(figure, path)


def decode_speed_figure(path: Path, rows: list[dict]) -> None:
    """Milliseconds per batch by mode (bars, logarithmic), one group per cell of scripts/benchmark/decode_speed.py."""
    cells = list(dict.fromkeys((row["config"], row["context"], row["horizon"], row["batch"]) for row in rows))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    figure, axis = subplots(figsize=(max(6.5, 1.3 * len(cells)), 4.6))
    width = 0.8 / len(modes)
    for i, (mode, colour, hatch) in enumerate(zip(modes, (BLACK, ORANGE, SKY, BLUE, "#BBBBBB"),
                                                  ("", "//", "..", "", "xx"))):
        values = [row["ms_median"] for row in rows if row["mode"] == mode]
        axis.bar(np.arange(len(values)) + (i - len(modes) / 2 + 0.5) * width, values, width, label=mode, color=colour,
                 hatch=hatch, edgecolor="white")
    axis.set_yscale("log")
    axis.set_ylabel("time of a batch of forecasts (ms)")
    axis.set_xticks(np.arange(len(cells)), [f"{name}\nL {context}\nH {horizon}\nbatch {batch}"
                                            for name, context, horizon, batch in cells], fontsize=8)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(ncol=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)


def pit_figure(path: Path, rows: dict[str, dict], title: str) -> None:
    """Left: PIT histogram, flat for the correct law. Right: coverage of the bands, by lead.

    rows: label -> scores of `utils.scores.PathMetrics`; the first is drawn as bars, the others as lines.
    """
    figure, (left, right) = subplots(1, 2, figsize=(11, 3.8))
    styles = [(BLUE, "o", "-"), (RED, "^", "--")]
    for i, ((label, scores), (colour, marker, line)) in enumerate(zip(rows.items(), styles)):
        bins = np.linspace(0, 1, len(scores["pit"]) + 1)
        if i == 0:
            left.stairs(scores["pit"], bins, fill=True, color=SKY, label=label)
        else:
            left.stairs(scores["pit"], bins, color=colour, lw=1.6, ls=line, label=label)
        for band in BANDS:
            held = scores["by_patch"][f"coverage_{band}_pct"]
            right.plot(np.arange(1, len(held) + 1), held, color=colour, marker=marker, ls=line, lw=1.2, ms=5,
                       label=label if band == 50 else None)
    left.axhline(1, color=BLACK, lw=0.9, ls=":")
    left.set(xlabel="probability integral transform of the truth", ylabel="density (1: correct law)", xlim=(0, 1))
    left.set_ylim(0, 1.3 * max(1.0, *(max(scores["pit"]) for scores in rows.values())))
    for band in BANDS:
        right.axhline(band, color=BLACK, lw=0.9, ls=":")
    right.set(xlabel="patch of the forecast", ylabel="truths inside the band (%)", ylim=(0, 102), yticks=list(BANDS))
    right.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8, loc="upper center", ncol=2)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)


def attention_figure(path: Path, weights: list[np.ndarray]) -> None:
    """weights: one [heads, T, T] per layer; shown as the mean over heads."""
    figure, axes = subplots(1, len(weights), figsize=(4.6 * len(weights), 4.4), squeeze=False)
    for layer, (axis, values) in enumerate(zip(axes[0], weights)):
        image = axis.imshow(values.mean(axis=0), cmap="cividis")
        axis.set(title=f"layer {layer + 1}, mean over heads", xlabel="key token c*N + t", ylabel="query token c*N + t")
        figure.colorbar(image, ax=axis, shrink=0.8)
    figure.tight_layout()
    save_figure(figure, path)
