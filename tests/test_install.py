"""The library installed by pip, into an environment that has torch and nothing else.

Needs no network: pip, setuptools and torch are those of the environment that runs the tests.
"""
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "YOUR_MODEL.md"
UNWANTED = ("numpy", "pandas", "scipy", "sklearn", "matplotlib", "tqdm", "ray")  # nothing here may need them
NOT_COPIED = (".*", "__pycache__", "build", "*.egg-info", "checkpoints", "dataset", "test_results", "shared", "img")
FENCE = re.compile(r"```(.*)")

pytestmark = pytest.mark.slow
pytest.importorskip("setuptools", minversion="77")  # the first to know a licence by its SPDX name


def blocks_of(text: str) -> str:
    """The lines of ```python blocks, every other line blank: line numbers stay. Not those of ```python sketch."""
    lines, language = [], None
    for line in text.splitlines():
        fence = FENCE.match(line)
        if fence:
            language = fence[1].strip() if language is None else None
        lines.append(line if language == "python" and not fence else "")
    return "\n".join(lines) + "\n"


def run(*command, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def link_torch(folder: Path) -> None:
    """Symbolic links to torch and all that it cannot do without."""
    folder.mkdir()
    left, seen = ["torch"], set()
    while left:
        name = left.pop()
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # what this torch does without
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(distribution.locate_file(top)))
        needed = map(Requirement, distribution.requires or [])
        left += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The interpreter of an empty environment with the package, and the packages in it."""
    folder = tmp_path_factory.mktemp("install")
    source, venv = folder / "clone", folder / "venv"
    # a copy: setuptools leaves `build` and `patchspec.egg-info` beside what it builds
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_COPIED))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-build-isolation", "--no-deps",
        "--wheel-dir", folder / "wheels", source)
    wheel, = (folder / "wheels").iterdir()
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python, = [path for path in (venv / "bin" / "python", venv / "Scripts" / "python.exe") if path.exists()]
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    before = {path.name for path in site.iterdir()}
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    installed = {path.name for path in site.iterdir()} - before
    link_torch(folder / "torch_alone")
    (site / "torch_alone.pth").write_text(f"{folder / 'torch_alone'}\n")
    return python, installed


def test_the_package_installs_under_its_own_name_only(environment):
    version = re.search(r'__version__ = "(.*)"', (ROOT / "utils" / "__init__.py").read_text())[1]
    assert environment[1] == {"patchspec", f"patchspec-{version}.dist-info"}


def test_the_package_needs_torch_and_nothing_else(environment, tmp_path):
    script = f"""
import importlib.metadata, importlib.util, pathlib, pkgutil, sys
for name in {UNWANTED}:
    assert importlib.util.find_spec(name) is None, f"{{name}} is visible: this test says nothing"
import patchspec
for module in pkgutil.iter_modules(patchspec.__path__, "patchspec."):
    importlib.import_module(module.name)
assert patchspec.__version__ == importlib.metadata.version("patchspec")
folder = pathlib.Path(patchspec.__file__).parent
assert (folder / "py.typed").exists() and {str(ROOT)!r} not in str(folder)
for name in ("utils", "models", "layers", "exp", "run"):
    assert importlib.util.find_spec(name) is None, name
missing = [name for name in patchspec.__all__ if not hasattr(patchspec, name)]
assert not missing, missing
print("well")
"""
    assert run(environment[0], "-W", "error::DeprecationWarning:patchspec", "-c", script, cwd=tmp_path) == "well\n"


def test_the_import_pulls_in_nothing_unwanted(tmp_path):
    """Here all of it is installed; torch itself takes numpy where it finds it."""
    script = ("import sys, torch; before = set(sys.modules); import utils; "
              f"print(sorted({set(UNWANTED)} & ({{name.split('.')[0] for name in set(sys.modules) - before}})))")
    assert run(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {script}", cwd=tmp_path) == "[]\n"


def test_the_guide_for_your_own_model_runs_as_it_stands(environment, tmp_path):
    text = GUIDE.read_text(encoding="utf-8")
    blocks = blocks_of(text)
    assert blocks.count("import") > 2 and "DynamicCache" in text and "DynamicCache" not in blocks
    script = tmp_path / "guide.py"
    script.write_text(blocks, encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    printed = run(environment[0], script, cwd=elsewhere)
    assert printed.count("\n") >= 5, printed
    assert not list(elsewhere.iterdir())


def test_blocks_keep_their_line_and_sketches_are_left_out():
    text = "a\n```python\nx = 1\n```\n```python sketch\ny\n```\n```bash\nz\n```\n"
    assert blocks_of(text).splitlines() == ["", "", "x = 1", "", "", "", "", "", "", ""]
