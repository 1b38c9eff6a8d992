"""Settings files: which models they train, and that no two train the same ones unless they say so."""
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

SHARED = {"etth1_parallel": "etth1_causal", "etth1_parareal": "etth1", "pool_parareal": "pool"}  # other drafts


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the scripts, with a settings file that somebody has copied."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    settings = folder / "scripts" / "settings"
    text = (settings / "etth1.sh").read_text()
    (settings / "mine.sh").write_text(text + "data_file=mine.csv\n")
    return folder


def models_of(checkout, settings):
    """Folders of the target and of the draft that a settings file trains."""
    words = (f". scripts/common.sh {settings}; dirname \"$target_checkpoint\"; "
             'dirname "$(draft_checkpoint "$draft_name")"')
    # a stand-in for python: it has the packages, and prints the path of a data file
    stub = checkout / "python"
    stub.write_text(f"#!/bin/bash\n[ \"$1\" = -m ] && echo data/ETTh1.csv || exec {sys.executable} \"$@\"\n")
    stub.chmod(0o755)
    done = subprocess.run(["bash", "-c", words], cwd=checkout, capture_output=True, text=True,
                          env=os.environ | {"PYTHON": str(stub), "model_id": "of_the_shell"})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_models_are_named_after_their_settings_file(checkout):
    names = sorted(path.stem for path in (checkout / "scripts" / "settings").glob("*.sh"))
    assert "mine" in names and "etth1" in names
    every = {name: models_of(checkout, name) for name in names}
    for name, (target, _) in every.items():
        assert target == f"./checkpoints/forecast_{SHARED.get(name, name)}_timer_xl_target_0"
    drafts = [draft for _, draft in every.values()]
    assert len(set(drafts)) == len(drafts)
