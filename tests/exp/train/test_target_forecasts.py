"""The target's forecasts in place of a data set's answers."""
import pytest
import torch
from helpers import PATCH, tiny_target

from exp.train import target_forecasts
from exp.train.target_forecasts import TargetForecasts
from utils.speculative_decoder import decode_alone
from utils.target_law import TargetLaw

HORIZON = 3 * PATCH


class Windows(torch.utils.data.Dataset):
    def __init__(self, count=11):
        self.x = torch.randn(count, 4 * PATCH, 2, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], None

    def __getitems__(self, indices):
        return self.x[indices], None


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(target_forecasts, "AT_ONCE", 4)


def wrapped(**how):
    return TargetForecasts(Windows(), tiny_target(), HORIZON, torch.device("cpu"), quiet=True, **how)


def test_every_window_has_the_forecast_of_the_target():
    data = wrapped()
    x, y = data.__getitems__([10, 0, 3])
    assert torch.equal(x, Windows().x[[10, 0, 3]]) and len(data) == 11
    torch.testing.assert_close(y[:, 0], decode_alone(tiny_target(), x, HORIZON), atol=1e-5, rtol=0)
    assert not y.is_inference()  # training saves it for the backward pass


@pytest.mark.parametrize("law", [None, TargetLaw.fixed(0.3)])
def test_the_predictions_within_a_window_come_before_its_forecast(law):
    plain, data = wrapped(law=law), wrapped(law=law, along=True)
    x, y = data.__getitems__([10, 0, 3])
    with torch.no_grad():
        within = tiny_target()(x)[:, None].expand(-1, 1 if law is None else 2, -1, -1)
    torch.testing.assert_close(y[:, :, :4 * PATCH], within, atol=1e-5, rtol=0)
    assert torch.equal(y[:, :, 4 * PATCH:], plain.__getitems__([10, 0, 3])[1])


def test_forecasts_are_made_once():
    data = wrapped()
    data.target = None
    assert data.__getitems__([1, 2])[1].shape == (2, 1, HORIZON, 2)


def test_dropout_in_the_target_makes_them_anew_at_every_visit():
    data = wrapped(dropout=0.5)
    assert data.kept is None
    first, second = (data.__getitems__([1])[1] for _ in range(2))
    assert not torch.equal(first, second)
    assert not data.target.training


def test_too_many_to_keep_are_made_at_every_visit(monkeypatch):
    monkeypatch.setattr(target_forecasts, "MOST_KEPT", 4 * 11 * HORIZON * 2 - 1)
    data = wrapped()
    assert data.kept is None
    x, y = data.__getitems__([10, 3])
    torch.testing.assert_close(y[:, 0], decode_alone(tiny_target(), x, HORIZON), atol=1e-5, rtol=0)
    monkeypatch.setattr(target_forecasts, "MOST_KEPT", 4 * 11 * HORIZON * 2)
    assert wrapped().kept is not None


LAW = TargetLaw(torch.linspace(0.2, 0.9, PATCH)[:, None], relative=True)


def test_with_a_law_there_is_a_path_and_what_the_target_says_along_it():
    data, target = wrapped(law=LAW), tiny_target()
    x, y = data.__getitems__([10, 0, 3])
    path, mean = y.unbind(dim=1)
    for step in range(3):
        seen = torch.cat([x, path[:, :step * PATCH]], dim=1)[:, -4 * PATCH:]
        with torch.no_grad():
            torch.testing.assert_close(mean[:, step * PATCH:(step + 1) * PATCH], target(seen)[:, -PATCH:], atol=1e-5,
                                       rtol=0)
    z = LAW.whiten((path - mean)[:, :PATCH], (x.var(dim=1, keepdim=True, unbiased=False) + 1e-5).sqrt())
    assert 0.5 < z.std() < 1.5 and z.abs().max() < 5
    assert torch.equal(y, wrapped(law=LAW).__getitems__([10, 0, 3])[1])  # a resumed run learns from the same paths
    assert not torch.equal(y, wrapped(law=LAW, seed=999).__getitems__([10, 0, 3])[1])
