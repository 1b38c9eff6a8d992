"""Several processes that share a walk find what one finds, number by number.

Here the processes are threads, which send each other what processes would: pickled.
"""
import pickle
import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from data_provider.data_factory import shared_loader
from data_provider.samplers import OrderedBatches, batch_sizes
from exp.evaluate.by_series import BySeries, Walk
from exp.evaluate.evaluation import AcceptanceLog, evaluate
from exp.evaluate.methods import AloneMethod, SeasonalNaiveMethod, WidenedMethod, make_rule, make_speculative
from exp.evaluate.paths import evaluate_paths
from exp.evaluate.promise import Deviations
from exp.settings import Settings
from exp.speculation import SpecSettings
from exp.team import ALONE, Team
from utils.errors import NotFinite, UserError
from utils.planner import Plan
from utils.target_law import TargetLaw

CPU = torch.device("cpu")
HORIZON, VARIABLES, WINDOWS, OF_FIRST = 3 * PATCH, 2, 26, 15


@dataclass(frozen=True)
class Threads(Team):
    """A team in one process: `group` is (a barrier, a place for what is sent)."""

    def everyone(self, part):
        if self.size == 1:
            return [part]
        barrier, sent = self.group
        sent[self.rank] = pickle.dumps(part)
        barrier.wait(20)
        parts = [pickle.loads(each) for each in sent]
        barrier.wait(20)
        return parts

    def gather(self, part):
        parts = self.everyone(part)
        return parts if self.is_main else []


def together(size, work):
    """What work(team) returns in each of `size` threads. Raises the first error, which the others do not survive."""
    barrier, found, errors = threading.Barrier(size), [None] * size, []
    group = barrier, [None] * size

    def run(rank):
        try:
            found[rank] = work(Threads(rank, size, group))
        except threading.BrokenBarrierError:
            pass
        except Exception as error:
            errors.append(error)
            barrier.abort()
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return found


class Windows:
    """Windows of two series of two variables, more of the first."""

    variables, n_series = VARIABLES, 2
    labels = [("f", "a"), ("f", "b"), ("g", "a"), ("g", "b")]
    naive_errors = torch.tensor([1.0, 2.0, 0.5, float("nan")])
    first_items, counts = torch.tensor([0, OF_FIRST]), torch.tensor([OF_FIRST, WINDOWS - OF_FIRST])
    seasons = torch.tensor([3, 4])

    def __init__(self, spoilt=None):
        values = torch.randn(WINDOWS, 8 * PATCH, VARIABLES, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
        if spoilt is not None:
            values[spoilt] = 3e38
        self.x, self.y = values.split([5 * PATCH, HORIZON], dim=1)

    def __len__(self):
        return WINDOWS

    def __getitems__(self, items):
        return self.x[items], self.y[items]

    def series_of(self, items):
        return (items >= OF_FIRST).long()


@pytest.fixture(scope="module")
def pair():
    target = tiny_target()
    return target, tiny_draft(target)


def results(found):
    """All that was measured, but for how long it took."""
    return {name: ({key: value for key, value in out.result(2).items() if key not in ("seconds", "ms_per_forecast")},
                   out.by_series.rows(), out.rms_from_reference(), out.rms_in_windows())
            for name, out in found.items()}


def evaluated(methods, team, dataset, log=None, records=None):
    walk, sizes = Walk(dataset, range(WINDOWS)), batch_sizes(WINDOWS, 5, 3)  # 3, 2, 3, 2, ..., 1
    loader = shared_loader(dataset, walk.items, sizes, team.rank, team.size)
    made = methods(team)
    return evaluate(made, loader, CPU, quiet=True, observer=log, reference=next(iter(made)), records=records, walk=walk,
                    team=team)


@pytest.mark.parametrize("size", [2, 5])  # 11 batches: the last turn is of one process
def test_all_methods_are_measured_as_by_one_process(pair, size):
    law = TargetLaw(torch.full((PATCH, VARIABLES), 0.5), relative=True, widths=torch.rand(7, VARIABLES) + 0.5)
    spec = SpecSettings(tol=0.2, sigma=0.5, k=2)

    def methods(team):
        made = {"target": AloneMethod(pair[0], HORIZON),
                "naive": SeasonalNaiveMethod(torch.arange(WINDOWS) % 7 + 1, HORIZON)}
        for rule in ("simplified", "exact", "coupling", "tolerance", "parareal"):
            own = make_rule(spec, law if rule in ("exact", "coupling") else None, rule=rule)
            made[rule] = make_speculative(*pair, spec, HORIZON, 5, own)
        # without proposals it draws no noise, unless it emits samples
        for emit in ("mean", "sample"):
            planned = make_speculative(*pair, spec, HORIZON, 5, make_rule(spec, rule="simplified", emit=emit))
            planned.plans = {3: Plan(2, 3, 0.5, {}), 2: Plan(0, 2, 0.5, {})}
            made[f"planned {emit}"] = planned
        return made
    one = evaluated(methods, ALONE, Windows())
    several = together(size, lambda team: evaluated(methods, team, Windows()))[0]
    assert results(several) == results(one)
    dataset = Windows()
    at_once = BySeries(Walk(dataset, range(WINDOWS)))
    at_once.update(AloneMethod(pair[0], HORIZON).forecast(dataset.x), dataset.y)
    torch.testing.assert_close(one["target"].by_series.metrics.sums, at_once.metrics.sums)
    rejected = results(one)["exact"][0]
    assert 0 < rejected["accepted"] < rejected["attempted"]
    assert results(one)["planned mean"][0]["proposed"] > 0


def test_proposals_are_logged_in_order(pair):
    def methods(team):
        return {"it": make_speculative(*pair, SpecSettings(tol=0.2), HORIZON, 0)}

    def logged(team):
        log = AcceptanceLog(17)
        evaluated(methods, team, Windows(), log=log)
        return log.rows
    one, several = logged(ALONE), together(3, logged)
    assert several == [one, [], []] and {row["window"] for row in one} == set(range(17))


def test_deviations_of_all_windows_come_together_in_order(pair):
    def found(team):
        dataset = Windows()
        records = {"near": Deviations("window standard deviations", False, Walk(dataset, range(WINDOWS)))}

        def methods(team):
            return {"target": AloneMethod(pair[0], HORIZON), "near": AloneMethod(pair[1], HORIZON, is_draft=True)}
        return torch.cat([torch.zeros(0), *evaluated(methods, team, dataset, records=records)["near"].found])
    one, several = found(ALONE), together(2, found)
    assert torch.equal(several[0], one) and len(one) == len(one.unique()) == WINDOWS and not len(several[1])


@pytest.fixture
def settings():
    made = Settings().with_("run", quiet=True).with_("data", horizon=HORIZON, test_context=5 * PATCH, batch_size=3)
    made = made.with_("model", config=replace(made.model.config, input_token_len=PATCH))
    return made.with_("report", num_samples=6, save_samples=True)


@pytest.mark.parametrize("kind", ["parareal", "exact", "widened"])
def test_paths_are_those_of_one_process(pair, settings, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("exp.evaluate.paths.pit_figure", lambda *_: None)
    law = TargetLaw(torch.full((PATCH, VARIABLES), 0.5), relative=True, widths=torch.rand(7, VARIABLES) + 0.5)
    spec = SpecSettings(rule=kind if kind in ("parareal", "exact") else "tolerance", tol=0.0, passes=None)

    def scores(team):
        rule = make_rule(spec, law, emit="mean")
        method = AloneMethod(pair[0], HORIZON) if kind == "widened" else \
            make_speculative(*pair, spec, HORIZON, 5, rule)
        method = method.sampled(spec, law, 5, 6)
        if kind == "widened":
            method = WidenedMethod(method, torch.tensor([1.0, 1.5, 2.0]), PATCH)
        dataset, folder = Windows(), tmp_path / str(team.size)
        folder.mkdir(exist_ok=True)
        loader = shared_loader(dataset, range(WINDOWS), batch_sizes(WINDOWS, 3, 2), team.rank, team.size)
        return evaluate_paths(method, dataset, loader, settings, CPU, folder, team) | {"seconds": None}
    one, (several, *others) = scores(ALONE), together(3, scores)
    assert several == one and all(other == {"seconds": None} for other in others)
    assert one["rolling"]["crps"] != one["crps"]  # factors other than 1, from windows of all processes
    assert (tmp_path / "1/samples.npz").read_bytes() == (tmp_path / "3/samples.npz").read_bytes()


def test_an_error_names_the_window_in_the_whole_walk(pair):
    with pytest.raises(NotFinite, match=r"window 19 \(counted from 0\)"):
        together(2, lambda team: evaluated(lambda team: {"it": AloneMethod(pair[0], HORIZON)}, team, Windows(19)))


@pytest.mark.parametrize("windows, size, most, sizes", [
    (7, 3, None, [3, 3, 1]), (6, 3, 5, [3, 3]), (7, 3, 2, [2, 1, 2, 1, 1]), (2, 8, 1, [1, 1])])
def test_batches_are_cut_and_shared_without_a_window_lost_or_doubled(windows, size, most, sizes):
    assert batch_sizes(windows, size, most) == sizes
    items = np.random.default_rng(0).permutation(100)[:windows].tolist()
    for world in (1, 2, 3, 8):
        shares = [OrderedBatches(items, sizes, rank, world) for rank in range(world)]
        assert [len(share) for share in shares] == [len(list(share)) for share in shares]
        in_turn = [batch for turn in range(len(shares[0])) for share in shares for batch in list(share)[turn:turn + 1]]
        assert [len(batch) for batch in in_turn] == sizes and sum(in_turn, []) == items


def test_alone_there_is_nobody_to_ask():
    assert ALONE.gather(3) == ALONE.everyone(3) == [3] and ALONE.once(lambda: 3) == 3 and ALONE.is_main
    with pytest.raises(UserError, match="no"):
        ALONE.once(lambda: (_ for _ in ()).throw(UserError("no")))
