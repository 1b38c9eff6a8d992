"""The divergence of parareal's paths from the target's law: a closed form and a slow computation."""
import math

import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target
from reference.decoder import predict, reference_parareal
from reference.gaussian_autoregression import C, D, Linear, P, dynamics, path_law

from utils.speculative_decoder import decode_parareal
from utils.target_law import TargetLaw

N, PATHS = 5, 20_000
FULL = 0.4 * torch.tensor([[1, 0, 0, 0], [0.8, 0.6, 0, 0], [0.5, 0.3, 0.7, 0], [-0.4, 0.6, 0.2, 0.9]])
UNIT = (0.5, 3.0)
LAWS = {"white": (TargetLaw.fixed(0.5), 0.5 * torch.eye(D, dtype=torch.float64)),
        "full, relative": (TargetLaw(FULL, full=True, relative=True),
                           torch.tensor(UNIT).repeat(P)[:, None].double() * FULL.double())}


def pair():
    A, b = dynamics()
    disturbed = A + 0.2 * torch.randn(D, D, generator=torch.Generator().manual_seed(5))
    return Linear(A, b, scale=UNIT), Linear(disturbed, b + 0.3)


def law_of_paths(target, draft, start, factor, passes):
    """Mean [N * D] and covariance of p_j, by its formulas on the coefficients of (z, 1), in double precision."""
    def after(model, past):
        own = torch.zeros_like(past)
        own[:, -1] = model.b.double()
        return model.A.double() @ past + own
    noise = [torch.zeros(D, N * D + 1, dtype=torch.float64) for _ in range(N)]
    for i, e in enumerate(noise):
        e[:, i * D:(i + 1) * D] = factor
    begin = torch.zeros_like(noise[0])
    begin[:, -1] = start
    error = [torch.zeros_like(begin)] * N
    for _ in range(passes):
        q = [begin]
        for i in range(N - 1):
            q.append(after(draft, q[-1]) + error[i] + noise[i])
        fine, coarse = ([after(model, past) for past in q] for model in (target, draft))
        error = [a - b for a, b in zip(fine, coarse)]
    p = torch.cat([fine[i] + noise[i] for i in range(N)])
    return p[:, -1], p[:, :-1] @ p[:, :-1].T


def divergence(mean, covariance, other_mean, other):
    """KL(N(mean, covariance) || N(other_mean, other)), the textbook formula."""
    away, inverse = mean - other_mean, torch.linalg.inv(other)
    return 0.5 * float((inverse @ covariance).trace() + away @ inverse @ away - len(mean)
                       + other.logdet() - covariance.logdet())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("passes", range(1, N + 1))
def test_its_mean_is_the_divergence_of_the_two_laws(passes, law):
    """Within five standard errors of the mean: 10 tests raise a false alarm with a probability below 1e-5."""
    (target, draft), (law, factor) = pair(), LAWS[law]
    context = torch.randn(1, P, C, generator=torch.Generator().manual_seed(0))
    z = torch.randn(1, PATHS, N, P, C, generator=torch.Generator().manual_seed(1))
    found = decode_parareal(target, draft, context, N * P, passes, law=law, z=z, audit=PATHS).divergence
    wanted_mean, wanted = path_law(target.A, target.b, factor @ factor.T, context.flatten(1), N)
    expected = divergence(*law_of_paths(target, draft, context.flatten().double(), factor, passes), wanted_mean[0],
                          wanted)
    assert found.shape == (1, PATHS)
    assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) / math.sqrt(PATHS) + 1e-9)
    assert (expected > 1e-3) == (passes < N), "the paths are right too early to tell anything"


@pytest.fixture(scope="module", params=["window", "cache"])
def target(request):
    return tiny_target(**({"norm_mode": "causal", "norm_window": 4} if request.param == "cache" else {}))


@pytest.mark.parametrize("patches", [1, 3])
@pytest.mark.parametrize("passes", [1, 2, 4])
def test_it_is_what_the_slow_target_says_of_the_path(target, series, passes, patches):
    context, law = series(rows=3), TargetLaw(torch.full((1, 1), 0.3), relative=True)
    draft, n, variables = tiny_draft(target, patches=patches), 5, context.shape[2]
    z = torch.randn(3, 3, n, PATCH, variables, generator=torch.Generator().manual_seed(3))
    made = decode_parareal(target, draft, context, n * PATCH - 2, passes, law=law, z=z, audit=2)
    bare = decode_parareal(target, draft, context, n * PATCH - 2, passes, law=law, z=z)
    assert torch.equal(made.forecast, bare.forecast) and torch.equal(made.target_passes, bare.target_passes)
    assert bare.divergence is None and made.divergence.shape == (3, 2)
    unit = target.start(context, 1).unit
    for row, past in enumerate(context):
        for path in range(2):
            noise = law.spread(z[row, path], unit[row])
            p = reference_parareal(target, draft, past, n * PATCH, passes, noise)[0].split(PATCH)
            away = [p[i] - noise[i] - predict(target, torch.cat([past, *p[:i]]), len(past))[0][0] for i in range(n)]
            squares = sum(float((gap / (0.3 * unit[row, 0])).square().sum()) for gap in away)
            assert float(made.divergence[row, path]) == pytest.approx(squares / 2, rel=1e-3)
            assert squares > 1e-5


@pytest.mark.parametrize("settings", [{"audit": 1, "law": None, "z": None}, {"audit": 3}, {"audit": -1},
                                      {"audit": 1, "tol": 0.1}])
def test_a_divergence_that_there_is_not_is_refused(target, series, settings):
    context = series(rows=2)
    z = torch.randn(2, 2, 3, PATCH, context.shape[2], generator=torch.Generator().manual_seed(3))
    settings = {"law": TargetLaw.fixed(0.3), "z": z} | settings
    with pytest.raises(ValueError, match=f"audit is {settings['audit']} and tol"):
        decode_parareal(target, tiny_draft(target), context, 3 * PATCH, **settings)
