"""The documents name what is there: commands, flags, settings files, links. Their Python is not run here."""
import contextlib
import io
import itertools
import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT

import utils
from data_provider import download
from exp.flags import build_parser
from exp.foreign_flags import WORDS
from scripts.benchmark import (
    decode_memory,
    decode_speed,
    fidelity,
    gpu_grid,
    norm_rolls,
    panel,
    pool_memory,
    public_models,
)
from scripts.results import measure
from scripts.sweeps import analyze_sweep_results, param_sweep

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"scripts.benchmark.decode_memory": decode_memory.main, "scripts.benchmark.decode_speed": decode_speed.main,
            "scripts.benchmark.fidelity": fidelity.main, "scripts.benchmark.gpu_grid": gpu_grid.main,
            "scripts.benchmark.norm_rolls": norm_rolls.main, "scripts.benchmark.panel": panel.main,
            "scripts.benchmark.pool_memory": pool_memory.main,
            "scripts.benchmark.public_models": public_models.main,
            "scripts.results.measure": measure.main, "scripts.sweeps.param_sweep": param_sweep.main,
            "scripts.sweeps.analyze_sweep_results": analyze_sweep_results.main,
            "data_provider.download": lambda argv: download.main()}
# besides its own flags it takes those of run.py
WITH_RUN_FLAGS = ("scripts.benchmark.fidelity", "scripts.benchmark.norm_rolls", "scripts.sweeps.param_sweep")
FOREIGN = {"--nproc_per_node", "--standalone", "--head", "--fuzz", "--kills"}  # of torchrun, ray and our pytest
# what a program writes or a user brings, not part of the repository
MADE = ("checkpoints/", "dataset/", "test_results/", "benchmark/", "results/", ".venv/", "data/",
        "result_long_term_forecast.txt", "result_inference_summary.txt", "result_inference_breakdown.txt")
FILE = re.compile(r"(?<![\w./*{-])[\w./*-]*(?:\{[\w.,*-]*\}[\w./*-]*)*\.(?:py|sh|ipynb|md|toml|txt|cff)(?![\w/])")
FLAG = re.compile(r"(?<![\w-])--[a-z]\w*\*?")
NAMED = [document.relative_to(ROOT).as_posix() for document in DOCUMENTS]


def code_blocks(text: str) -> list[str]:
    return [block.rstrip("`") for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)]


def without_blocks(text: str) -> str:
    """The text with code blocks emptied; lines keep their numbers."""
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)


def code(text: str) -> list[str]:
    """Code blocks and `inline code`."""
    return code_blocks(text) + re.findall(r"`([^`]+)`", without_blocks(text))


def commands(text: str) -> list[str]:
    """Lines of code with continuations joined, comments cut off, one command each."""
    lines = [line for piece in code(text) for line in re.sub(r"\\\n\s*", " ", piece).splitlines()]
    return [part.strip() for line in lines for part in re.split(r"\s#\s|&&|;|\|", line)[:1] if part.strip()]


def spread(pattern: str) -> list[str]:
    """'a{b,c}' -> ['ab', 'ac']"""
    parts = re.split(r"\{([^}]*)\}", pattern)
    options = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*options)]


def flags_of(help_text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", help_text))


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Program -> its flags, read from what --help says; 'run.py' among them."""
    found = {"run.py": flags_of(build_parser().format_help())}
    for name, main in PROGRAMS.items():
        said, argv = io.StringIO(), sys.argv
        sys.argv = [name, "--help"]
        try:
            with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as stop:
                main(["--help"])
        finally:
            sys.argv = argv
        assert stop.value.code == 0, name
        usage = said.getvalue()
        # of the flags' own lines, not of the examples above them
        found[name] = {flag for line in re.split(r"\noptions:|\noptional arguments:", usage)[-1].splitlines()
                       if line.startswith("  -") for flag in flags_of(line)}
        if name in WITH_RUN_FLAGS:
            found[name] |= found["run.py"]
    return found


def program_of(command: str) -> str | None:
    """The Python program that a command starts; None: a bash script, or no program of this project."""
    module = re.search(r"\bpython3? -m ([\w.]+)", command)
    if module:
        return module[1]
    path = re.search(r"(?:^|\s)(?:\S*/)?((?:scripts/\S+|run)\.py)\b", command)
    return None if path is None else path[1] if path[1] == "run.py" else path[1].removesuffix(".py").replace("/", ".")


def unknown_flags(text: str, flags: dict[str, set[str]]) -> list[str]:
    everything = set().union(*flags.values()) | FOREIGN | {"--help"}
    found = []
    for command in commands(text):
        known = flags.get(program_of(command) or "", everything) | FOREIGN | {"--help"}
        for flag in FLAG.findall(command):
            fits = any(name.startswith(flag[:-1]) for name in known) if flag.endswith("*") else flag in known
            if not fits:
                found.append(f"{flag} in: {command}")
    return found


def missing_files(text: str, root: Path, beside: Path) -> list[str]:
    """Scripts and documents that are named and not there; a bare name may lie anywhere."""
    found = []
    for named in dict.fromkeys(name for piece in code(text) for name in FILE.findall(piece)):
        for name in spread(named):
            if name.removeprefix("./").startswith(MADE) or name.startswith(("/", "$", "~", "..", "-", ".")):
                continue
            there = any(root.glob(name)) or any(beside.glob(name)) if "/" in name else any(root.rglob(name))
            if not there:
                found.append(name)
    return found


def missing_modules(text: str, root: Path) -> list[str]:
    """Modules of this project after `python -m`."""
    names = {program_of(command) for command in commands(text)} - {None}
    own = {name for name in names if name.split(".")[0] in ("scripts", "data_provider", "exp")}
    return sorted(name for name in own if not (root / name.replace(".", "/")).with_suffix(".py").is_file())


def missing_settings(text: str, root: Path) -> list[str]:
    """Settings files that a script of an experiment is started with."""
    found = []
    for command in commands(text):
        started = re.match(r"(?:\w+=\S+ )*bash scripts/(?!run_tests)(?:\w+/)*\w+\.sh ([a-z]\w*)", command)
        if started and not (root / "scripts" / "settings" / f"{started[1]}.sh").is_file():
            found.append(f"{started[1]} in: {command}")
    return found


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} +(.*?)\s*$", without_blocks(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(text: str, document: Path) -> list[str]:
    """Links and images to files that are not there, or to headings that are not in them."""
    found = []
    prose = without_blocks(text)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r"(?:src|href)=\"([^\"]+)\"", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        there = file.exists()
        if there and anchor:
            there = anchor in anchors(file.read_text(encoding="utf-8") if path else text)
        if not there:
            found.append(target)
    return found


def long_lines(text: str, most: int = 120) -> list[str]:
    """Numbers of the lines that are too long to read; tables, images and code cannot be broken."""
    return [f"{number} ({len(line)})" for number, line in enumerate(without_blocks(text).splitlines(), 1)
            if len(line) > most and not line.lstrip().startswith("|") and "![" not in line]


@pytest.mark.parametrize("name", NAMED)
def test_flags_in_documents_exist(name, flags):
    assert not unknown_flags((ROOT / name).read_text(encoding="utf-8"), flags)


def test_flags_of_other_programs_are_those_that_an_error_explains(flags):
    """Without dashes, as they are flags there only."""
    rows = [line.split("|")[1] for line in (ROOT / "docs/FROM_OPENLTM.md").read_text().splitlines() if line[:1] == "|"]
    named = {name for cell in rows for name in re.findall(r"`(\w+)(?: \w+)?`", cell)}
    assert len(named) > 15 and named <= set(WORDS)
    assert not {f"--{name}" for name in named} & flags["run.py"]


@pytest.mark.parametrize("name", NAMED)
def test_commands_in_documents_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    missing = missing_files(text, ROOT, (ROOT / name).parent)
    assert not missing + missing_modules(text, ROOT) + missing_settings(text, ROOT)


@pytest.mark.parametrize("name", NAMED)
def test_links_in_documents_resolve(name):
    assert not broken_links((ROOT / name).read_text(encoding="utf-8"), ROOT / name)


@pytest.mark.parametrize("name", NAMED)
def test_lines_of_documents_can_be_read(name):
    assert not long_lines((ROOT / name).read_text(encoding="utf-8"))


def test_the_programs_were_asked(flags):
    # else every flag would be known
    assert {"--spec_k", "--no-flash_attention"} <= flags["run.py"] and "--cells" not in flags["run.py"]
    assert {"--cells", "--budget_s"} <= flags["scripts.benchmark.decode_speed"]
    assert "--spec_k" not in flags["scripts.benchmark.decode_speed"]
    assert {"--bias", "--rolling"} <= flags["scripts.sweeps.param_sweep"]
    assert flags["data_provider.download"] == {"--help", "--folder"}


BAD = """
Give `--spec_tolerance 1`, or `--draft_scales_*`; see [this](nowhere.md), [that](#nothing) and ![a](docs/img/no.png).
Run `bash scripts/no.sh`, edit `scripts/settings/{etth1,etth9}.sh`, read `GUIDE.md`, `python -m scripts.benchmark.no`.

```bash
.venv/bin/python -m scripts.benchmark.decode_speed --cells a \\
  --spec_k 3   # --not_a_flag
bash scripts/quickstart.sh etth9 --train_epochs 1
```
"""


def test_what_is_not_there_is_found(flags):
    unknown = [line.split()[0] for line in unknown_flags(BAD, flags)]
    assert unknown == ["--spec_k", "--spec_tolerance", "--draft_scales_*"]
    assert missing_files(BAD, ROOT, ROOT) == ["scripts/no.sh", "scripts/settings/etth9.sh", "GUIDE.md"]
    assert missing_modules(BAD, ROOT) == ["scripts.benchmark.no"]
    assert [line.split()[0] for line in missing_settings(BAD, ROOT)] == ["etth9"]
    assert broken_links(BAD, ROOT / "README.md") == ["nowhere.md", "#nothing", "docs/img/no.png"]
    long = "x" * 121
    assert long_lines(f"{long}\n| {long} |\n![{long}](x)\n```\n{long}\n```\n{long}") == ["1 (121)", "7 (121)"]


def test_flags_of_other_programs_may_not_be_given_as_ours(flags):
    text = "`pred_len` is not a flag; neither is `--pred_len`, nor `python run.py --pred_len 96`, nor `--prod_len`\n"
    assert [line.split()[0] for line in unknown_flags(text, flags)] == ["--pred_len", "--pred_len", "--prod_len"]


def test_what_is_there_is_not_found(flags):
    good = ("## A heading, *with* `code`\n`python run.py --spec_k 3 --draft_scale_*`, [up](#a-heading-with-code), "
            "`bash scripts/quickstart.sh tiny --quiet`, `run.py`, `scripts/{quickstart,run_tests}.sh`, "
            "`torchrun --nproc_per_node 2 run.py --ddp`, [a](docs/SWEEP_GUIDE.md), `checkpoints/x/notes.md`\n")
    assert not unknown_flags(good, flags) + missing_files(good, ROOT, ROOT) + missing_settings(good, ROOT)
    assert not broken_links(good, ROOT / "README.md") + long_lines(good, 300)


def test_the_example_of_the_front_page_runs(monkeypatch):
    block = next(code for code in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"),
                                             flags=re.DOTALL) if "patchspec" in code)
    monkeypatch.setitem(sys.modules, "patchspec", utils)  # installed, the library has this name: see test_install
    names = {"my_model": lambda x: x[:, -16:], "my_small_model": lambda x: 0.99 * x[:, -16:]}
    exec(block, names)
    assert names["out"].forecast.shape == (4, 96, 3) and int(names["out"].target_passes.max()) <= 6
