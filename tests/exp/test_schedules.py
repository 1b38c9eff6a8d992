"""Learning rates against torch's own scheduler and against values written out from OpenLTM."""
import pytest
import torch

from exp.schedules import LRADJ, learning_rate

BASE = 1e-3


def rates(count, **settings):
    return [learning_rate(epoch, BASE, **settings) for epoch in range(count)]


@pytest.mark.parametrize("tmax", [1, 5, 10])
def test_cosine_equals_torchs_annealing_with_openltms_floor(tmax):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=tmax, eta_min=1e-8)
    expected = []
    for _ in range(tmax + 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(tmax + 1, cosine=True, tmax=tmax) == pytest.approx(expected, rel=1e-9)


def test_cosine_goes_before_lradj():
    assert rates(4, cosine=True, tmax=3, lradj="type1") == rates(4, cosine=True, tmax=3, lradj="constant")


def test_type1_halves_from_the_third_epoch_on():
    # OpenLTM adjusts after an epoch and counts from one, so two epochs run at the full rate
    assert rates(6) == rates(6, lradj="type1") == pytest.approx([1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5])


def test_type2_follows_openltms_table():
    expected = [1e-3, 1e-3, 5e-5, 5e-5, 1e-5, 1e-5, 5e-6, 5e-6, 1e-6, 1e-6, 5e-7, 5e-7, 5e-7, 5e-7, 5e-7, 1e-7]
    expected += [1e-7] * 4 + [5e-8] * 2
    assert rates(22, lradj="type2") == pytest.approx(expected)


def test_type3_decays_by_a_tenth_from_the_fifth_epoch_on():
    assert rates(7, lradj="type3") == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 9e-4, 8.1e-4, 7.29e-4])


def test_constant_stays():
    assert rates(5, lradj="constant") == [BASE] * 5


def test_an_unknown_schedule_is_refused_and_every_offered_one_works():
    for lradj in LRADJ:
        assert learning_rate(0, BASE, lradj) == BASE
    with pytest.raises(ValueError, match="type9"):
        learning_rate(0, BASE, "type9")
