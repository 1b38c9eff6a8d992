"""Pictures of a sweep; colours and saving as in exp.report.plots. Markers differ too, for greyscale print."""
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter

from exp.report.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, save_figure, subplots
from exp.report.results import DRAFT, TARGET

STYLES = {"tolerance": (BLUE, "o"), "simplified": (RED, "D"), "exact": (PURPLE, "v"), "coupling": (GREEN, "P"),
          "parareal": (SKY, "^")}
OTHER_STYLE = ("#999999", "X")
LINES = ["-", "--", ":", "-."]  # of the values of K, in turn
REFERENCES = {TARGET: (BLACK, "s", "-"), DRAFT: (ORANGE, "^", "--")}  # colour, marker, line
# column -> label of the axis, and how to read it
LEFT = "Lower is better, and so is further left."
COSTS = {"target_passes": ("target passes per forecast", LEFT), "ms_per_forecast": ("time per forecast (ms)", LEFT),
         "acceptance_pct": ("accepted of the proposals judged (%)", "Lower is better.")}
ERRORS = {"mse": "MSE", "mae": "MAE"}
# per cent: where errors reach beyond FAR, as those of sampled forecasts do, the axis is logarithmic from LINEAR on
LINEAR, FAR = 2.0, 20.0
TICKS = [0.0, *(sign * part * 10.0**power for sign in (1, -1) for power in range(7) for part in (1, 2, 5))]
CAPTION = ("Each marker is one cell of the sweep. Its colour and shape name the rule; a hollow one puts samples into "
           "the forecast, whose noise counts as error, a filled one puts means there. A larger marker and another kind "
           "of line: a larger K (proposals per round). Lines join the cells of one rule and K in the order of {order}, "
           "of which a larger one usually accepts more. {references}{reading}")
WITH_TARGET = "Black: the target alone, 0 %. Dashed orange: the draft alone. "
LOGARITHMIC = f" The error axis is logarithmic from {LINEAR:g} % on."


def errors_figure(path: Path, cells: pd.DataFrame, references: pd.DataFrame, cost: str, title: str) -> None:
    """A column of COSTS against MSE and MAE: in per cent above the target alone, or as they are without its row."""
    relative = cells["mse_pct"].notna().all()
    figure, axes = subplots(1, 2, figsize=(12, 5.6))
    far = False
    for axis, (error, name) in zip(axes, ERRORS.items()):
        column = f"{error}_pct" if relative else error
        _draw_references(axis, references, cost, column)
        _draw_lines(axis, cells, cost, column)
        axis.set(xlabel=COSTS[cost][0], ylabel=f"{name}, change from the target alone (%)" if relative
                 else f"{name} (standardised)")
        if relative:
            far |= _percent_axis(axis, pd.concat([cells[column], references[column]]).abs().max())
        axis.grid(alpha=0.25)
        if cost != "acceptance_pct":
            axis.set_xlim(left=-0.02 * axis.get_xlim()[1])
    order = " or ".join(name for name, values in (("sigma", cells["sigma"]), ("tolerance", cells["tol"]))
                        if values.notna().any())
    caption = CAPTION.format(order=order or "the grid", reading=COSTS[cost][1],
                             references=WITH_TARGET if relative else "")
    _finish(figure, axes[0], path, title, caption + (LOGARITHMIC if far else ""))


def _draw_lines(axis, cells: pd.DataFrame, cost: str, column: str) -> None:
    """One line for each rule, emission, K and bias; none for a rule that has no such cost."""
    ks = sorted(cells["k"].dropna().unique())
    for (rule, emit, k, _), rows in cells.groupby(["rule", "emit", "k", "bias"], dropna=False):
        colour, marker = STYLES.get(rule, OTHER_STYLE)
        rows = rows.sort_values(["sigma", "tol"])
        if rows[cost].isna().all():
            continue
        number = ks.index(k) if pd.notna(k) else max(0, len(ks) - 1)  # parareal proposes all that is left
        axis.plot(rows[cost], rows[column], color=colour, marker=marker, ls=LINES[number % len(LINES)], lw=1.1,
                  ms=4.5 + 5 * number / max(1, len(ks) - 1), mec=colour, mfc="white" if emit == "sample" else colour,
                  alpha=0.8, label=f"{rule}, {emit}" + (f", K {k:g}" if pd.notna(k) else ""))


def _draw_references(axis, references: pd.DataFrame, cost: str, column: str) -> None:
    """A line at the error of each model alone, and a marker at its cost, if it has one."""
    for reference in references.to_dict("records"):
        colour, marker, line = REFERENCES[reference["rule"]]
        axis.axhline(reference[column], color=colour, lw=1.4, ls=line, zorder=0)
        at = 0 if cost == "target_passes" and reference["rule"] == DRAFT else reference[cost]
        axis.plot([at], [reference[column]], color=colour, marker=marker if pd.notna(at) else "", ms=9, ls=line, lw=1.4,
                  zorder=4, mec=BLACK, label=reference["rule"])


def _percent_axis(axis, furthest: float) -> bool:
    """Ticks with their sign; linear near zero and logarithmic beyond, where errors reach far: then True."""
    if furthest > FAR:
        axis.set_yscale("symlog", linthresh=LINEAR, linscale=1.2)
        axis.yaxis.set_major_locator(FixedLocator(TICKS))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    return furthest > FAR


def heatmap_figure(path: Path, cells: pd.DataFrame, title: str) -> None:
    """Sigma x bias, one column of panels per K: acceptance, MSE and MAE. cells: of one rule and emission."""
    ks = sorted(cells["k"].unique())
    measures = (("acceptance_pct", "accepted (%)", 0), ("mse", "MSE (standardised)", 4),
                ("mae", "MAE (standardised)", 4))
    figure, axes = subplots(3, len(ks), figsize=(1.6 + 2.7 * max(2, len(ks)), 8.2), squeeze=False, layout="constrained")
    for line, (column, name, places) in enumerate(measures):
        low, high = cells[column].min(), cells[column].max()
        for axis, k in zip(axes[line], ks):
            grid = cells[cells["k"] == k].pivot_table(index="sigma", columns="bias", values=column)
            image = axis.imshow(grid, cmap="cividis", vmin=low, vmax=high, aspect="auto", origin="lower")
            for (i, j), value in np.ndenumerate(grid.to_numpy()):
                dark = value < (low + high) / 2
                axis.text(j, i, f"{value:.{places}f}", ha="center", va="center", fontsize=7,
                          color="white" if dark else "black")
            axis.set_xticks(range(len(grid.columns)), [f"{value:g}" for value in grid.columns])
            axis.set_yticks(range(len(grid.index)), [f"{value:g}" for value in grid.index])
            axis.set_title(f"K = {k:g}", fontsize=10)
            axis.label_outer()
        axes[line, 0].set_ylabel("sigma (standardised)")
        figure.colorbar(image, ax=list(axes[line]), label=name, shrink=0.9)
    figure.supxlabel(textwrap.fill("bias (factor on the acceptance ratio). Each field is one cell of the sweep and "
                                   "holds its value. Colours: dark blue for the lowest value of the row of panels, "
                                   "yellow for the highest; more is better in the top row, less in the other two.",
                                   40 + 30 * max(2, len(ks))), fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _finish(figure, axis, path: Path, title: str, caption: str) -> None:
    """Title above; below, the legend of all panels and what the markers mean."""
    labels = dict(zip(*reversed(axis.get_legend_handles_labels())))  # each once
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.legend(labels.values(), labels.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=5, fontsize=8,
                  frameon=False)
    rows = -(-len(labels) // 5)
    figure.text(0.5, -0.035 * rows - 0.02, textwrap.fill(caption, 170), ha="center", va="top", fontsize=8)
    save_figure(figure, path)
