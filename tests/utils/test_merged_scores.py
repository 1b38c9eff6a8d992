"""Scores that were measured apart and merged are those that were measured together, sum by sum."""
import pytest
import torch

from utils.decoded import Decoded
from utils.scores import PararealMetrics, PathMetrics, PointMetrics, SeriesMetrics, SpeculationMetrics

GENERATOR = torch.Generator().manual_seed(0)
CONSTANT = {"naive_errors", "patch_len"}  # of the attributes


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def counts(batch):
    return torch.randint(1, 9, (batch,), generator=GENERATOR)


def judged(batch, longest):
    names = ("accepted", "judged", "proposed", "target_passes", "draft_passes", "most")
    return Decoded(normal(batch, 4, 2), lengths=counts(longest), **{name: counts(batch) for name in names})


def by_parareal(batch):
    return Decoded(normal(batch, 4, 2), counts(batch) % 3 + 1, counts(batch), gap=normal(batch, 2).abs(),
                   paths=normal(batch, 5, 4, 2), divergence=normal(batch, 1).abs())


BATCHES = (3, 2, 4)
CASES = {
    "points": (PointMetrics, [(normal(b, 4, 2), normal(b, 4, 2).round()) for b in BATCHES]),
    "series": (lambda: SeriesMetrics(torch.tensor([1.0, 2.0, 0.0])),
               [(normal(b, 4, 2), normal(b, 4, 2), counts(2 * b).view(b, 2) % 3) for b in BATCHES]),
    "speculation": (SpeculationMetrics, [(judged(b, b),) for b in BATCHES]),  # histograms of three lengths
    "parareal": (PararealMetrics, [(by_parareal(b),) for b in BATCHES]),
    "paths": (lambda: PathMetrics(3), [(normal(b, 5, 4, 2), normal(b, 4, 2)) for b in BATCHES]),
}


def plain(value):
    """A state that can be compared: tensors as lists."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def measured(make, batches):
    metrics = make()
    for batch in batches:
        metrics.update(*batch)
    return metrics


def near(found, wanted):
    if isinstance(wanted, (list, dict)):
        items = wanted.items() if isinstance(wanted, dict) else enumerate(wanted)
        return len(found) == len(wanted) and all(near(found[key], value) for key, value in items)
    return found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_merged_scores_are_those_of_the_whole(kind, first):
    make, batches = CASES[kind]
    whole, own, others = (measured(make, part) for part in (batches, batches[:first], batches[first:]))
    before = plain(vars(own))
    own.merge(others)
    assert near(plain(vars(own)), plain(vars(whole)))
    changed = {name for name, value in plain(vars(own)).items() if value != before[name]}
    assert changed | CONSTANT >= vars(own).keys() - ({"sampled"} if first else set())  # nothing is summed in vain
