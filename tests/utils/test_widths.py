"""Laws whose paths differ in width: every way to sample draws the same widths, and the rules keep the law given them.

Every p-value is held against LEVEL = 1e-6, as in test_lossless: about 110 are computed, so with other seeds the module
as a whole would raise a false alarm with a probability of about 1e-4 (Bonferroni).
"""
from dataclasses import replace

import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target
from reference.gaussian_autoregression import C, D, P, path_law
from scipy import stats
from test_lossless import FULL, LEVEL, PATHS, N, p_values, pair

from utils.acceptance import Simplified
from utils.lossless import Coupling, Exact
from utils.proposals import Noise
from utils.speculative_decoder import decode_parareal, decode_speculative, sample_alone
from utils.target_law import TargetLaw

WIDTHS = torch.tensor([[0.4, 1.5], [1.0, 0.6], [2.5, 2.0]])  # [M, C]
LAWS = {"diag": TargetLaw(torch.tensor([[0.4], [0.6]]), relative=True, widths=WIDTHS),
        "full": TargetLaw(FULL, full=True, relative=True, widths=WIDTHS)}
CAUSAL = {"norm_mode": "causal", "norm_window": 3}
TINY = TargetLaw(torch.linspace(0.1, 0.6, PATCH * 3).view(PATCH, 3), relative=True,
                 widths=torch.tensor([[0.2, 1.0, 3.0], [2.0, 0.5, 1.0], [0.7, 0.7, 0.1], [1.5, 2.5, 1.0]]))


def sampled(rule, law, models, K=3, repropose="corrected"):
    """Contexts [PATHS, P, C], the widths of the rows, and what a rule makes of them."""
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(PATHS, P, C, generator=generator)
    noise = Noise.draw(context, N, P, generator, law)
    return context, noise.width, decode_speculative(*models, context, N * P, rule, K, noise, repropose=repropose)


def whitened(target, law, context, width, decoded):
    """Paths less their mean by the law of their own width, which is written out: [PATHS, N * D], standard normal."""
    factor, parts = law.factor if law.full else torch.diag(law.factor.expand(P, C).flatten()), []
    for w in law.widths:
        own = (width == w).all(dim=1)
        spread = (target.scale.flatten() * w).expand(P, C).flatten()[:, None] * factor
        mean, covariance = path_law(target.A, target.b, spread @ spread.T, context[own].flatten(1), N)
        away = decoded.forecast[own].flatten(1).double() - mean
        parts.append(torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), away.T, upper=False).T)
    assert sum(map(len, parts)) == PATHS
    return torch.cat(parts)


SCALES = ((0.7, 2.0), (0.7, 2.0))


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("rule", [Coupling, Exact])
def test_a_rule_keeps_the_law_of_each_width(rule, name):
    law, models = LAWS[name], pair(0.3, scales=SCALES)
    context, width, decoded = sampled(rule(law), law, models)
    assert min(p_values(whitened(models[0], law, context, width, decoded))) > LEVEL
    assert 0.2 < decoded.accepted.sum() / decoded.judged.sum() < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("rule, repropose", [(Coupling, "draft"), (Exact, "draft")])
def test_fresh_proposals_keep_it_too(rule, repropose):
    law, models = LAWS["diag"], pair(0.8, ratio=None, scales=SCALES)
    context, width, decoded = sampled(rule(law), law, models, 7, repropose)
    assert min(p_values(whitened(models[0], law, context, width, decoded))) > LEVEL


class RedrawnAtWidthOne(Exact):
    """Redraws by the law without the row's width."""

    def replace(self, own, prediction, eps, proposals, rejected):
        plain = replace(prediction, unit=torch.ones_like(prediction.unit))
        return super().replace(own, plain, eps, proposals, rejected)


def test_redraws_that_forget_the_width_are_refuted():
    law, models = LAWS["diag"], pair(0.8, ratio=None)
    context, width, decoded = sampled(RedrawnAtWidthOne(law), law, models)
    assert min(p_values(whitened(models[0], law, context, width, decoded))) < LEVEL


def test_exact_proposes_by_the_law_of_the_path():
    """A draft's own variances know nothing of the width: by them hardly anything would be accepted."""
    law, models = LAWS["diag"], pair(0.0, other_dynamics=0.0, scales=SCALES)
    _, _, decoded = sampled(Exact(law), law, models)
    assert decoded.accepted.sum() > 0.99 * decoded.judged.sum()


def test_widths_are_drawn_evenly_and_their_paths_have_the_mixture_of_their_laws():
    """chi-square of the rows; Kolmogorov-Smirnov of the first element against the mixture written out."""
    law, samples = LAWS["diag"], 20_000
    width = law.widths_of(torch.rand(samples, generator=torch.Generator().manual_seed(1)))
    counts = [int((width == w).all(dim=1).sum()) for w in law.widths]
    assert sum(counts) == samples and stats.chisquare(counts).pvalue > LEVEL
    assert torch.equal(law.widths_of(torch.tensor([0.0, 0.34, 1 - 2**-24])), WIDTHS)
    target, context = pair()[0], torch.zeros(1, P, C)
    z = torch.randn(1, samples, 1, P, C, generator=torch.Generator().manual_seed(2))
    paths, means = sample_alone(target, context, P, law, z, width[None])
    away = (paths - means)[0, :, 0, 0].double().numpy()

    def mixture(x):
        return sum(stats.norm.cdf(x, scale=0.4 * float(w)) for w in WIDTHS[:, 0]) / 3
    assert stats.kstest(away, mixture).pvalue > LEVEL
    assert stats.kstest(away, lambda x: stats.norm.cdf(x, scale=away.std())).pvalue < LEVEL


@pytest.mark.parametrize("changes", [{}, CAUSAL], ids=["window", "cache"])
def test_a_path_of_some_width_is_that_of_a_law_so_wide(changes, series):
    target, context, n = tiny_target(**changes), series(), 3
    z = torch.randn(6, 2, n, PATCH, 3, generator=torch.Generator().manual_seed(1))
    width = TINY.widths_of(torch.rand(6, 2, generator=torch.Generator().manual_seed(2)))
    paths, _ = sample_alone(target, context, n * PATCH, TINY, z, width)
    for row, path in ((0, 0), (3, 1), (5, 0)):
        own = replace(TINY.plain(), factor=TINY.factor * width[row, path])
        one, _ = sample_alone(target, context[row:row + 1], n * PATCH, own, z[row:row + 1, path:path + 1])
        torch.testing.assert_close(paths[row, path], one[0, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, CAUSAL], ids=["window", "cache"])
def test_every_way_to_sample_has_the_same_widths(changes, series):
    """All passes of parareal are the plain sampler; so is coupling of a target with itself."""
    target, context, n = tiny_target(**changes), series(), 4
    noise = Noise.draw(context, n, PATCH, torch.Generator().manual_seed(0), TINY)
    z = torch.cat([noise.proposal[:, :-1], noise.target[:, -1:]], dim=1)[:, None]
    plain, _ = sample_alone(target, context, n * PATCH, TINY, z, noise.width[:, None])
    coupled = decode_speculative(target, target, context, n * PATCH, Coupling(TINY), noise=noise)
    refined = decode_parareal(target, tiny_draft(target), context, n * PATCH, n, law=TINY, z=z,
                              width=noise.width[:, None])
    assert (coupled.accepted == n - 1).all()
    for made in (coupled, refined):
        torch.testing.assert_close(made.forecast, plain[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", [Coupling, Exact])
def test_rows_that_leave_early_keep_their_widths(rule, series):
    target, n, samples = tiny_target(**CAUSAL), 5, 2
    draft, context = tiny_draft(target, stochastic=True), series()
    noise = Noise.draw(context.repeat_interleave(samples, dim=0), n, PATCH, torch.Generator().manual_seed(0), TINY)

    def decode(row):
        paths = slice(row.start * samples, row.stop * samples)
        part = Noise(noise.proposal[paths], noise.target[paths], noise.uniform[paths], noise.width[paths])
        return decode_speculative(target, draft, context[row], n * PATCH, rule(TINY), 2, part, samples=samples)
    together = decode(slice(0, 6))
    assert len(set(together.target_passes.tolist())) > 1
    for row in range(6):
        torch.testing.assert_close(together.forecast[row * samples:(row + 1) * samples],
                                   decode(slice(row, row + 1)).forecast, atol=1e-3, rtol=1e-3)


def test_noise_of_a_row_has_its_width_whatever_the_batch():
    context = torch.zeros(4, 1, C)
    whole = Noise.draw(context, 3, P, torch.Generator().manual_seed(5), LAWS["diag"])
    generator = torch.Generator().manual_seed(5)
    parts = [Noise.draw(part, 3, P, generator, LAWS["diag"]) for part in context.split(1)]
    for field in ("proposal", "target", "uniform", "width"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))
    without = Noise.draw(context, 3, P, torch.Generator().manual_seed(5), LAWS["diag"].plain())
    assert without.width is None
    assert torch.equal(without.target, Noise.draw(context, 3, P, torch.Generator().manual_seed(5)).target)


def test_without_noise_the_decoder_draws_the_widths_itself(series):
    target = tiny_target()
    for rule in (Coupling(TINY), Simplified(0.3)):
        made = decode_speculative(target, tiny_draft(target), series(), 2 * PATCH, rule)
        assert made.forecast.isfinite().all()


def test_a_width_without_its_law_is_refused_and_the_reverse(series):
    target, context = tiny_target(), series()
    z = torch.zeros(6, 1, 1, PATCH, 3)
    noise = Noise.draw(context, 1, PATCH)
    for law, width in ((TINY, None), (TINY.plain(), torch.ones(6, 1, 3))):
        with pytest.raises(ValueError, match="widths"):
            sample_alone(target, context, PATCH, law, z, width)
        with pytest.raises(ValueError, match="widths"):
            decode_parareal(target, tiny_draft(target), context, PATCH, law=law, z=z, width=width)
    with pytest.raises(ValueError, match="widths"):
        decode_speculative(target, tiny_draft(target), context, PATCH, Coupling(TINY), noise=noise)


def test_a_scaled_law_keeps_its_widths():
    scaled = TINY.scaled(0.5)
    assert torch.equal(scaled.widths, TINY.widths) and torch.equal(scaled.factor, 0.5 * TINY.factor)
    assert TINY.plain().widths is None and D == P * C


def test_the_divergence_of_paths_by_parareal_is_in_units_of_their_width(series):
    target, context, n = tiny_target(**CAUSAL), series(), 4
    z = torch.randn(6, 2, n, PATCH, 3, generator=torch.Generator().manual_seed(1))
    wide = replace(TINY, widths=torch.full((1, 3), 2.0))
    same = replace(TINY.plain(), factor=2 * TINY.factor)
    draft = tiny_draft(target)
    by_width = decode_parareal(target, draft, context, n * PATCH, 2, law=wide, z=z, width=torch.full((6, 2, 3), 2.0),
                               audit=1)
    written_out = decode_parareal(target, draft, context, n * PATCH, 2, law=same, z=z, audit=1)
    assert by_width.divergence.min() > 0
    torch.testing.assert_close(by_width.divergence, written_out.divergence, rtol=1e-3, atol=1e-4)
