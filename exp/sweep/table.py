"""The table of a sweep: a csv with one row per cell and its settings in comment lines, written atomically."""
import csv
import math
from pathlib import Path

from exp.report.results import DRAFT, TARGET, write_csv
from exp.speculation import LOSSLESS
from utils.acceptance import WAYS, Parareal
from utils.errors import UserError, shorten

PARAMETERS = ("rule", "emit", "sigma", "bias", "tol", "k")  # these identify a cell
COLUMNS = ["sigma", "bias", "k", "rule", "emit", "tol", "mse", "mae", "acceptance_pct", "accepted", "attempted",
           "target_passes", "draft_passes", "ms_per_forecast", "seed"]
TEXTS = ("rule", "emit")
NOTED = ("data", "windows", "horizon", "batch_size", "device", "threads")  # of every sweep
ADDED = ("gap",)  # noted by a start that looked for it; the others continue its table, and it theirs
REPROPOSED = "lossless_reproposals"  # not noted by versions whose law-preserving rules had another default
PLACES = ("target", "draft", "data")  # paths may change between two starts, contents may not


def _parameter(value) -> str:
    return "" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)


def _measured(value) -> str:
    """Six significant digits: further ones depend on the number of threads."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _order(key: tuple) -> tuple:
    """Sort key, whatever order cells finish in: the two references, then by rule, emission and numbers."""
    rule, emit, *numbers = key
    references = (TARGET, DRAFT)
    return (references.index(rule) if rule in references else len(references), rule, emit,
            [float(number) if number else -1.0 for number in numbers])


def read_table(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """(settings, rows) of a sweep's csv, all values as text. Raises UserError for a table that is not whole."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        notes = [line[1:].partition(":") for line in lines if line.startswith("#")]
        reader = csv.DictReader([line for line in lines if not line.startswith("#")])
        named, rows = reader.fieldnames, list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or 'not text'}): give the csv of a "
                        "sweep") from None
    settings = {name.strip(): value.strip() for name, separator, value in notes if separator}
    if named != COLUMNS or not settings:
        raise UserError(f"{path} is not the table of a sweep: give the csv that "
                        "scripts/sweeps/stochastic_draft_param_sweep.sh wrote, or another name to write to")
    lost = [name for name in NOTED if name not in settings]
    if lost:
        raise UserError(f"{path} has no note of {', '.join(lost)} above its header: restore the file, or delete it")
    cells = set()
    for row in rows:
        damage = _damage(row)
        cell = tuple(row[name] for name in PARAMETERS)
        if damage or cell in cells:
            raise UserError(f"{path}: {damage or f'two rows are of one cell, {_words(row)}'}: restore the file, or "
                            "delete it")
        cells.add(cell)
    return settings, rows


def _damage(row: dict) -> str | None:
    """What is wrong with a row; None if it is whole."""
    if None in row or None in row.values():
        return f"a row does not have {len(COLUMNS)} values"
    judged = ["emit"] if row["rule"] == Parareal.name else ["k", "acceptance_pct", "emit"]
    needed = ["mse", "ms_per_forecast"] + ([] if row["rule"] in (TARGET, DRAFT) else judged)
    for name, value in row.items():
        if not value and name in needed:
            return f"a row has no {name} ({_words(row)})"
        if value and name not in TEXTS and not _is_finite(value):
            return f"{name} is {shorten(value)} in a row, where a number was expected"
    return None if row["rule"] in (TARGET, DRAFT, *WAYS) else f"the rule of a row is {shorten(row['rule'])}"


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _words(row: dict) -> str:
    return ", ".join([row["rule"], *(f"{name} {row[name]}" for name in PARAMETERS[1:] if row[name])])


class SweepTable:
    """Rows by cell, written to `path` after every `add`. An existing file with equal settings is continued.

    settings: name -> value, everything that rows depend on. Raises UserError if the file has other settings.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.rows = Path(path), {}
        self.settings = {name: str(value) for name, value in settings.items()}
        if not self.path.exists():
            return
        earlier, rows = read_table(self.path)
        for name in sorted((earlier.keys() | self.settings.keys()) - set(PLACES)):
            if name == REPROPOSED and name not in earlier and not any(row["rule"] in LOSSLESS for row in rows):
                continue
            then, now = (values.get(name, "not set") for values in (earlier, self.settings))
            if then != now and not (name in ADDED and "not set" in (then, now)):
                raise UserError(f"{self.path} holds a sweep with {name} {then}, but this one has {now}: give another "
                                "--out, or the same settings")
        self.settings |= {name: earlier[name] for name in (*PLACES, *ADDED) if name in earlier}
        self.rows = {tuple(row[name] for name in PARAMETERS): row for row in rows}

    @staticmethod
    def key(parameters: dict) -> tuple[str, ...]:
        return tuple(_parameter(parameters.get(name)) for name in PARAMETERS)

    def __contains__(self, parameters: dict) -> bool:
        return self.key(parameters) in self.rows

    def add(self, parameters: dict, measured: dict) -> None:
        """Adds a row and rewrites the file atomically, so that a kill leaves the old or the new one."""
        key = self.key(parameters)
        row = {name: _measured(measured.get(name)) for name in COLUMNS}
        self.rows[key] = row | dict(zip(PARAMETERS, key))
        notes = [f"{name}: {value}" for name, value in self.settings.items()]
        write_csv(self.path, [self.rows[key] for key in sorted(self.rows, key=_order)], COLUMNS, notes)
