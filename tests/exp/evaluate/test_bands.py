"""Bands at every lead from the command line to the files: what is fitted, chosen, applied, kept and refused."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import metrics, results, save_pair

import run
from exp.evaluate import bands as module
from exp.evaluate.bands import Bands, halves, judged, load, spread
from exp.evaluate.methods import SampledMethod, WidenedMethod
from models.checkpoint import read_tensors, save_tensors
from models.config import ModelConfig
from utils.calibration import GROWTHS
from utils.errors import UserError
from utils.growth import fit_growth, widened
from utils.scores import BANDS, PathMetrics

CONFIG = ModelConfig(input_token_len=12, d_model=16, n_heads=2, d_ff=32, e_layers=1, use_norm=True)
LAW = Path("checkpoints/target/checkpoint_calibration_walk_48_diag.pth")
KEPT = {width: LAW.with_name(f"checkpoint_calibration_walk_48_diag_{width}_36.pth") for width in ("one", "mixture")}
BASE = "--quiet --root_path . --data_path walk.csv --test_pred_len 36 --batch_size 32"
CALIBRATED = "--num_samples 40 --spec_sigma_mode calibrated --test_windows 6"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a series whose level wanders, in spells, an untrained target and a draft that has its weights."""
    monkeypatch.chdir(tmp_path)
    rng, t = np.random.default_rng(0), np.arange(900)[:, None]
    spells = np.where(t // 40 % 2 == 0, 0.2, 1.0)
    values = np.sin(2 * np.pi * t / np.array([12, 24])) + (spells * rng.normal(size=(900, 2))).cumsum(axis=0)
    pd.DataFrame(values.round(5), columns=["a", "b"]).to_csv("walk.csv", index=False)
    save_pair(CONFIG, "walk.csv", seq_len=48)


def sample(flags, code=0):
    assert run.main(f"{BASE} --is_training 0 --test_dir target {flags}".split()) == code


def paths():
    with np.load(results() / "samples.npz", allow_pickle=False) as archive:
        return torch.from_numpy(archive["samples"])


def test_asked_growth_is_applied_to_the_same_paths(capsys):
    sample(f"{CALIBRATED} --save_samples --spec_width mixture --spec_growth none")
    plain, before, said = paths(), metrics()["samples"], capsys.readouterr().out
    sample(f"{CALIBRATED} --save_samples --spec_width mixture --spec_growth rollouts")
    grown, after = metrics()["samples"]["validation"], metrics()["samples"]
    growth = torch.tensor(grown["factors"])
    assert len(growth) == 3 and growth.max() > 1
    torch.testing.assert_close(paths(), widened(plain, growth, 12), atol=1e-4, rtol=1e-4)
    assert before["law"]["spec_width"] == after["law"]["spec_width"] == "mixture"
    assert (before["law"]["spec_growth"], after["law"]["spec_growth"]) == ("none", "rollouts")
    assert before["validation"]["factors"] == [1.0] * 3 and after["width_80"] > before["width_80"]
    # nearer to what they promise where they were fitted, and told
    off = [sum(abs(share - band) for band in BANDS for share in part[f"coverage_{band}_pct"])
           for part in (before["validation"], grown)]
    assert off[1] < off[0]
    assert "(not widened; CRPS of newer windows" in said
    assert "validation windows the bands of paths hold, patch by patch, 50 %:" in said
    shares = " ".join(f"{share:.1f}" for share in grown["coverage_95_pct"])
    assert f"95 %: {shares} (widened by" in capsys.readouterr().out


def test_what_nobody_asks_for_is_chosen_by_crps_on_the_newest_windows(capsys):
    sample(CALIBRATED + " --spec_growth auto")
    found, said = metrics()["samples"], capsys.readouterr().out
    held_out = read_tensors(LAW)["held_out"]
    width = min(("one", "mixture"), key=lambda name: held_out[f"{name}_crps"])
    assert found["law"]["spec_width"] == width
    assert list(LAW.parent.glob("*_36*")) == [KEPT[width]]
    scores = found["validation"]["crps_of"]
    assert found["law"]["spec_growth"] == found["validation"]["growth"] == min(GROWTHS, key=lambda name: scores[name])
    assert "by CRPS on the newest windows" in said
    sample(CALIBRATED)
    assert metrics()["samples"]["law"]["spec_growth"] == "rollouts"


def test_they_are_measured_once_then_loaded():
    sample(f"{CALIBRATED} --save_samples --spec_width one")
    before, stamp = paths(), KEPT["one"].stat().st_mtime_ns
    sample(f"{CALIBRATED} --save_samples --spec_width one --seed 5 --des other")
    assert KEPT["one"].stat().st_mtime_ns == stamp
    sample(f"{CALIBRATED} --save_samples --spec_width one")
    assert torch.equal(paths(), before)
    sample(f"{CALIBRATED} --spec_width one --spec_temp 2", code=2)  # another law


def test_a_file_for_anything_else_or_a_damaged_one_is_refused(capsys):
    sample(f"{CALIBRATED} --spec_width one")
    path, content = KEPT["one"], read_tensors(KEPT["one"])
    for change in ({"growth": torch.tensor([1.0, 1.0])}, {"growth": torch.full((3,), 0.5)}, {"growth": None},
                   {"found": {}}, {"growth": torch.full((3,), torch.inf)}, {"identity": 3},
                   {"found": content["found"] | {"none": content["found"]["none"] | {"coverage_80_pct": [1.0]}}}):
        save_tensors(path, content | change)
        with pytest.raises(UserError, match="damaged.*delete it to measure it again"):
            load(path, content["identity"], 3)
    save_tensors(path, content)
    for name, other in (("weights", "x"), ("horizon", 24), ("width", "mixture"), ("form", 0), ("form of the law", 0),
                        ("temperature", 2.0)):
        with pytest.raises(UserError, match=f"measured for other {name} .*delete it"):
            load(path, content["identity"] | {name: other}, 3)
    path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    sample(f"{CALIBRATED} --spec_width one", code=2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and path.name in said and "delete it" in said


@pytest.mark.parametrize("flags", ["", "--spec_growth none", "--spec_growth auto"])
def test_a_horizon_longer_than_the_validation_part_is_told(flags, capsys):
    sample(f"{CALIBRATED} --test_pred_len 100 {flags}")
    assert "the validation part has no window with a whole horizon" in capsys.readouterr().out
    assert metrics("target_pl100_samples")["samples"]["law"]["spec_growth"] == "none"
    assert "validation" not in metrics("target_pl100_samples")["samples"]


def test_a_growth_without_windows_is_refused(capsys):
    sample(f"{CALIBRATED} --test_pred_len 100 --spec_growth rollouts", code=2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--spec_growth none" in said and not Path("test_results").exists()
    train = f"{BASE} --seq_len 48 --input_token_len 12 --d_model 16 --n_heads 2 --d_ff 32 {CALIBRATED}"
    before = set(Path("checkpoints").iterdir())
    assert run.main(f"{train} --test_pred_len 100 --spec_growth rollouts".split()) == 2  # before hours of training
    assert "--spec_growth none" in capsys.readouterr().err and set(Path("checkpoints").iterdir()) == before


RULES = "--use_speculative --spec_draft_ckpt checkpoints/draft"


@pytest.mark.parametrize("rule", ["coupling", "exact", "parareal"])
def test_every_way_to_sample_has_the_widths_and_the_growth(rule):
    """The mean width of the bands is that of the target alone, on six windows of 200 paths: within 5 %."""
    flags = f"{CALIBRATED.replace('40', '200')} --spec_width mixture --spec_growth rollouts"
    sample(f"{flags} --des alone")
    alone = metrics("target_pl36_samples_alone")["samples"]
    sample(f"{flags} {RULES} --spec_accept_rule {rule} --des by")
    by_rule = metrics(f"target_pl36_spec_{rule}_samples_by")["samples"]
    assert by_rule["validation"] == alone["validation"]
    for band in BANDS:
        assert by_rule[f"width_{band}"] == pytest.approx(alone[f"width_{band}"], rel=0.05)


@pytest.mark.parametrize("flags", ["", RULES + " --spec_accept_rule coupling", RULES + " --spec_accept_rule parareal"])
def test_widths_do_not_depend_on_the_batch(flags):
    command = f"{CALIBRATED.replace('40', '5')} --spec_width mixture --save_samples {flags}"
    sample(command)
    first = paths()
    sample(f"{command} --batch_size 4")
    torch.testing.assert_close(paths(), first, atol=1e-4, rtol=1e-4)


# --- the parts

def of_counts(*counts, variables=2):
    counts = torch.tensor(counts)
    return SimpleNamespace(n_series=len(counts), counts=counts, variables=variables,
                           first_items=counts.cumsum(0) - counts,
                           series_of=lambda items: torch.searchsorted(counts.cumsum(0), items, right=True))


def test_windows_are_spread_over_every_series():
    items = spread(of_counts(1000), 36)
    assert len(items) == 64 and (items[0], items[-1]) == (0, 999)
    items = spread(of_counts(*[100] * 40), 36)
    assert items.tolist()[:8] == [0, 14, 28, 42, 56, 70, 84, 99] and len(items) == 320
    many = spread(of_counts(*[50, 30] * 500), 36)
    assert len(many) == 512 and many[0] == 0 and many[-1] == 80 * 500 - 1
    assert len(spread(of_counts(5), 36)) == 5
    assert len(spread(of_counts(1000, variables=5000), 36)) == module.MOST_NUMBERS // (40 * 36 * 5000)


def test_halves_share_no_step_and_belong_to_one_series():
    dataset, horizon = of_counts(100, 61), 20
    items = torch.arange(161)
    older, newer = halves(dataset, items, horizon)
    for first, count in ((0, 100), (100, 61)):
        steps = count + horizon - 1
        own = slice(first, first + count)
        assert older[own].nonzero()[-1, 0] + horizon == steps // 2 and newer[own].nonzero()[0, 0] == steps // 2
        assert newer[own][-1] and older[own][0]
    assert not any(part.any() for part in halves(of_counts(10), torch.arange(10), 20))  # too short for two


def test_the_newer_windows_judge_a_growth_of_the_older_ones():
    generator = torch.Generator().manual_seed(0)
    paths, truth = (torch.randn(60, 40, 24, 2, generator=generator), torch.randn(60, 24, 2, generator=generator))
    truth[:20] *= 3  # so that a growth of these is wrong for those
    older, newer = torch.arange(60) < 20, torch.arange(60) >= 40
    bands = judged(paths, truth, 12, [older, newer])
    assert bands.chosen("auto") == "none"
    assert (bands.chosen(None), bands.chosen("rollouts"), bands.chosen("none")) == ("rollouts", "rollouts", "none")
    wrong, metrics = fit_growth(paths[older], truth[older], 12), PathMetrics(12)
    metrics.update(widened(paths[newer], wrong, 12), truth[newer])
    assert bands.found["rollouts"]["crps"] == pytest.approx(metrics.result()["crps"])
    torch.testing.assert_close(bands.growth, fit_growth(paths, truth, 12))  # fitted again to all
    truth[40:] *= 3
    assert judged(paths, truth, 12, [older, newer]).chosen("auto") == "rollouts"
    none = judged(paths, truth, 12, [older & False, newer])
    assert none.chosen("auto") == "none" and none.found["none"]["crps"] is None
    assert "too few windows for a held-out CRPS" in none.describe(None)


def test_a_method_widens_what_another_one_samples():
    class Fixed(SampledMethod):
        def __init__(self):
            pass

        def decode(self, context, observer=None):
            paths = torch.arange(12.0).view(1, 3, 4, 1)
            return SimpleNamespace(paths=paths, forecast=paths.mean(dim=1))
    decoded = WidenedMethod(Fixed(), torch.tensor([1.0, 2.0]), 2).decode(torch.zeros(1, 4, 1))
    assert decoded.paths[0, :, :, 0].tolist() == [[0, 1, -2, -1], [4, 5, 6, 7], [8, 9, 14, 15]]
    assert isinstance(Bands(torch.ones(1), {}), Bands)
