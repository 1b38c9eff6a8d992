"""scripts/environment.sh in a project of its own, whose pip is a stub that writes down what it is asked for."""
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "environment.sh"
CPU = "--no-deps --timeout 10 --retries 0 --index-url https://download.pytorch.org/whl/cpu torch==1.2.3"
USUAL = "-r requirements.txt"
EXTRA = "-r requirements-extra.txt"
STUB = """#!/bin/sh
case $* in *--version*) exit 0 ;; esac
echo "$*" | sed 's/.*--disable-pip-version-check //' >> asked
case $* in $FAILS) exit 1 ;; $INTERRUPTED) trap '' INT; kill -INT 0; exit 1 ;; esac
"""
needs_no_gpu = pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is an NVIDIA GPU")


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def install(tmp_path):
    """install(FILES...) -> exit code, output, what pip was asked for; other_tools hide those of the machine."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text('# torch\ntorch==1.2.3\nnumpy==1; python_version < "4"\n')
    (tmp_path / "requirements-extra.txt").write_text("-r requirements-more.txt\npytest==1\n")
    (tmp_path / "requirements-more.txt").write_text("more==1\n")
    write_program(tmp_path / ".venv" / "bin" / "python", STUB)
    tools = {"uname": "echo Linux", "nvidia-smi": "exit 9"}

    def run(*files, fails="nothing", interrupted="nothing", **other_tools):
        for name, line in (tools | {k.replace("_", "-"): v for k, v in other_tools.items()}).items():
            write_program(tmp_path / "tools" / name, f"#!/bin/sh\n{line}\n")
        (tmp_path / "asked").write_text("")
        mine = {"PYTHON", "VENV", "BASE_PYTHON", "requirements"}
        environment = {name: value for name, value in os.environ.items() if name not in mine}
        environment |= {"PATH": f"{tmp_path}/tools:{os.environ['PATH']}", "FAILS": fails, "INTERRUPTED": interrupted}
        done = subprocess.run(
            ["bash", "-c", ". scripts/environment.sh; for f; do install $f; done; echo $python", "bash", *files],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        return done.returncode, done.stdout, (tmp_path / "asked").read_text().splitlines()
    run.root = tmp_path
    return run


@needs_no_gpu
def test_without_a_gpu_torch_comes_first_and_from_the_index_of_cpu_wheels(install):
    code, said, asked = install("requirements-extra.txt")
    assert code == 0 and asked == [CPU, USUAL, EXTRA] and said.endswith("\n.venv/bin/python\n") and "note" not in said
    assert install("requirements-extra.txt") == (0, ".venv/bin/python\n", [])


@needs_no_gpu
def test_without_that_index_torch_comes_from_the_usual_one_and_a_line_says_so(install):
    code, said, asked = install(fails="*--index-url*")
    assert code == 0 and asked == [CPU, USUAL] and said.count("note: ") == 1 and said.count("\n") == 3
    assert install()[2] == []


@pytest.mark.parametrize("tools", [{"uname": "echo Darwin"}, {"nvidia_smi": "echo GPU 0"}], ids=["macOS", "a GPU"])
def test_macos_and_gpus_take_the_usual_index(install, tools):
    assert install(**tools)[::2] == (0, [USUAL])


def test_a_changed_pin_is_installed_in_an_included_file_too(install):
    install("requirements-extra.txt")
    (install.root / "requirements-more.txt").write_text("more==2\n")
    assert install("requirements-extra.txt")[2] == [EXTRA]


def test_a_failed_installation_is_tried_again_also_with_the_pins_before(install):
    before = (install.root / "requirements.txt").read_text()
    install(uname="echo Darwin")
    (install.root / "requirements.txt").write_text("torch==4\n")
    code, said, _ = install(fails="*-r?requirements.txt*", uname="echo Darwin")
    assert code == 2 and "error: requirements.txt could not be installed" in said
    (install.root / "requirements.txt").write_text(before)
    assert install(uname="echo Darwin")[2] == [USUAL]


@needs_no_gpu
@pytest.mark.parametrize("where, asked", [("*--index-url*", [CPU]), ("*-r?requirements.txt*", [CPU, USUAL])])
def test_after_ctrl_c_nothing_more_is_installed_and_the_next_run_starts_again(install, where, asked):
    code, _, asked_then = install("requirements-extra.txt", interrupted=where)
    assert code == 130 and asked_then == asked
    assert install("requirements-extra.txt")[2] == [CPU, USUAL, EXTRA]
