"""Environment and fixtures of all tests; helpers are in tests/helpers.py."""
import os

# the models are tiny: more threads only cost time. By the environment, so that processes that tests start compute
# with the same kernels; to the last bit, results depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from helpers import PATCH  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, metavar="N", help="run N fuzz cases, at random, instead of the usual ones")
    parser.addoption("--kills", type=int, default=3, metavar="N", help="kill every kind of run N times (slow)")


def pytest_configure(config):
    if config.getoption("fuzz"):
        os.environ["FUZZ_CASES"] = str(config.getoption("fuzz"))  # before the tests are read: tests/fuzz/endings.py


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
