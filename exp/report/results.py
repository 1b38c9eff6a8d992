"""Results as files: metrics.json, the published text files, csv tables; and tables for the terminal."""
import csv
import io
import math
import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import append_text, replace_when_done, write_json, write_text
from utils.scores import BANDS

FORECAST_LOG = "result_long_term_forecast.txt"
INFERENCE_LOG = "result_inference_summary.txt"
BREAKDOWN_LOG = "result_inference_breakdown.txt"
PARTIAL = "metrics_partial.json"
MOST_FILES = 20
MOST_SAMPLE_BYTES = 8 * 2**30
TARGET, DRAFT = "target alone", "draft alone"  # reference rows of every table
HARDLY_ACCEPTED = 10  # per cent; fewer accepted proposals leave nearly every target pass to be done
POINT_METRICS = ("mse", "mae", "rmse", "mape", "mspe", "smape")


def write_metrics(folder: Path, metrics: dict) -> None:
    """folder/metrics.json: everything, machine readable."""
    write_json(Path(folder) / "metrics.json", metrics)
    (Path(folder) / PARTIAL).unlink(missing_ok=True)


def write_partial(folder: Path, metrics: dict) -> Path:
    """Writes the results of an interrupted run; a metrics.json of an older run is kept."""
    write_json(Path(folder) / PARTIAL, metrics)
    return Path(folder) / PARTIAL


def log_forecast(setting: str, metrics: dict) -> None:
    values = ", ".join(f"{name}:{metrics[name]}" for name in (*POINT_METRICS, "data_path"))
    append_text(FORECAST_LOG, f"{setting}  \n{values}\n\n")


def log_inference(setting: str, metrics: dict) -> None:
    append_text(INFERENCE_LOG, f"{setting}  \n{inference_line(metrics)}\n{published_fields(metrics)}\n\n")


def log_breakdown(setting: str, breakdown: dict) -> None:
    append_text(BREAKDOWN_LOG, f"{setting}  \n{breakdown_line(breakdown)}\n\n")


def errors_line(metrics: dict) -> str:
    return ", ".join(f"{name}:{metrics[name]:.4f}" for name in ("mse", "mae", "mase") if metrics.get(name) is not None)


def files_table(files: dict[str, dict]) -> str:
    """Errors of every file of a pool, for the terminal: of the first MOST_FILES."""
    rows = [{"file": name} | scores for name, scores in list(files.items())[:MOST_FILES]]
    more = len(files) - len(rows)
    return format_table(rows, {"file": "file", "mse": "MSE", "mae": "MAE", "mase": "MASE"}) \
        + (f"\nand {more} more files (metrics.json has them all)" if more else "")


def write_series(folder: Path, rows: list[dict]) -> None:
    """folder/series.csv: errors of every series; rows with a method tell it."""
    columns = ["file", "series", "mse", "mae", "mase"]
    write_csv(folder / "series.csv", rows, [*(["method"] if rows and "method" in rows[0] else []), *columns])


def inference_line(metrics: dict) -> str:
    parts = [f"windows: {metrics['windows']}", f"batch_size: {metrics['batch_size']}",
             f"ms_per_forecast: {metrics['ms_per_forecast']:.3f}"]
    if metrics.get("processes", 1) > 1:
        parts[-1] += f" (of work, added up over {metrics['processes']} processes)"
        parts.append(f"windows a second: {metrics['windows_per_second']:.1f}")
    if "acceptance_pct" in metrics:
        parts += [f"acceptance: {_share(metrics['acceptance_pct'])} ({metrics['accepted']}/{metrics['attempted']})"
                  + possible(metrics),
                  f"of all proposed: {_share(metrics['used_pct'])}",
                  f"mean accepted length: {metrics['mean_accepted_length']:.3f}",
                  f"histogram: {metrics['accepted_length_histogram']}",
                  f"target passes: {metrics['target_passes']:.3f}", f"draft passes: {metrics['draft_passes']:.3f}"]
    if "gap_by_patch" in metrics:
        parts += [f"target passes: {metrics['target_passes']:.3f}",
                  f"histogram: {metrics['target_passes_histogram']}", f"draft passes: {metrics['draft_passes']:.3f}",
                  f"gap left, by patch: {' '.join(f'{gap:.3f}' for gap in metrics['gap_by_patch'])}"]
    return ", ".join(parts)


def published_fields(metrics: dict) -> str:
    """The fields by which STRIDE's scripts look for times and acceptance: name:value, in seconds and per cent."""
    batches = math.ceil(metrics["windows"] / metrics["batch_size"])
    fields = (f"total_gen_time_s:{metrics['seconds']:.6f}, "
              f"per_batch_s:{metrics['seconds'] / batches:.6f}")
    if "acceptance_pct" in metrics:
        pct = metrics["acceptance_pct"]  # None where nothing was judged
        fields += (f"\naccepted:{metrics['accepted']}, attempted:{metrics['attempted']}, "
                   f"acceptance_pct:{float('nan') if pct is None else pct:.2f}")
    return fields


def possible(metrics: dict) -> str:
    """What the best law-preserving rule could accept; it bounds single patches, not a round of several."""
    most = metrics.get("most_pct")
    return "" if most is None else f" of at most {most:.2f} %, patch by patch, for these means"


def _share(per_cent: float | None) -> str:
    """'-' where nothing was measured."""
    return "-" if per_cent is None else f"{per_cent:.2f} %"


def rejection_note(metrics: dict, patches: int) -> str | None:
    """Warns of a speculative test that was nearly plain decoding: it then says nothing in favour of its rule."""
    accepted, passes = metrics.get("acceptance_pct"), metrics.get("target_passes")
    if accepted is None or accepted >= HARDLY_ACCEPTED:
        return None
    return (f"only {accepted:.1f} % of the proposals were accepted, which leaves {passes:.2f} of {patches} target "
            "passes: this is nearly plain decoding, plus the cost of the "
            f"{'proposals' if metrics.get('draft_passes') == 0 else 'draft'}")


def breakdown_line(breakdown: dict) -> str:
    return ", ".join(f"{name}: {part['seconds']:.3f} s ({part['share_pct']:.1f} %)"
                     + (f" in {part['passes']} passes" if "passes" in part else "")
                     for name, part in breakdown.items())


def samples_line(scores: dict) -> str:
    """One-line summary of metrics['samples'] for the terminal."""
    def bands(part):
        return "/".join(f"{part[f'coverage_{band}_pct']:.1f}" for band in BANDS)
    line = (f"samples: {scores['paths']} paths for each of {scores['windows']} windows, CRPS {scores['crps']:.4f}, "
            f"energy score {scores['energy_score']:.3f}, coverage of the 50/80/95 % bands {bands(scores)} %")
    by_patch = scores["by_patch"]["coverage_95_pct"]
    if len(by_patch) > 1:
        line += f" (of the 95 % band {by_patch[0]:.1f} % in the first patch, {by_patch[-1]:.1f} % in the last)"
    if "acceptance_pct" in scores:
        line += f", acceptance {_share(scores['acceptance_pct'])}{possible(scores)}"
    if "divergence_nats" in scores:
        line += ", " + law_of_paths(scores)
    rolling = scores["rolling"]
    return line + f"; rescaled by preceding windows: CRPS {rolling['crps']:.4f}, {bands(rolling)} %"


def law_of_paths(scores: dict) -> str:
    """How far the law of paths by parareal is from the target's."""
    nats = scores["divergence_nats"]
    if nats is None:
        return ("law unknown (--spec_tol ends each path by its own noise; --spec_tol 0 fixes the number of passes, and "
                "then the divergence is measured)")
    variation = min(1.0, (nats / 2) ** 0.5)
    return (f"{nats:.2g} nats a path from the target's law, a total variation of at most {variation:.2g}"
            + (": lossless" if scores["lossless"] else ""))


def refuse_huge_samples(shape: tuple[int, int, int, int]) -> None:
    """Raises UserError if samples.npz would be too large; shape: windows, paths, horizon, variables."""
    size = 4 * math.prod(shape)
    if size > MOST_SAMPLE_BYTES:
        raise UserError(f"`save_samples`: {' x '.join(map(str, shape))} (windows, paths, steps, variables) take "
                        f"{size / 2**30:.0f} GiB: lower `num_samples` or give `test_windows`")


@contextmanager
def samples_file(path: Path, shape: tuple[int, int, int, int], **indices: Sequence[int]):
    """Writes samples.npz incrementally: yields add(paths [b, S, H, C], truth [b, H, C]), to be called in order.

    indices: further arrays of the file by name, a number for every window each.
    """
    truths = []
    with replace_when_done(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        with archive.open("samples.npy", "w", force_zip64=True) as handle:
            np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})

            def add(paths, truth):
                handle.write(np.ascontiguousarray(paths.cpu().numpy(), dtype="<f4").tobytes())
                truths.append(truth.cpu().numpy().astype("<f4"))
            yield add
        for name, array in (("truth", np.concatenate(truths)), *indices.items()):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as handle:
                np.lib.format.write_array(handle, np.asarray(array), allow_pickle=False)


def write_csv(path: Path, rows: list[dict], columns: list[str], notes: Sequence[str] = ()) -> None:
    """notes: comment lines above the header, which pandas.read_csv(path, comment='#') skips."""
    text = io.StringIO()
    text.writelines(f"# {note}\n" for note in notes)
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def format_table(rows: list[dict], columns: dict[str, str]) -> str:
    """Aligned text. columns: key -> heading; a missing or None value shows as '-'."""
    lines = [list(columns.values())]
    lines += [[_cell(row.get(key)) for key in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [" | ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
            for line in lines]
    text.insert(1, "-+-".join("-" * w for w in widths))
    return "\n".join(text)


def _cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return str(value)
