"""Plain sampling: the law of the paths, what a batch shares, and what it does not."""
import copy

import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from utils.interface import Prediction
from utils.lossless import Coupling, Exact
from utils.proposals import Noise
from utils.speculative_decoder import decode_speculative, sample_alone
from utils.target_law import TargetLaw

CAUSAL = {"norm_mode": "causal", "norm_window": 3}
LAW = TargetLaw(torch.linspace(0.1, 0.6, PATCH * 3).view(PATCH, 3), relative=True)


class Autoregression:
    """Next patch = 0.8 last patch (of 2 steps, 1 variable, mixed by MIX), in a window whose stdev is said to be 2."""

    MIX, SCALE, patch_len = torch.tensor([[0.7, 0.2], [-0.3, 0.8]]), 2.0, 2

    def start(self, context, room):
        self.last = [context[:, -2:, 0]]
        return self

    def append(self, patches):
        self.last[0] = patches[:, -1, :, 0]

    def fan_out(self, state, samples):
        self.last[0] = self.last[0].repeat_interleave(samples, dim=0)

    def extend(self, state):
        mean = (self.last[0] @ self.MIX.T)[:, None, :, None]
        scale = torch.full((len(mean), 1, 1, 1), self.SCALE)
        return Prediction(mean, None, scale, scale)


@pytest.mark.parametrize("law", [TargetLaw(torch.tensor([[0.5], [1.0]]), relative=True),
                                 TargetLaw(torch.tensor([[0.5, 0.0], [0.4, 0.3]]), full=True, relative=True)],
                         ids=["diag", "full"])
def test_paths_have_the_law_that_the_autoregression_has(law):
    model, samples, n = Autoregression(), 20000, 3
    context = torch.tensor([[[1.0], [2.0]], [[-4.0], [0.5]]])
    z = torch.randn(2, samples, n, 2, 1, generator=torch.Generator().manual_seed(0))
    paths = sample_alone(model, context, 2 * n, law, z)[0][..., 0].double()
    factor = model.SCALE * (law.factor if law.full else torch.diag(law.factor[:, 0])).double()
    mix, noise = model.MIX.double(), factor @ factor.T
    mean, covariance = context[:, :, 0].double(), torch.zeros(2, 2).double()
    for step in range(n):
        mean, covariance = mean @ mix.T, mix @ covariance @ mix.T + noise
        found = paths[..., 2 * step:2 * step + 2]
        deviation = covariance.diagonal().sqrt()
        # false alarm: about 1e-6 for each of 36 numbers
        assert ((found.mean(dim=1) - mean).abs() < 5 * deviation / samples**0.5).all()
        for row in found:
            error = (torch.cov(row.T) - covariance).abs()
            assert (error < 5 * (2 / samples)**0.5 * torch.outer(deviation, deviation)).all()


def paths_by_hand(model, context, law, z):
    """One path, a whole pass over the series (or its last window) for every patch; noise in the unit of the context."""
    series = context
    window = context[-3 * PATCH:] if model.config.causal else context
    unit = (window.var(dim=0, unbiased=False) + 1e-5).sqrt()
    for noise in z:
        seen = series if model.config.causal else series[-len(context):]
        with torch.no_grad():
            mean = model(seen[None])[0, -PATCH:]
        series = torch.cat([series, mean + law.factor * noise * unit])
    return series[len(context):]


@pytest.mark.parametrize("changes", [{}, CAUSAL], ids=["window", "cache"])
def test_every_path_is_its_own_autoregression(changes, series):
    model, context = tiny_target(**changes), series()
    z = torch.randn(6, 4, 3, PATCH, 3, generator=torch.Generator().manual_seed(1))
    paths, means = sample_alone(model, context, 3 * PATCH - 2, LAW, z)
    assert paths.shape == (6, 4, 3 * PATCH - 2, 3)
    for row, path in ((0, 0), (2, 3), (5, 1)):
        expected = paths_by_hand(model, context[row], LAW, z[row, path])[:3 * PATCH - 2]
        torch.testing.assert_close(paths[row, path], expected, atol=1e-4, rtol=1e-4)
    alone, _ = sample_alone(model, context[2:3], 3 * PATCH - 2, LAW, z[2:3, 1:3])
    torch.testing.assert_close(alone[0], paths[2, 1:3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("other", ["itself", "in another unit"])
@pytest.mark.parametrize("changes", [{}, CAUSAL], ids=["window", "cache"])
def test_a_rule_that_accepts_all_lets_out_plain_samples(changes, other, series):
    """A draft that predicts as the target does: `coupling` then accepts everything, if it draws in the same unit."""
    model, context, n = tiny_target(**changes), series(), 4
    draft = copy.deepcopy(model)
    if other != "itself":
        draft.unit_of = lambda context: 3 * model.unit_of(context)
    noise = Noise.draw(context, n, PATCH, torch.Generator().manual_seed(0))
    decoded = decode_speculative(model, draft, context, n * PATCH, Coupling(LAW), noise=noise)
    assert (decoded.target_passes == 1).all() and (decoded.accepted == n - 1).all()
    z = torch.cat([noise.proposal[:, :-1], noise.target[:, -1:]], dim=1)[:, None]
    torch.testing.assert_close(decoded.forecast, sample_alone(model, context, n * PATCH, LAW, z)[0][:, 0], atol=1e-4,
                               rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("patches", [1, 3])
@pytest.mark.parametrize("repropose", ["draft", "corrected"])
@pytest.mark.parametrize("rule", [Coupling, Exact])
@pytest.mark.parametrize("changes", [{}, CAUSAL, {"use_norm": False}], ids=["window", "cache", "no norm"])
def test_each_row_keeps_its_own_unit_whatever_the_others_do(changes, rule, repropose, patches, series):
    """Rows of very different scale are rejected at different places and leave the batch at different times."""
    model, n, samples = tiny_target(**changes), 6, 3
    draft = tiny_draft(model, stochastic=rule is Exact, patches=patches)
    context = series() * torch.tensor([0.3, 1.0, 20.0, 4.0, 0.1, 7.0])[:, None, None]
    law = TargetLaw(LAW.factor * 2, relative=True)
    noise = Noise.draw(context.repeat_interleave(samples, dim=0), n, PATCH, torch.Generator().manual_seed(0))

    def decode(rows):
        paths = (rows[:, None] * samples + torch.arange(samples)).flatten()
        part = Noise(noise.proposal[paths], noise.target[paths], noise.uniform[paths])
        return decode_speculative(model, draft, context[rows], n * PATCH, rule(law), 3, part, repropose=repropose,
                                  samples=samples)
    together = decode(torch.arange(6))
    for row in range(6):
        own = slice(row * samples, (row + 1) * samples)
        alone = decode(torch.tensor([row]))
        torch.testing.assert_close(together.forecast[own], alone.forecast, rtol=1e-3,
                                   atol=1e-3 * float(context[row].std()))
        if rule is Coupling:
            torch.testing.assert_close(together.most[own], alone.most, rtol=1e-3, atol=1e-4)
    if model.config.use_norm and rule is Coupling:
        assert len(set(together.target_passes.tolist())) > 1  # rounds end at different places


@pytest.mark.parametrize("changes, tokens", [({}, [6 * 5, 24 * 5, 24 * 5]), (CAUSAL, [6 * 5, 24, 24])],
                         ids=["window", "cache"])
def test_the_context_is_encoded_once_for_all_paths(changes, tokens, series, monkeypatch):
    model, seen = tiny_target(**changes), []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda patches, stats: seen.append(patches.shape[:2].numel())
                        or embed(patches, stats))
    sample_alone(model, series(), 3 * PATCH, LAW, torch.zeros(6, 4, 3, PATCH, 3))
    assert seen == tokens
