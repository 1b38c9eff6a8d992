"""The walk over the windows: what is scored, timed, logged, and kept of an interrupted one."""
from dataclasses import replace

import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from exp.evaluate.comparison import compare, describe
from exp.evaluate.evaluation import AcceptanceLog, Evaluation, Interrupted, evaluate
from exp.evaluate.methods import AloneMethod, Method, make_speculative
from exp.report.results import DRAFT, TARGET
from exp.settings import Settings
from exp.speculation import SpecSettings
from utils.adapters import VARIANCE_FLOOR
from utils.decoded import Decoded, Round
from utils.proposals import Judgement
from utils.timing import time_side_by_side

CPU = torch.device("cpu")


class Constant(Method):
    """Forecasts 4 steps of one number; is interrupted in one batch, where that is asked for."""

    def __init__(self, number=0.0, interrupted_in=None):
        self.number, self.calls, self.interrupted_in = number, 0, interrupted_in

    def decode(self, context, observer=None):
        self.calls += 1
        if self.calls == self.interrupted_in:
            raise KeyboardInterrupt
        return Decoded(torch.full((len(context), 4, context.shape[2]), self.number))


def mse(out):
    return out.point.result()["mse"]


# --- scores

def test_with_covariates_only_the_last_variable_is_scored():
    x, y = torch.zeros(3, 8, 2), torch.stack([torch.full((3, 4), 5.0), torch.full((3, 4), 2.0)], dim=-1)
    methods = {"zeros": Constant(), "ones": Constant(1.0)}
    for covariate, expected in ((True, [4.0, 1.0]), (False, [(25 + 4) / 2, (16 + 1) / 2])):
        out = evaluate(methods, [(x, y)], CPU, covariate, quiet=True, reference="zeros")
        assert [mse(out[name]) for name in methods] == expected
        assert [out[name].rms_from_reference() for name in methods] == [0.0, 1.0]


def test_deviation_is_from_the_reference_over_every_element():
    class Odd(Constant):
        def decode(self, context, observer=None):
            decoded = super().decode(context)
            decoded.forecast[:, 0] += context[:, 0]  # off by 0 in the first batch, by 3 at one step in the second
            return decoded
    batches = [(torch.full((size, 8, 2), level), torch.zeros(size, 4, 2)) for size, level in ((5, 0.0), (2, 3.0))]
    out = evaluate({"odd": Odd(7.0), "even": Constant(7.0)}, batches, CPU, quiet=True, reference="even")
    assert out["odd"].rms_from_reference() == pytest.approx((2 * 9 / (7 * 4)) ** 0.5)
    assert out["even"].rms_from_reference() == 0


class OfUnit(Constant):
    """A reference that knows the unit of a window."""

    def unit_of(self, context):
        return (context.var(dim=1, keepdim=True, unbiased=False) + VARIANCE_FLOOR).sqrt()


def test_deviation_in_windows_is_in_the_unit_of_each_window_and_variable():
    generator = torch.Generator().manual_seed(0)
    x = 10 ** torch.randn(7, 1, 3, generator=generator) * torch.randn(7, 8, 3, generator=generator)
    x[2, :, 1] = 5.3  # constant: it has no unit
    y, gap = torch.zeros(7, 4, 3), 2.0
    methods = {"reference": OfUnit(1.0), "other": Constant(1.0 + gap)}
    squares = [gap**2 / float(x[b, :, c].var(unbiased=False) + 1e-5) for b in range(7) for c in range(3)
               if (b, c) != (2, 1)]
    for covariate, expected in ((False, squares), (True, squares[2::3][:2] + squares[7::3])):
        assert len(expected) == (7 if covariate else 20)
        out = evaluate(methods, [(x[:5], y[:5]), (x[5:], y[5:])], CPU, covariate, quiet=True, reference="reference")
        wanted = (sum(expected) / len(expected)) ** 0.5
        assert out["other"].rms_in_windows() == pytest.approx(wanted, rel=1e-4)
        assert out["reference"].rms_in_windows() == 0 and out["other"].rms_from_reference() == gap


def test_without_a_unit_there_is_no_deviation_in_windows():
    y = torch.zeros(3, 4, 2)
    for reference, x in ((OfUnit(), torch.full((3, 8, 2), 5.3)), (Constant(), torch.randn(3, 8, 2))):
        out = evaluate({"a": reference, "b": Constant(1.0)}, [(x, y)], CPU, quiet=True, reference="a")
        assert out["b"].rms_in_windows() is None and out["b"].rms_from_reference() == 1


def test_a_huge_deviation_has_a_finite_figure():
    x, y = torch.randn(3, 8, 2), torch.zeros(3, 4, 2)
    out = evaluate({"a": OfUnit(), "b": Constant(3e38)}, [(0.01 * x, y)], CPU, quiet=True, reference="a")
    assert 1e39 < out["b"].rms_in_windows() < 1e42


def test_the_unit_is_that_of_the_model(series):
    x = series(rows=5)
    for model in (tiny_target(), tiny_target(norm_mode="causal", norm_window=3), tiny_target(use_norm=False)):
        unit = AloneMethod(model, PATCH).unit_of(x)
        assert unit.shape == (5, 1, 3) and torch.equal(unit[:, None], model.unit_of(model.to_patches(x)))


def test_every_method_is_scored_on_every_window(series):
    target = tiny_target()
    draft = tiny_draft(target)
    x, y = series(rows=7), torch.zeros(7, 3 * PATCH, 3)
    methods = {"target": AloneMethod(target, 3 * PATCH), "draft": AloneMethod(draft, 3 * PATCH, is_draft=True),
               "tolerance": make_speculative(target, draft, SpecSettings(tol=0.0), 3 * PATCH, 0)}
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    together = evaluate(methods, batches, CPU, quiet=True, reference="target")
    assert list(together) == list(methods)
    for name, method in methods.items():
        alone = evaluate({name: method.again()}, batches, CPU, quiet=True)[name]
        for key, value in alone.result(4).items():
            if key not in ("seconds", "ms_per_forecast"):
                assert together[name].result(4)[key] == value, (name, key)
        assert together[name].windows == 7
        assert mse(alone) == pytest.approx(method.forecast(x).double().square().mean().item(), rel=1e-6)
    assert together["tolerance"].rms_from_reference() < 1e-5 < together["draft"].rms_from_reference()
    assert together["target"].result(4)["target_passes"] == together["tolerance"].result(4)["target_passes"] == 3
    assert together["draft"].result(4)["draft_passes"] == 3


def test_seconds_add_up_over_batches(monkeypatch):
    monkeypatch.setattr("exp.evaluate.evaluation.Stopwatch", FakeWatch)
    batch = torch.zeros(3, 8, 2), torch.ones(3, 4, 2)
    out = evaluate({"zeros": Constant(), "ones": Constant(1.0)}, [batch, batch, batch], CPU, quiet=True)
    assert [out[name].seconds for name in ("zeros", "ones")] == [3 * 0.5] * 2
    assert out["zeros"].result(3)["ms_per_forecast"] == pytest.approx(1000 * 1.5 / 9)


class FakeWatch:
    def __init__(self, device):
        self.seconds = 0.5

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_record_of_another_kind_takes_part_in_the_walk():
    class Truths(Evaluation):
        seen = ()

        def update(self, decoded, truth, seconds, reference):
            super().update(decoded, truth, seconds, reference)
            self.seen = [*self.seen, truth]

        def merge(self, part):
            super().merge(part)
            self.seen = [*self.seen, *part.seen]
    record, batch = Truths(), (torch.zeros(3, 8, 2), torch.ones(3, 4, 2))
    out = evaluate({"zeros": Constant(), "ones": Constant(1.0)}, [batch, batch], CPU, quiet=True,
                   records={"ones": record})
    assert out["ones"] is record and len(record.seen) == 2 and [mse(out[n]) for n in ("zeros", "ones")] == [1, 0]


# --- interrupted

BATCH = torch.zeros(3, 8, 2), torch.full((3, 4, 2), 2.0)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_interrupted_all_methods_have_the_same_windows(place):
    """Whichever of them Ctrl-C hits: the batch that it hits counts for none, also not for the deviations."""
    methods = {name: Constant(number) for name, number in (("a", 0.0), ("b", 1.0), ("c", 5.0))}
    methods["abc"[place]].interrupted_in = 3
    with pytest.raises(Interrupted) as stop:
        evaluate(methods, [BATCH] * 5, CPU, quiet=True, reference="a")
    so_far = stop.value.so_far
    assert list(so_far) == ["a", "b", "c"] and [out.windows for out in so_far.values()] == [6, 6, 6]
    assert [mse(out) for out in so_far.values()] == [4.0, 1.0, 9.0]
    assert [out.rms_from_reference() for out in so_far.values()] == [0.0, 1.0, 5.0]


@pytest.mark.parametrize("place", [0, 1])
def test_interrupted_in_the_first_batch_there_is_nothing_to_keep(place):
    methods = {"a": Constant(), "b": Constant()}
    methods["ab"[place]].interrupted_in = 1
    with pytest.raises(KeyboardInterrupt) as stop:
        evaluate(methods, [BATCH] * 2, CPU, quiet=True)
    assert not isinstance(stop.value, Interrupted)


# --- the log of judgements

def judged(rows, first, looked_at, score):
    looked_at = torch.tensor(looked_at)
    score = torch.tensor(score)
    return Round(torch.tensor(rows), torch.tensor(first), None, Judgement(score < 0.25, score), looked_at, looked_at,
                 torch.zeros(len(rows), dtype=torch.long))


def test_the_log_names_window_and_patch():
    log = AcceptanceLog(9)
    log.at(4)
    log(judged([0, 1, 2], [0, 0, 0], [[True, False], [False, False], [True, True]], [[0.9, 0], [0, 0], [0.1, 0.2]]))
    log(judged([0, 2], [3, 1], [[True, False], [True, True]], [[0.1, 0.2], [0.3, 0.4]]))
    log.at(7)
    log(judged([0, 1], [0, 0], [[True, False], [True, False]], [[0.1, 0.2], [0.3, 0.4]]))  # the next batch
    rows = log.taken()
    assert [(row["window"], row["patch"], row["accepted"]) for row in rows] == [
        (4, 0, 0), (6, 0, 1), (6, 1, 1), (4, 3, 1), (6, 1, 0), (6, 2, 0), (7, 0, 1), (8, 0, 0)]
    assert [row["score"] for row in rows][3:6] == pytest.approx([0.1, 0.3, 0.4])


def test_the_log_is_of_the_first_windows_only():
    log = AcceptanceLog(2)
    for first in (0, 3):
        log.at(first)
        log(judged([0, 1, 2], [0, 0, 0], [[True]] * 3, [[0.1]] * 3))
    assert [row["window"] for row in log.taken()] == [0, 1] and not log.taken()


# --- the table

@pytest.fixture
def table(monkeypatch, tmp_path):
    """Rows of a comparison of methods that take 48 ms a call, of 100 windows."""
    timed = {"ms_median": 48.0, "ms_p10": 32.0, "ms_p90": 64.0}
    monkeypatch.setattr("exp.evaluate.comparison.time_side_by_side",
                        lambda calls, *_, **__: dict.fromkeys(calls, timed))

    class Windows(list):
        def __getitems__(self, indices):
            return torch.zeros(len(indices), 8, 2), None
    settings = Settings().with_("run", quiet=True).with_("data", batch_size=16)

    def rows(methods, batches, covariate=False):
        config = replace(settings.model.config, covariate=covariate)
        chosen = settings.with_("model", config=config)
        return compare(methods, Windows([None] * 100), batches, chosen, CPU, tmp_path)
    return rows


def test_with_covariates_the_table_scores_the_last_variable(table):
    x, y = torch.zeros(3, 8, 2), torch.stack([torch.full((3, 4), 5.0), torch.full((3, 4), 2.0)], dim=-1)
    rows = table({TARGET: Constant(), DRAFT: Constant(1.0)}, [(x, y)], covariate=True)
    assert [row["mse"] for row in rows] == [4.0, 1.0] and [row["rms_from_target"] for row in rows] == [0.0, 1.0]


def test_times_are_per_forecast(table):
    for row in table({TARGET: Constant(), DRAFT: Constant(1.0)}, [BATCH]):
        assert row["batch_n"] == 16 and row["speedup_batch_1"] == row["speedup_batch_n"] == 1
        assert [row[f"ms_batch_1{part}"] for part in ("", "_p10", "_p90")] == [48, 32, 64]
        assert [row[f"ms_batch_n{part}"] for part in ("", "_p10", "_p90")] == [3, 2, 4]


def test_the_clock_tells_a_slow_call_from_a_fast_one():
    calls = {"slow": lambda _: sum(range(10**6)), "fast": lambda _: None}
    times = time_side_by_side(calls, [None] * 3, CPU, warm_up=0)
    assert times["slow"]["ms_median"] > 10 * times["fast"]["ms_median"]
    assert times["slow"]["repeats"] == 3


def told(*speculative, draft=1.2, naive=2.0, **changes):
    """`describe` of a target whose errors are 1 and of some speculative rows; MSE and MAE of a row are equal."""
    shared = {"horizon": 8, "device": "cpu", "threads": 1, "batch_n": 4, "speedup_batch_1": 2.0, "speedup_batch_n": 0.5,
              "proposed": 5, "target_passes": 8.0, "acceptance_pct": 100.0} | changes
    alone = [{"method": name, "mse": mse} for name, mse in (("target", 1.0), ("draft", draft), ("naive", naive))]
    rows = [shared | row for row in alone] + [shared | {"method": "fast", "mse": 1.0} | row for row in speculative]
    return describe([{"mae": row["mse"]} | row for row in rows])


SLOW = {"speedup_batch_1": 0.44, "speedup_batch_n": 0.9}


def test_the_table_says_where_no_model_is_needed():
    useless = ("naive: better than the target in MSE (0.9000 to 1.0000) and MAE (0.9000 to 1.0000): on this data the "
               "target is of no use, and neither is speculation.")
    assert useless in told(naive=0.9) and useless in told(draft=0.8, naive=0.9)
    assert "naive" not in told(naive=1.0).split("Times are")[1]


def test_the_table_advises_where_speculation_does_not_pay():
    rejected = SLOW | {"acceptance_pct": 0.0, "tol": 0.15, "median_gap": 0.521}
    text = told(rejected)
    assert "fast: not faster than the target alone (0.44x at batch 1 and 0.90x at batch 4)" in text
    for words in ("0.0 % of the judged proposals were accepted", "train the draft longer",
                  "Half of them are 0.52 or more from the target", "--spec_tol is 0.15"):
        assert words in text
    other = told(SLOW | {"acceptance_pct": 3.0})  # a rule that is no tolerance
    assert "3.0 % of the judged proposals" in other and "--spec_tol" not in other
    often = told(SLOW | {"acceptance_pct": 97.0})
    assert "accepted often enough" in often and "train the draft" not in often and "a smaller draft" in often
    heads = told(rejected | {"draft_passes": 0.0}) + told(SLOW | {"acceptance_pct": 97.0, "draft_passes": 0.0})
    assert "train the heads longer" in heads and "a smaller --spec_k" in heads and "train the draft" not in heads
    judged_nothing = told(SLOW | {"acceptance_pct": None, "gap_by_patch": [0.0, 0.2, 0.3], "target_passes": 3.5,
                                  "draft_passes": 6.0})  # parareal
    assert "took 3.50 of 4 target passes, and 6.0 draft passes" in judged_nothing
    assert "accepted often enough" not in judged_nothing
    # it pays somewhere, or cannot be recommended anyway
    for quiet in (told(), told(rejected | {"speedup_batch_1": 1.5}), told(rejected | {"sampled": True})):
        assert "not faster" not in quiet and "accepted often enough" not in quiet


def test_the_table_says_which_rows_are_no_point_forecasts():
    text = told({"method": "one", "sampled": True}, {"method": "two", "sampled": True}, {})
    assert "one, two: a draw of a law, not a point forecast, and not recommended as one." in text
    assert "a draw of a law" not in told({})


NOTHING = {"proposed": 0, "acceptance_pct": None}


@pytest.mark.parametrize("row, said", [
    ({"target_passes": 1.0}, "this is the target alone (the horizon is a single patch)"),
    ({"target_passes": 1.0, "sampled": True}, "these are samples around the target's means (the horizon is a single"),
    ({"target_passes": 1.0, "plans": {1: 0, 4: 0}}, "this is the target alone (the horizon is a single patch)"),
    ({"plans": {1: 0, 4: 0}}, "this is the target alone (--spec_k auto chose K = 0)"),
    ({"target_passes": 2.0}, "this is the target alone (heads propose none of the first two patches)")])
def test_the_table_says_that_nothing_was_tried(row, said):
    text = told(NOTHING | row, NOTHING | row | {"method": "other"})
    assert f"fast, other: nothing was proposed, so {said}" in text
    assert "not faster" not in text and "a draw of a law" not in text
    assert "nothing was proposed" not in told()


def test_the_table_says_which_errors_are_of_which_k():
    text = told({"plans": {1: 7, 4: 3}})
    assert "--spec_k auto chose another K at batch 1 than at batch 4 (the columns 'plan'): each time is that of" in text
    assert "those of batches of 4" in text and "--batch_size 1 measures it" in text
    mixed = told(NOTHING | {"plans": {1: 7, 4: 0}})
    assert "chose another K" in mixed and "nothing was proposed, so" not in mixed
    for row in ({"plans": {1: 7, 4: 7}}, {"plans": {}}, {}):
        assert "spec_k auto" not in told(row)


def test_columns_that_no_row_has_are_not_printed():
    assert "kept %" not in told() and "plan" not in told()
    text = told({"kept_pct": 83.25, "plan_batch_1": 7, "plan_batch_n": 0})
    assert "kept %" in text and "83.25" in text and "plan 1" in text and "plan 4" in text


def test_the_recommendation_is_the_end_of_the_table():
    for text in (told(), told(naive=0.5), told(draft=1.0), told(SLOW)):
        assert text.count("Recommendation: ") == 1 and text.splitlines()[-1].startswith("Recommendation: use ")


def test_the_gap_in_the_advice_is_that_of_the_models(tmp_path):
    """Two patches: one proposal a window, judged by the gap of the first patch. The context is not normalised."""
    target, draft = tiny_target(use_norm=False), tiny_target(seed=1, use_norm=False)
    generator = torch.Generator().manual_seed(0)
    windows = torch.randn(12, 5 * PATCH, 3, generator=generator)
    with torch.no_grad():
        gaps = (target(windows)[:, -PATCH:] - draft(windows)[:, -PATCH:]).square().mean(dim=(1, 2)).sqrt()

    class Some:
        names, variables, n_series, windows = ["a", "b", "c"], 3, 1, 12

        def __len__(self):
            return 12

        def __getitems__(self, indices):
            return windows[indices], torch.zeros(len(indices), 2 * PATCH, 3)
    settings = Settings().with_("run", quiet=True).with_("data", horizon=2 * PATCH, batch_size=12)
    settings = settings.with_("model", config=target.config)
    batches = [Some().__getitems__(list(range(12)))]
    for tol, expected in ((float(gaps.min()) / 2, float(gaps.median())), (100.0, None)):
        methods = {"target": AloneMethod(target, 2 * PATCH), "draft": AloneMethod(draft, 2 * PATCH),
                   "fast": make_speculative(target, draft, SpecSettings(tol=tol), 2 * PATCH, 0)}
        row = compare(methods, Some(), batches, settings, CPU, tmp_path)[2]
        assert row["acceptance_pct"] == (0 if expected else 100)
        assert (row.get("median_gap"), row.get("tol")) == (pytest.approx(expected, rel=1e-3) if expected else None,
                                                           pytest.approx(tol) if expected else None)
