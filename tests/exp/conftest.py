"""A target and its draft, trained once through the command line, for all tests that forecast with a trained pair."""
import shutil
from types import SimpleNamespace

import pytest
from exp_helpers import BASE, CAUSAL_DRAFT, CAUSAL_TARGET, DRAFT, ROWS, SIZES, TARGET, workplace_with_series
from helpers import tiny_series, write_series

import run
from scripts.results import measure, plans

TRAIN = f"{BASE} {SIZES} --root_path ."


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A folder with the series, a trained target and its distilled draft."""
    with workplace_with_series(tmp_path_factory, "lab") as folder:
        assert run.main(f"{TRAIN} --model_id t".split()) == 0
        distil = (f"--distill --distill_target_ckpt checkpoints/{TARGET}/checkpoint.pth --draft_stochastic "
                  "--draft_scale_d_ff 0.5 --draft_teacher_noise 0.1")
        assert run.main(f"{TRAIN} --model_id d --model timer_xl_draft {distil}".split()) == 0
    return folder


@pytest.fixture(scope="session")
def causal(lab):
    """Settings of a causally normalised target and of an on-policy draft that predicts two patches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lab)
        assert run.main(f"{TRAIN} --model_id tc --norm_mode causal --test_pred_len 24".split()) == 0
        distil = (f"--distill --distill_target_ckpt checkpoints/{CAUSAL_TARGET}/checkpoint.pth --draft_stochastic "
                  "--draft_patches 2 --draft_rollout 4")
        assert run.main(f"{TRAIN} --model_id dc --model timer_xl_draft {distil}".split()) == 0
    return CAUSAL_TARGET, CAUSAL_DRAFT


@pytest.fixture
def any_plan(own_lab, place, monkeypatch):
    """The plan of every settings file: the data and the pair of a laboratory of one's own, trained already."""
    lab = own_lab
    write_series(tiny_series(ROWS))
    target, draft = (lab / "checkpoints" / name / "checkpoint.pth" for name in (TARGET, DRAFT))
    flags = (f"--is_training 0 --root_path {place} --data_path tiny.csv --seq_len 48 --input_token_len 12 --quiet "
             f"--checkpoints {lab}/checkpoints --test_dir {TARGET} --compare --spec_draft_ckpt {draft}")
    plan = SimpleNamespace(target=["target"], draft=["draft", "--des", "own"], compare=flags.split(),
                           target_file=target, draft_file=draft)
    monkeypatch.setattr(plans, "plan_of", lambda *_: plan)
    monkeypatch.setattr(plans, "missing", lambda flags: None)
    monkeypatch.setattr(measure, "train", lambda plan, what: None)
    return plan


@pytest.fixture
def own_lab(lab, tmp_path, monkeypatch):
    """A laboratory of one's own, for what is written beside checkpoints; in a current directory that is else empty."""
    shutil.copytree(lab, tmp_path / "lab", ignore=shutil.ignore_patterns("test_results"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "lab"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
