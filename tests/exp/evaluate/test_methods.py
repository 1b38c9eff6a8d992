"""How methods are set up from settings, adapt, and what they cost; and that a new one needs nothing but `decode`."""
from dataclasses import replace

import matplotlib.image
import pytest
import torch
from exp_helpers import assert_picture
from helpers import PATCH, tiny_draft, tiny_target

from data_provider.data_loader import SeriesWindows
from data_provider.splits import Cut
from exp.evaluate.comparison import compare
from exp.evaluate.evaluation import evaluate
from exp.evaluate.methods import (
    AloneMethod,
    Method,
    SampledMethod,
    SeasonalNaiveMethod,
    SpeculativeMethod,
    make_rule,
    make_speculative,
)
from exp.evaluate.paths import evaluate_paths
from exp.evaluate.pictures import draw_forecasts
from exp.settings import Settings
from exp.speculation import SpecSettings
from utils.acceptance import RULES, Tolerance
from utils.decoded import ACCEPTED, BONUS, Decoded
from utils.target_law import TargetLaw

CPU = torch.device("cpu")
HORIZON = 6 * PATCH
SPEC = SpecSettings(tol=0.1, sigma=0.2, emit="mean", bias=3.0, adapt_c=5.0, mse_tol=0.6, temp=0.7, repropose="target")


# --- from settings

def test_the_defaults_of_k_and_of_reproposing_are_those_of_the_rule():
    target = tiny_target()
    own = {"simplified": (3, "draft"), "exact": (5, "corrected"), "coupling": (5, "corrected")}
    for spec, tolerance in ((SPEC, "target"), (replace(SPEC, repropose=None), "draft")):
        made = {rule: make_speculative(target, target, spec, HORIZON, 0, make_rule(spec, rule=rule)) for rule in RULES}
        assert {rule: (method.max_proposals, method.repropose) for rule, method in made.items()} == own | {
            "tolerance": (5, tolerance)}
    assert {rule: SpecSettings(rule=rule).filled().repropose for rule in RULES} == {
        rule: source for rule, (_, source) in own.items()} | {"tolerance": "draft"}
    for rule in RULES:
        asked = replace(SPEC, repropose="corrected")
        assert make_speculative(target, target, asked, HORIZON, 0, make_rule(asked, rule=rule)).repropose == "corrected"
    two = make_speculative(target, target, replace(SPEC, k=2), HORIZON, 0, made["tolerance"].rule)
    assert two.max_proposals == 2


def test_a_rule_of_ones_own_is_taken_with_its_defaults():
    class Mine(Tolerance):
        name = "mine"
    method = make_speculative(tiny_target(), tiny_target(), SpecSettings(), HORIZON, 0, Mine(0.1))
    assert (method.max_proposals, method.repropose) == (5, "draft")


def test_a_rule_has_the_settings_that_have_a_meaning_for_it():
    made = {name: make_rule(SPEC, rule=name, emit="mean") for name in RULES}
    assert {name: rule.name for name, rule in made.items()} == {name: name for name in RULES}
    assert made["tolerance"].tol == 0.1
    simplified = made["simplified"]
    assert (simplified.bias, simplified.adapt_c, simplified.mse_tol, simplified.emit) == (3.0, 5.0, 0.6, "mean")
    assert simplified.sigma == pytest.approx(0.2 * 0.7)
    for name in ("exact", "coupling"):
        assert float(made[name].law.factor) == pytest.approx(0.2 * 0.7) and made[name].emit == "mean"
        law = TargetLaw.fixed(3.0)
        assert make_rule(SPEC, law, rule=name).law is law


@pytest.mark.parametrize(("rule", "asked", "emitted"), [
    ("simplified", None, "sample"), ("exact", None, "sample"), ("coupling", "mean", "mean")])
def test_the_emission_is_that_of_the_settings_where_the_rule_is(rule, asked, emitted):
    assert make_rule(SpecSettings(rule=rule, emit=asked)).emit == emitted
    assert make_rule(SpecSettings(emit="mean"), rule=rule).emit == "sample"  # that of another rule says nothing


# --- K

def test_k_follows_the_acceptance_one_step_at_a_time(monkeypatch, series):
    counts = ((8, 10), (5, 10), (6, 10), (79, 100), (0, 10), (0, 9), (0, 9), (0, 9), (0, 0), (8, 10))
    asked, scripted = [], iter(counts)

    def decode(target, draft, context, horizon, rule, proposals, *_):
        asked.append(proposals)
        accepted, judged = (torch.tensor([count]) for count in next(scripted))
        return Decoded(torch.zeros(1, horizon, 3), accepted=accepted, judged=judged)
    monkeypatch.setattr("exp.evaluate.methods.decode_speculative", decode)
    method = SpeculativeMethod(tiny_target(), tiny_target(), HORIZON, Tolerance(1.0), None, 0, adaptive=True)
    seen = []
    for _ in counts:
        method.decode(series(rows=1))
        seen.append(method.max_proposals)
    assert seen == [5, 4, 4, 4, 3, 2, 1, 1, 1, 2]
    assert asked == [5, *seen[:-1]] and method.again().max_proposals == 5
    method.reset()
    assert method.max_proposals == 5


def test_adapting_happens_only_if_asked_for(series):
    target, other = tiny_target(), tiny_target(seed=1)
    for adaptive in (True, False):
        method = SpeculativeMethod(target, other, HORIZON, Tolerance(0.0), None, 0, adaptive=adaptive)
        method.decode(series())
        assert method.max_proposals == (4 if adaptive else 5)


@pytest.mark.parametrize("rule", ["tolerance", "simplified", "exact"])
def test_a_method_made_again_starts_from_the_beginning(series, rule):
    target = tiny_target()
    spec = SpecSettings(rule=rule, sigma=0.5, adaptive=True)
    method = make_speculative(target, tiny_draft(target, distance=0.3), spec, HORIZON, seed=7)
    first = method.decode(series()).forecast
    for _ in range(3):
        method.decode(series())
    torch.testing.assert_close(method.again().decode(series()).forecast, first)
    if rule != "tolerance":
        assert not torch.allclose(method.decode(series()).forecast, first)  # this one goes on
    swapped = method.again(Tolerance(0.0))
    assert swapped.rule.name == "tolerance" and method.rule.name == rule
    torch.testing.assert_close(swapped.decode(series()).forecast, AloneMethod(target, HORIZON).forecast(series()),
                               rtol=1e-4, atol=1e-5)


# --- what they cost

@pytest.mark.parametrize(("horizon", "passes"), [(PATCH, 1), (PATCH + 1, 2), (3 * PATCH, 3)])
def test_a_begun_patch_costs_a_whole_pass(series, horizon, passes):
    method = AloneMethod(tiny_target(), horizon)
    assert method.passes == passes
    assert method.decode(series()).target_passes.tolist() == [passes] * 6


def test_passes_of_a_draft_alone_are_draft_passes(series):
    draft = tiny_draft(tiny_target(), patches=2)
    decoded = AloneMethod(draft, 3 * PATCH, is_draft=True).decode(series())
    assert decoded.target_passes is None and decoded.draft_passes.tolist() == [2] * 6


def test_the_naive_method_repeats_the_last_season():
    context = torch.arange(20.0)[None, :, None]
    decoded = SeasonalNaiveMethod(torch.tensor([4]), 6).decode(context)
    assert decoded.forecast[0, :, 0].tolist() == [16, 17, 18, 19, 16, 17]
    assert decoded.target_passes is None and decoded.draft_passes is None and decoded.judged is None


def test_the_naive_method_knows_the_season_of_every_window_of_a_walk():
    context = torch.arange(20.0)[None, :, None] + torch.tensor([0.0, 100.0, 200.0])[:, None, None]
    seasons = torch.tensor([4, 2, 20])
    method = SeasonalNaiveMethod(seasons, 5)
    out = evaluate({"naive": method}, [(x, torch.zeros(len(x), 5, 1)) for x in context.split(2)], CPU, quiet=True)
    expected = torch.tensor([[16.0, 17, 18, 19, 16], [118, 119, 118, 119, 118], [200, 201, 202, 203, 204]])
    assert out["naive"].point.result()["mse"] == pytest.approx(float(expected.double().square().mean()))
    method.at(1)
    assert torch.equal(method.forecast(context[1:])[..., 0], expected[1:])
    method.at(1)  # a batch may be longer than the rest of the walk, where only its time is taken
    assert method.forecast(context)[2, :, 0].tolist() == [216, 217, 218, 219, 216]


def test_paths_of_a_window_do_not_depend_on_its_batch(series):
    target, law = tiny_target(), TargetLaw.fixed(0.5)
    x = series()
    whole = SampledMethod(target, HORIZON, law, 3, 5).decode(x)
    assert whole.paths.shape == (6, 5, HORIZON, 3)
    torch.testing.assert_close(whole.forecast, whole.paths.mean(dim=1))
    method = SampledMethod(target, HORIZON, law, 3, 5)
    torch.testing.assert_close(torch.cat([method.decode(part).paths for part in x.split(4)]), whole.paths)


@pytest.mark.parametrize("rule", ["simplified", "exact", "coupling"])
@pytest.mark.parametrize("samples", [1, 3])
def test_what_a_rule_samples_for_a_window_does_not_depend_on_its_batch(series, rule, samples):
    target, x = tiny_target(), series()
    draft = tiny_draft(target)

    def decoded(size):
        method = make_speculative(target, draft, SpecSettings(rule=rule, sigma=0.5), HORIZON, seed=5).again(
            samples=samples)
        return [method.decode(part) for part in x.split(size)]
    whole, = decoded(6)
    assert 0 < int(whole.accepted.sum()) < int(whole.judged.sum())  # both sides of a judgement are compared
    for size in (1, 4):
        parts = decoded(size)
        assert torch.equal(torch.cat([part.accepted for part in parts]), whole.accepted)
        torch.testing.assert_close(torch.cat([part.forecast for part in parts]), whole.forecast, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["simplified", "exact", "coupling"])
def test_sampling_by_a_rule_gives_paths_their_mean_and_cost(series, rule):
    target = tiny_target()
    spec = SpecSettings(rule=rule, sigma=0.5, emit="mean")
    method = make_speculative(target, tiny_draft(target), spec, HORIZON, seed=0)
    before = method.decode(series()).forecast
    decoded = method.sampled(spec, TargetLaw.fixed(0.5), 0, 4).decode(series())
    assert decoded.paths.shape == (6, 4, HORIZON, 3)
    torch.testing.assert_close(decoded.forecast, decoded.paths.mean(dim=1))
    assert decoded.paths.std(dim=1).min() > 0  # sampled, although the rule of the test emits means
    assert (decoded.accepted + decoded.target_passes == 6).all() and len(decoded.accepted) == 6 * 4
    torch.testing.assert_close(method.again().decode(series()).forecast, before)


def test_a_method_without_a_law_says_so():
    with pytest.raises(NotImplementedError, match="SeasonalNaiveMethod has no law"):
        SeasonalNaiveMethod(torch.tensor([4]), 6).sampled(SpecSettings(), TargetLaw.fixed(1.0), 0, 3)


# --- a method that the program has never heard of

class Last(Method):
    """Repeats the last row, plus a constant."""

    def __init__(self, horizon, plus=0.0, **says):
        self.horizon, self.plus, self.says, self.seen = horizon, plus, says, []

    def decode(self, context, observer=None):
        self.seen.append(context)
        return Decoded(context[:, -1:].expand(-1, self.horizon, -1) + self.plus,
                       **{name: value(context) for name, value in self.says.items()})


class Windows(SeriesWindows):
    """`count` windows of two variables, a context of 8 and 4 steps to forecast; in window w all values are w."""

    names, labels, cut = ["a", "b"], [("w.csv", "a"), ("w.csv", "b")], Cut("test", 8, 4, 4)

    def __init__(self, count=97):
        self.counts = torch.tensor([count])

    def __getitems__(self, indices):
        level = torch.tensor(indices, dtype=torch.float32)[:, None, None]
        return level.expand(-1, 8, 2).clone(), level.expand(-1, 4, 2).clone()


def batches(dataset, size=32):
    return [dataset.__getitems__(part.tolist()) for part in torch.arange(len(dataset)).split(size)]


@pytest.fixture
def settings():
    made = Settings().with_("run", quiet=True).with_("data", horizon=4, test_context=8, batch_size=16)
    return made.with_("model", config=replace(made.model.config, input_token_len=4))


def test_a_new_method_is_evaluated():
    def paid(context):
        return torch.full((len(context),), 7)
    methods = {"exact": Last(4), "off": Last(4, 2.0, target_passes=paid)}
    out = evaluate(methods, batches(Windows()), CPU, quiet=True, reference="exact")
    assert [out[name].point.result()["mse"] for name in methods] == [0.0, 4.0]
    assert out["off"].rms_from_reference() == 2.0 and out["off"].result(32)["target_passes"] == 7
    assert out["exact"].windows == 97 and "target_passes" not in out["exact"].result(32)


def test_a_new_method_that_counts_proposals_is_speculation():
    def counts(accepted):
        return lambda context: torch.full((len(context),), accepted)
    says = {"accepted": counts(1), "judged": counts(2), "proposed": counts(4), "target_passes": counts(3),
            "draft_passes": counts(5)}
    out = evaluate({"new": Last(4, **says)}, batches(Windows()), CPU, quiet=True)["new"].result(32)
    assert (out["acceptance_pct"], out["used_pct"], out["target_passes"], out["draft_passes"]) == (50, 25, 3, 5)


def test_a_new_method_is_compared_and_timed(tmp_path, settings):
    dataset = Windows()
    methods = {"first": Last(4), "second": Last(4, 1.0), "third": Last(4, 2.0)}
    rows = compare(methods, dataset, batches(dataset), settings, CPU, tmp_path)
    assert [row["method"] for row in rows] == list(methods) and [row["mse"] for row in rows] == [0, 1, 4]
    assert [row["rms_from_target"] for row in rows] == [0, 1, 2]  # from the first
    assert rows[0]["speedup_batch_1"] == rows[0]["speedup_batch_n"] == 1
    assert all(row["ms_batch_1"] > 0 and row["ms_batch_n"] > 0 and row["batch_n"] == 16 for row in rows)
    for method in methods.values():  # single windows and batches of 16 were timed, from the first to the last
        sizes = [len(context) for context in method.seen]
        assert sizes.count(1) - sizes[:4].count(1) == 2 + 40 and sizes.count(16) == 2 + 7
        assert {float(x[0, 0, 0]) for x in method.seen if len(x) == 16} >= {0.0, 97.0 - 16}
    assert_picture(tmp_path / "compare.png")


def test_what_was_learned_is_forgotten_before_times_are_taken(tmp_path, settings):
    class Learning(Last):
        learned, late = 0, 0

        def reset(self):
            self.learned = 0

        def decode(self, context, observer=None):
            self.learned += 1
            self.late = max(self.late, self.learned)
            return super().decode(context)
    method, dataset = Learning(4), Windows()
    compare({"learning": method, "other": Last(4)}, dataset, batches(dataset, 1), settings, CPU, tmp_path)
    assert method.late == 97 and method.learned == 2 + 7  # of the walk over all windows; of the last timing alone


@pytest.mark.slow
def test_a_new_method_is_drawn(tmp_path, settings):
    method, alone = Last(4), Last(4)
    draw_forecasts(tmp_path, method, alone, Windows(), settings, CPU)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"forecast_{w:05d}.png" for w in (0, 24, 48, 72, 96)]
    assert [float(x[0, 0, 0]) for x in method.seen] == [0, 24, 48, 72, 96] and not alone.seen
    for path in tmp_path.iterdir():
        assert_picture(path)


def test_a_new_method_with_origins_is_drawn_beside_the_target(tmp_path, settings):
    says = {"origin": lambda context: torch.tensor([[ACCEPTED, BONUS]]),
            "draft_mean": lambda context: torch.zeros(1, 4, 2)}
    plain, marked, alone = tmp_path / "plain", tmp_path / "marked", Last(4, 1.0)
    for folder, method in ((plain, Last(4)), (marked, Last(4, **says))):
        folder.mkdir()
        draw_forecasts(folder, method, alone, Windows(1), settings, CPU)
    assert len(alone.seen) == 1
    without, with_origin = (matplotlib.image.imread(folder / "forecast_00000.png") for folder in (plain, marked))
    assert without.shape != with_origin.shape or abs(without - with_origin).mean() > 1e-3


def test_paths_of_a_new_method_are_scored(tmp_path, settings):
    spread = torch.linspace(-1, 1, 9)[None, :, None, None]
    settings = settings.with_("report", num_samples=9)

    def paths(context):
        return context[:, None, -1:].expand(-1, 9, 4, -1) + spread
    scores = evaluate_paths(Last(4, paths=paths), Windows(), batches(Windows()), settings, CPU, tmp_path)
    assert scores["windows"] == 97 and scores["paths"] == 9 and scores["coverage_50_pct"] == 100
    assert scores["mse_of_mean"] == pytest.approx(0, abs=1e-12)
    assert scores["width_80"] == pytest.approx(2 * 1.0)  # the outermost of nine paths lie at 10 and 90 %
    assert_picture(tmp_path / "pit.png")
