"""The calibration kept beside a checkpoint: it comes back as it was, and damage and mix-ups are refused."""
import pickle
from types import SimpleNamespace

import pytest
import torch

from data_provider.splits import Cut
from exp.laws import file_beside, forget, identity, load, save
from utils.calibration import Calibration, fit_law
from utils.errors import UserError
from utils.target_law import TargetLaw

P, C = 4, 2


def residuals(windows=200, factor=None):
    z = torch.randn(windows, P * C, generator=torch.Generator().manual_seed(0))
    return (z if factor is None else z @ factor.T).unflatten(1, (P, C))


@pytest.fixture
def kept(tmp_path):
    """A checkpoint, what its calibration depends on, and the file of the calibration."""
    (tmp_path / "checkpoint.pth").write_bytes(b"weights")
    def made_for(covariance="diag", values="one", patch_len=P):
        other = SimpleNamespace(fingerprint=lambda: values, cut=Cut("val", 48, patch_len))
        return identity(tmp_path / "checkpoint.pth", other, 48, covariance, "window")
    path = file_beside(tmp_path / "checkpoint.pth", "ETTh1", 48, "diag")
    calibration = fit_law(residuals(), 1, full=False)
    save(path, calibration, made_for())
    return SimpleNamespace(folder=tmp_path, path=path, made_for=made_for, calibration=calibration)


def test_a_calibration_comes_back_as_it_was(kept):
    found = load(kept.path, kept.made_for(), P, C)
    assert torch.equal(found.law.factor, kept.calibration.law.factor) and found.law.relative
    assert torch.equal(found.law.widths, kept.calibration.law.widths)
    assert found.held_out == kept.calibration.held_out
    assert [path.name for path in kept.folder.iterdir() if path != kept.path] == ["checkpoint.pth"]
    assert kept.path.name == "checkpoint_calibration_ETTh1_48_diag.pth"


def test_a_full_calibration_comes_back_as_it_was(kept):
    calibration = fit_law(residuals(factor=torch.eye(P * C) + torch.full((P * C, P * C), 0.3).tril(-1)), 1, full=True)
    save(kept.path, calibration, kept.made_for("full"))
    found = load(kept.path, kept.made_for("full"), P, C)
    assert torch.equal(found.law.factor, calibration.law.factor) and found.law.full


def test_a_calibration_for_anything_else_is_refused(kept):
    def refused(made_for, word, values=(P, C)):
        with pytest.raises(UserError, match=rf"{kept.path.name} was calibrated for other {word} .*delete it"):
            load(kept.path, made_for, *values)
    refused(kept.made_for(values="another"), "data")
    refused(kept.made_for(patch_len=8), "patch")
    refused(kept.made_for("full"), "covariance")
    refused(kept.made_for() | {"context": 96}, "context")
    refused(kept.made_for() | {"rolling": "cache"}, "rolling")
    (kept.folder / "checkpoint.pth").write_bytes(b"other weights")
    refused(kept.made_for(), "weights")


class Payload:
    def __reduce__(self):
        return open, ("executed", "w")


def test_a_damaged_calibration_is_refused(kept, monkeypatch):
    monkeypatch.chdir(kept.folder)
    whole, good = kept.path.read_bytes(), torch.load(kept.path, weights_only=True)
    contents = [whole[:len(whole) // 2], b"", pickle.dumps(Payload())]
    negative = good["factor"].clone()
    negative[0, 0] = -1
    for change in ({"factor": torch.full((P, C), torch.nan)}, {"factor": negative}, {"factor": torch.ones(P, C + 1)},
                   {"factor": good["factor"].double()}, {"factor": [1.0]}, {"held_out": {}}, {"held_out": None},
                   {"identity": "ETTh1"}, {"factor": torch.zeros(P, C)}, {"widths": None}, {"widths": -good["widths"]},
                   {"widths": good["widths"][:, :1]}, {"widths": good["widths"][:0]},
                   {"widths": good["widths"] * torch.nan}, {"widths": good["widths"].double()}):
        torch.save(good | change, kept.path)
        contents.append(kept.path.read_bytes())
    torch.save([1], kept.path)
    contents.append(kept.path.read_bytes())
    for content in contents:
        kept.path.write_bytes(content)
        with pytest.raises(UserError, match=f"{kept.path.name} is damaged.*delete it") as caught:
            load(kept.path, kept.made_for(), P, C)
        assert "\n" not in str(caught.value)
    assert not (kept.folder / "executed").exists()


def test_a_calibration_of_another_version_is_not_called_damaged(kept):
    content = torch.load(kept.path, weights_only=True)
    del content["widths"]  # these had none
    for form in ({}, {"form": 1}, {"form": 2}):
        identity_of_then = {name: value for name, value in content["identity"].items() if name != "form"} | form
        torch.save(content | {"identity": identity_of_then}, kept.path)
        with pytest.raises(UserError, match="another version.*delete it"):
            load(kept.path, kept.made_for(), P, C)


def test_a_full_factor_must_be_lower_triangular(kept):
    made_for = kept.made_for("full")
    law = TargetLaw(torch.ones(P * C, P * C), full=True, widths=kept.calibration.law.widths)
    save(kept.path, Calibration(law, kept.calibration.held_out), made_for)
    with pytest.raises(UserError, match="is damaged"):
        load(kept.path, made_for, P, C)


def test_new_weights_forget_the_calibration_of_the_old_ones(kept):
    other = kept.folder / "other_calibration_ETTh1_48_diag.pth"
    other.touch()
    certificate = kept.folder / "checkpoint_certificate_ETTh1_48_60_window.pth"
    certificate.touch()
    forget(kept.folder / "checkpoint.pth")
    assert not kept.path.exists() and not certificate.exists()
    assert other.exists() and (kept.folder / "checkpoint.pth").exists()
