"""A target's law against torch's own multivariate normal."""
import pytest
import torch

from utils.target_law import TargetLaw

P, C = 4, 3
SCALE = torch.tensor([[[0.5, 1.0, 2.0]], [[1.5, 0.2, 3.0]]])  # [2, 1, C]


def triangular(size=P * C):
    generator = torch.Generator().manual_seed(0)
    below = 0.3 * torch.randn(size, size, generator=generator).tril(-1)
    return below + torch.diag(0.5 + torch.rand(size, generator=generator))


LAWS = {
    "fixed": TargetLaw.fixed(0.25),
    "one deviation a lead": TargetLaw(torch.linspace(0.2, 0.9, P)[:, None], relative=True),
    "one an element": TargetLaw(torch.linspace(0.2, 0.9, P * C).view(P, C), relative=True),
    "full, data units": TargetLaw(triangular(), full=True),
    "full, relative": TargetLaw(triangular(), full=True, relative=True),
}


def as_torch(law, scale):
    """The same law, its matrix written out."""
    matrix = law.factor if law.full else torch.diag(law.factor.expand(P, C).flatten())
    unit = scale.expand(P, C).flatten() if law.relative else torch.ones(P * C)
    return torch.distributions.MultivariateNormal(torch.zeros(P * C), scale_tril=unit[:, None] * matrix)


@pytest.mark.parametrize("name", LAWS)
def test_whitening_undoes_spreading_by_the_density_of_torch(name):
    law = LAWS[name]
    z = torch.randn(2, P, C, generator=torch.Generator().manual_seed(1))
    x = law.spread(z, SCALE)
    torch.testing.assert_close(law.whiten(x, SCALE), z, atol=1e-5, rtol=1e-5)
    density = -0.5 * z.square().sum(dim=(1, 2)) - law.log_volume(SCALE, P) - 0.5 * P * C * torch.log(
        torch.tensor(2 * torch.pi))
    expected = torch.stack([as_torch(law, SCALE[i]).log_prob(x[i].flatten()) for i in range(2)])
    torch.testing.assert_close(density, expected, atol=1e-4, rtol=1e-5)


def test_the_law_may_differ_from_row_to_row():
    sigmas = torch.rand(2, 3, P, C, generator=torch.Generator().manual_seed(2)) + 0.5
    z, ones = torch.randn(2, 3, P, C), torch.ones(2, 3, 1, C)
    law = TargetLaw(sigmas)
    torch.testing.assert_close(law.spread(z, ones), sigmas * z)
    torch.testing.assert_close(law.log_volume(ones, P), sigmas.log().sum(dim=(2, 3)))


@pytest.mark.parametrize("name", LAWS)
def test_the_variance_is_that_of_torch(name):
    expected = torch.stack([as_torch(LAWS[name], SCALE[i]).variance.view(P, C) for i in range(2)])
    torch.testing.assert_close(LAWS[name].variance(SCALE, P), expected)


def test_whitening_takes_any_number_of_leading_dimensions():
    law, z = LAWS["full, relative"], torch.randn(5, 2, P, C)
    torch.testing.assert_close(law.whiten(law.spread(z, SCALE), SCALE), z, atol=1e-5, rtol=1e-5)
