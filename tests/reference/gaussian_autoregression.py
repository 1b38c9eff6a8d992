"""A linear Gaussian autoregression, whose law over several patches is known in closed form, as target and draft."""
import math

import torch

from utils.interface import Decodable
from utils.window_state import WindowState

P, C = 2, 2
D = P * C


class Linear(Decodable):
    """mean of the next patch = A (last patch) + b, all D elements together; logvar constant, or none.

    scale: the unit it claims to predict in (what `relative` laws are multiplied by), [C].
    """

    patch_len, patches_ahead = P, 1

    def __init__(self, A: torch.Tensor, b: torch.Tensor, sigma: float | None = None, scale=(1.0, 1.0)):
        self.A, self.b, self.scale = A, b, torch.tensor(scale)
        self.logvar = None if sigma is None else 2 * math.log(sigma)

    def start(self, context, room):
        return WindowState(self, context.unflatten(1, (-1, P)), room)

    def unit_of(self, context):
        return self.scale.expand(len(context), 1, 1, C)

    def predict_windows(self, windows):
        last = windows[:, -1:]
        mean = (last.flatten(1) @ self.A.T + self.b).view_as(last)
        return mean, None if self.logvar is None else torch.full_like(mean, self.logvar), self.unit_of(windows)[:, 0]


def dynamics(seed: int = 0):
    """A stable A [D, D] and b [D]."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(D, D, generator=generator)
    return 0.8 * A / torch.linalg.matrix_norm(A, 2), torch.randn(D, generator=generator)


def path_law(A: torch.Tensor, b: torch.Tensor, step_covariance: torch.Tensor, start: torch.Tensor, n: int):
    """Mean [B, n * D] of n patches after `start` [B, D], and their covariance [n * D, n * D], in double precision."""
    A, b, step_covariance, mean = A.double(), b.double(), step_covariance.double(), start.double()
    means, powers = [], [torch.eye(D, dtype=torch.float64)]
    for _ in range(n):
        mean = mean @ A.T + b
        means.append(mean)
        powers.append(A @ powers[-1])
    # patch t = mean + sum over s <= t of A^(t - s) noise_s
    from_noise = torch.cat([torch.cat([powers[t - s] if s <= t else torch.zeros_like(A) for s in range(n)], dim=1)
                            for t in range(n)])
    covariance = from_noise @ torch.block_diag(*[step_covariance] * n) @ from_noise.T
    return torch.cat(means, dim=1), covariance
