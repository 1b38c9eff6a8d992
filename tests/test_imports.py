"""Arrows between the parts of the program run down: read from the sources, not from what happens to be loaded."""
import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT

# part -> the parts of this project that it may import; scripts and run.py may import all of them
BELOW = {
    "utils": {"utils"},
    "layers": {"layers"},
    "models": {"models", "layers", "utils"},
    "data_provider": {"data_provider", "utils"},
    "exp": {"exp", "models", "data_provider", "utils"},
}
PROJECT = {*BELOW, "scripts", "run", "tests"}
ONLY_TORCH = ("utils", "layers")  # of what is not in the standard library
LIBRARIES = ("utils", "layers", "models", "data_provider")  # they know no command line
OWN_COMMAND_LINE = "data_provider/download.py"
TERMINAL = "exp/program.py"  # the one place that prints
FOLDERS = ("train", "evaluate", "predict", "report", "sweep")  # of exp
CONSTANTS = "exp.schedules"  # names of schedules, which a flag chooses from
# what must not import which folders of exp
BLIND = dict.fromkeys(("exp.settings", "exp.flags", "exp.options"), FOLDERS) | {
    "exp.report": ("evaluate", "predict", "sweep")}
FLAG = re.compile(r"(^|[^-\w])--[a-z]\w+")


def sources(root: Path, *parts: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(path for part in parts for path in (root / part).rglob("*.py")):
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_of(name: str) -> str:
    """'exp/train/losses.py' -> 'exp.train.losses'"""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(root: Path, name: str, tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """(line, absolute name of the module, whether it was imported relatively), wherever it stands in the file."""
    package = name.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # of this project: a module, or a name in one; of others: either
                inner = root / base.replace(".", "/") / alias.name
                known = base.split(".")[0] not in PROJECT or inner.is_dir() or inner.with_suffix(".py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if known else base, bool(node.level)


def below(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def wrong_imports(root: Path) -> list[str]:
    """Imports that run up, in words."""
    found = []
    for name, tree in sources(root, *BELOW):
        part, own = name.split("/")[0], module_of(name)
        for line, module, relative in imports(root, name, tree):
            top, where = module.split(".")[0], f"{name}:{line} imports {module}"
            if top in PROJECT and top not in BELOW[part]:
                found.append(f"{where}, which is not below {part}")
            if part == "utils" and top == "utils" and not relative:
                found.append(f"{where} by its name: utils is installed under another one")
            if part in ONLY_TORCH and top not in PROJECT | {"torch"} | sys.stdlib_module_names:
                found.append(f"{where}: {part} needs torch only")
            if below(module, "matplotlib.pyplot"):
                found.append(f"{where}, which changes a notebook's backend")
            for blind, folders in BLIND.items():
                if below(own, blind) and module != CONSTANTS and any(below(module, f"exp.{each}") for each in folders):
                    found.append(f"{where}: {blind} must not know it")
    return found


def cycle_in_exp(root: Path) -> list[str] | None:
    """A way around between the folders and the single modules of exp, if there is one."""
    def node(module: str) -> str:
        return module if module == CONSTANTS else ".".join(module.split(".")[:2])
    arrows: dict[str, set[str]] = {}
    for name, tree in sources(root, "exp"):
        own = node(module_of(name))
        others = {node(module) for _, module, _ in imports(root, name, tree) if module.startswith("exp.")}
        arrows.setdefault(own, set()).update(others - {own})
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def traces_of_a_terminal(root: Path) -> list[str]:
    """print(), argparse and flags where nobody knows of a terminal; print() anywhere but in TERMINAL."""
    found = []
    for name, tree in sources(root, *BELOW):
        library = name.split("/")[0] in LIBRARIES and name != OWN_COMMAND_LINE
        if library:
            found += [f"{name}:{line} imports argparse" for line, module, _ in imports(root, name, tree)
                      if below(module, "argparse")]
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == "print" and name != TERMINAL:
                found.append(f"{name}:{node.lineno} prints")
            if library and isinstance(node, ast.Constant) and isinstance(node.value, str) and FLAG.search(node.value):
                found.append(f"{name}:{node.lineno} names a flag: {FLAG.search(node.value)[0].strip()}")
    return found


def test_no_import_runs_up():
    assert not wrong_imports(ROOT)


def test_the_folders_of_exp_have_no_cycle():
    assert cycle_in_exp(ROOT) is None


def test_the_libraries_know_no_terminal():
    assert not traces_of_a_terminal(ROOT)


def test_all_parts_were_read():
    # else a folder that moves away would be free to import anything
    assert {name.split("/")[0] for name, _ in sources(ROOT, *BELOW)} == set(BELOW)
    modules = {module_of(name) for name, _ in sources(ROOT, "exp")}
    assert {*BLIND, CONSTANTS, *(f"exp.{folder}" for folder in FOLDERS)} <= modules


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name, text, words", [
    ("utils/x.py", "import numpy", "torch only"), ("utils/x.py", "from utils.errors import UserError", "by its name"),
    ("utils/x.py", "from exp import flags", "not below utils"), ("utils/x.py", "import models", "not below utils"),
    ("layers/x.py", "import pandas as pd", "torch only"),
    ("layers/x.py", "from utils import files", "not below layers"),
    ("layers/x.py", "from models.config import ModelConfig", "not below layers"),
    ("models/x.py", "def f():\n    from exp.flags import FLAGS", "models/x.py:2"),
    ("models/x.py", "from data_provider import reading", "not below models"),
    ("data_provider/x.py", "import models.registry", "not below data_provider"),
    ("exp/x.py", "from scripts.sweeps import param_sweep", "not below exp"),
    ("exp/x.py", "from layers import cache", "not below exp"), ("exp/x.py", "import run", "not below exp"),
    ("exp/sweep/x.py", "from matplotlib import pyplot as plt", "pyplot"),
    ("exp/sweep/x.py", "import matplotlib.pyplot", "pyplot"), ("utils/x.py", "from numpy import zeros", "torch only"),
    ("exp/sweep/x.py", "from matplotlib.pyplot import plot", "pyplot"),
    ("exp/settings.py", "from exp.train.trainer import Trainer", "exp.settings must not know it"),
    ("exp/options.py", "from exp import sweep", "exp.options must not know it"),
    ("exp/report/x.py", "from exp.evaluate.methods import Method", "exp.report must not know it"),
    ("exp/report/x.py", "from ..predict import files", "exp.predict"),
])
def test_an_import_that_runs_up_is_found(tmp_path, name, text, words):
    for folder in (*FOLDERS, "."):
        write(tmp_path, f"exp/{folder}/__init__.py", "")
    write(tmp_path, name, text)
    found = wrong_imports(tmp_path)
    assert len(found) == 1 and words in found[0]


def test_what_is_allowed_is_not_found(tmp_path):
    write(tmp_path, "utils/errors.py", "import json")
    write(tmp_path, "utils/x.py", "import os, torch.nn\nfrom . import errors\nfrom .errors import UserError")
    write(tmp_path, "models/x.py", "import numpy\nfrom utils import errors\nfrom layers.cache import f")
    write(tmp_path, "exp/settings.py", "from exp.schedules import LRADJ")
    write(tmp_path, "exp/train/schedules.py", "")
    write(tmp_path, "exp/train/trainer.py", "from exp.settings import Settings")
    assert not wrong_imports(tmp_path) and cycle_in_exp(tmp_path) is None


def test_a_cycle_is_found(tmp_path):
    write(tmp_path, "exp/train/a.py", "from exp.evaluate.b import B")
    write(tmp_path, "exp/evaluate/b.py", "from exp.laws import f")
    write(tmp_path, "exp/laws.py", "import exp.train.a")
    assert {"exp.train", "exp.evaluate", "exp.laws"} == set(cycle_in_exp(tmp_path))


@pytest.mark.parametrize("name, text, words", [
    ("utils/x.py", "print(1)", "prints"), ("exp/train/x.py", "def f(say=print):\n    say(1)", "x.py:1 prints"),
    ("models/x.py", "import argparse", "argparse"),
    ("data_provider/x.py", "from argparse import Namespace", "argparse"),
    ("layers/x.py", "raise ValueError('lower --d_model')", "--d_model"),
    ("utils/x.py", "'''Words.\n\nSee --spec_k.'''", "--spec_k"), ("models/x.py", "f'(--seed {1})'", "--seed")])
def test_a_trace_of_a_terminal_is_found(tmp_path, name, text, words):
    write(tmp_path, name, text)
    found = traces_of_a_terminal(tmp_path)
    assert len(found) == 1 and words in found[0]
