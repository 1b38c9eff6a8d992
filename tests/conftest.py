"""Tiny models and series that the tests share."""
import os

# the models are tiny: more threads only cost time. By the environment, so that processes that tests start compute
# with the same kernels; to the last bit, results depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

from models import timer_xl, timer_xl_draft  # noqa: E402
from models.config import ModelConfig  # noqa: E402

PATCH = 8
TINY = ModelConfig(input_token_len=PATCH, d_model=16, n_heads=2, d_ff=32, e_layers=2)


def tiny_target(seed: int = 0, **changes):
    torch.manual_seed(seed)
    return timer_xl.Model(ModelConfig(**TINY.as_dict() | changes)).eval()


def tiny_draft(target, stochastic: bool = True, distance: float = 0.03, seed: int = 1, patches: int = 1):
    """The target's own weights, disturbed: near enough to be accepted now and then, far enough to be rejected.

    Heads that speak of several patches say of each what the target says of the next.
    """
    config = ModelConfig(**target.config.as_dict() | {"draft_stochastic": stochastic, "draft_patches": patches})
    torch.manual_seed(seed)
    draft = timer_xl_draft.Model(config).eval()
    state = {key.replace("head.", "head_mean."): torch.cat([value] * patches) if key.startswith("head.") else value
             for key, value in target.state_dict().items()}
    draft.load_state_dict(state, strict=False)
    with torch.no_grad():
        for name, weight in draft.named_parameters():
            if "logvar" not in name:
                weight += distance * torch.randn_like(weight)
    return draft


@pytest.fixture
def series():
    """[B, L, C]: seasons, a level and noise of their own in every row and variable."""
    def make(rows=6, length=5 * PATCH, variables=3, seed=2):
        generator = torch.Generator().manual_seed(seed)
        phase = torch.rand(rows, 1, variables, generator=generator) * 6
        level = 2 * torch.randn(rows, 1, variables, generator=generator)
        noise = torch.randn(rows, length, variables, generator=generator)
        amount = torch.linspace(0.05, 1.5, rows)[:, None, None]  # rows of different difficulty: ragged acceptance
        return torch.sin(torch.arange(length)[None, :, None] * 0.6 + phase) + level + amount * noise
    return make
