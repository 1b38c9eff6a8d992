"""decode_parareal against the slow one, against plain decoding, and against the plain sampler."""
import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target
from reference.decoder import reference_parareal

from utils.acceptance import Tolerance
from utils.errors import NotFinite
from utils.speculative_decoder import decode_alone, decode_parareal, decode_speculative, patches_in, sample_alone
from utils.target_law import TargetLaw

HORIZON = 5 * PATCH + 3  # the last patch is cut
N = patches_in(HORIZON, PATCH)
CAUSAL = {"norm_mode": "causal", "norm_window": 4}
LAWS = {"fixed": TargetLaw.fixed(0.4), "relative": TargetLaw(torch.full((1, 1), 0.3), relative=True)}


@pytest.fixture(scope="module", params=["window", "cache"])
def target(request):
    return tiny_target(**(CAUSAL if request.param == "cache" else {}))


@pytest.fixture(scope="module")
def drafts(target):
    return {patches: tiny_draft(target, patches=patches) for patches in (1, 3)}


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def normal(rows, samples=3, seed=3, variables=2):
    return torch.randn(rows, samples, N, PATCH, variables, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("passes", range(1, N + 1))
@pytest.mark.parametrize("patches", [1, 3])
def test_it_agrees_with_the_formulas(target, drafts, series, patches, passes):
    context = series(rows=3)
    made = decode_parareal(target, drafts[patches], context, HORIZON, passes)
    for row in range(len(context)):
        forecast, q, p = reference_parareal(target, drafts[patches], context[row], HORIZON, passes)
        close(made.forecast[row], forecast)
        assert made.gap.shape == (3, N - 1)
        assert made.gap[row, :passes - 1].eq(0).all() and made.gap[row, passes - 1:].gt(0).all()
        if passes == 1:  # the window before the first patch is the newest of the context
            unit = target.start(context[row:row + 1], 1).unit[0, 0]
            close(made.gap[row, 0], ((q[0] - p[0]) / unit).square().mean().sqrt(), 1e-4)
    assert made.target_passes.eq(passes).all()
    first = {1: N - 1, 3: 2 + (passes > 1)}[patches]  # three patches in a pass, and one more pass to correct them by
    assert made.draft_passes.eq(first + sum(N - 1 - done for done in range(1, passes))).all()


@pytest.mark.parametrize("law", LAWS)
def test_paths_agree_with_the_formulas(target, drafts, series, law):
    context = series(rows=2)
    z = normal(2, variables=context.shape[2])
    unit = target.start(context, 1).unit
    for passes in (1, 2, 4):
        made = decode_parareal(target, drafts[1], context, HORIZON, passes, law=LAWS[law], z=z)
        assert made.forecast.shape == (6, HORIZON, context.shape[2])
        for row, path in ((0, 0), (1, 2)):
            noise = LAWS[law].spread(z[row, path], unit[row])
            close(made.forecast[3 * row + path],
                  reference_parareal(target, drafts[1], context[row], HORIZON, passes, noise)[0])


@pytest.mark.parametrize("patches", [1, 3])
def test_after_j_passes_the_first_j_patches_are_the_targets(target, drafts, series, patches):
    context = series(rows=4)
    alone = decode_alone(target, context, HORIZON)
    gaps = []
    for passes in range(1, N + 3):
        forecast = decode_parareal(target, drafts[patches], context, HORIZON, passes).forecast
        close(forecast[:, :passes * PATCH], alone[:, :passes * PATCH])
        gaps.append(float((forecast - alone).abs().max()))
    assert gaps[0] > 1e-2 and max(gaps[N - 1:]) < 1e-5  # n passes are plain decoding, and more change nothing
    close(decode_parareal(target, drafts[patches], context, HORIZON).forecast, alone)


@pytest.mark.parametrize("law", LAWS)
def test_paths_become_those_of_the_plain_sampler(target, drafts, series, law):
    context = series(rows=2)
    z = normal(2, variables=context.shape[2])
    plain = sample_alone(target, context, HORIZON, LAWS[law], z)[0].flatten(0, 1)
    early = decode_parareal(target, drafts[3], context, HORIZON, 2, law=LAWS[law], z=z).forecast
    close(early[:, :2 * PATCH], plain[:, :2 * PATCH])
    assert float((early - plain).abs().max()) > 1e-2
    close(decode_parareal(target, drafts[3], context, HORIZON, law=LAWS[law], z=z).forecast, plain)


@pytest.mark.parametrize("tol", [0.0, 0.02, 0.05, 0.1, 0.3, 100.0])
def test_a_batch_is_its_rows_one_by_one(target, drafts, series, tol):
    context = series(rows=8)
    together = decode_parareal(target, drafts[1], context, HORIZON, 5, tol)
    for row in range(len(context)):
        alone = decode_parareal(target, drafts[1], context[row:row + 1], HORIZON, 5, tol)
        for name in ("forecast", "gap"):
            close(getattr(together, name)[row], getattr(alone, name)[0])
        assert together.target_passes[row] == alone.target_passes[0]
        assert together.draft_passes[row] == alone.draft_passes[0]
    if tol in (0.0, 100.0):
        assert together.target_passes.eq(5 if tol == 0 else 1).all()
    if tol == 0.05:
        assert len(set(together.target_passes.tolist())) > 1, "the batch is not ragged"


def test_a_window_leaves_once_its_largest_gap_is_small_enough(target, drafts, series):
    context, tol = series(rows=8), 0.3
    made = decode_parareal(target, drafts[1], context, HORIZON, tol=tol)
    for passes in range(1, N):
        gap = decode_parareal(target, drafts[1], context, HORIZON, passes).gap.amax(dim=1)
        assert (gap[made.target_passes == passes] <= tol).all() and (gap[made.target_passes > passes] > tol).all()


def test_a_draft_that_is_the_target_is_right_at_once(target, series):
    context = series(rows=2)
    made = decode_parareal(target, target, context, HORIZON, tol=1e-4)
    close(made.forecast, decode_alone(target, context, HORIZON))
    assert made.target_passes.eq(1).all()


def test_the_stochastic_version_is_corrected_proposals(target, drafts, series):
    """Where nothing is accepted, each round of `corrected` is a pass of parareal, and adds one patch."""
    context, seen = series(rows=2), []
    decode_speculative(target, drafts[1], context, HORIZON, Tolerance(0.0), None, None, seen.append, "corrected")
    for passes, judged in enumerate(seen, 1):
        gap = decode_parareal(target, drafts[1], context, HORIZON, passes).gap[:, passes - 1:]
        close(judged.judgement.score[:, :N - passes], gap, 1e-4)


def test_one_patch_is_the_targets_own(target, drafts, series):
    context = series(rows=2)
    made = decode_parareal(target, drafts[1], context, PATCH, tol=0.1)
    close(made.forecast, decode_alone(target, context, PATCH))
    assert made.target_passes.eq(1).all() and made.draft_passes.eq(0).all() and made.gap.shape == (2, 0)


@pytest.mark.parametrize("settings, words", [
    ({"passes": 0}, "passes is 0"), ({"tol": -0.1}, "tol -0.1"), ({"tol": float("nan")}, "tol nan"),
    ({"width": torch.ones(2, 1, 2)}, "a width is that of a path"),
    ({"law": LAWS["fixed"]}, "both a law and its noise"), ({"z": normal(2)}, "both a law and its noise"),
    ({"passes": 1.5}, "passes is 1.5"),
    ({"law": LAWS["fixed"], "z": normal(2, variables=3)[:, :, :3]}, r"z has the shape \(2, 3, 3, 8, 3\), .* 6 patches"),
    ({"law": LAWS["fixed"], "z": normal(3, variables=3)}, "where 2 windows"),
    ({"law": LAWS["fixed"], "z": normal(2, variables=1)}, "3 variables are needed"),
    ({"law": LAWS["fixed"], "z": normal(2)[0]}, "z has the shape"),
])
def test_misuse_is_refused(target, drafts, series, settings, words):
    with pytest.raises(ValueError, match=words):
        decode_parareal(target, drafts[1], series(rows=2), HORIZON, **settings)


class Broken:
    """A model whose answers after some pass are not finite."""

    def __init__(self, model):
        self.model, self.patch_len, self.patches_ahead = model, model.patch_len, 1

    def start(self, context, room):
        return self.model.start(context, room)

    def fan_out(self, state, samples):
        self.model.fan_out(state, samples)

    def extend(self, state, patches=None):
        prediction = self.model.extend(state, patches)
        prediction.mean[int(len(prediction.mean) > 1)] = float("nan")  # of row 1, or of the only one
        return prediction


@pytest.mark.parametrize("tol", [0.0, 0.3])
def test_an_output_that_is_not_finite_names_its_model(target, drafts, series, tol):
    context = series(rows=3)
    with pytest.raises(NotFinite, match=r"the draft .* window 1"):
        decode_parareal(target, Broken(drafts[1]), context, HORIZON, 2, tol)
    with pytest.raises(NotFinite, match=r"the target .* window 1"):
        decode_parareal(Broken(target), drafts[1], context, HORIZON, 2, tol)


def test_a_target_that_predicts_several_patches_is_asked_for_the_next(drafts, series):
    context = series(rows=2)
    for horizon in (HORIZON, PATCH):
        made = decode_parareal(drafts[3], drafts[1], context, horizon)
        serial = decode_parareal(drafts[3], drafts[3], context, horizon)  # its own draft, so right at once
        close(made.forecast, serial.forecast)
    z = normal(2, variables=context.shape[2])
    assert decode_parareal(drafts[3], drafts[1], context, HORIZON, law=LAWS["fixed"], z=z).forecast.isfinite().all()


def test_paths_that_end_at_different_passes_are_those_of_each_window(target, drafts, series):
    context, law, ragged = series(rows=3), LAWS["relative"], 0
    z = normal(3, variables=context.shape[2])
    for tol in (0.03, 0.04, 0.06, 0.1):
        together = decode_parareal(target, drafts[3], context, HORIZON, tol=tol, law=law, z=z)
        ragged += len(set(together.target_passes.tolist())) > 1
        for row in range(3):
            for path in range(3):
                alone = decode_parareal(target, drafts[3], context[row:row + 1], HORIZON, tol=tol, law=law,
                                        z=z[row:row + 1, path:path + 1])
                close(together.forecast[3 * row + path], alone.forecast[0])
                assert together.target_passes[3 * row + path] == alone.target_passes[0]
    assert ragged, "no batch is ragged"


class Overflowing(Broken):
    """A target that has no answer to a patch beyond a limit, as a draft may propose it."""

    def extend(self, state, patches=None):
        prediction = self.model.extend(state, patches)
        if patches is not None:
            far = torch.cat([patches[:, :1] * 0, patches], dim=1).abs().amax(dim=(2, 3)).cummax(dim=1).values > 1e3
            prediction.mean[far] = float("nan")
        return prediction


class Wild(Broken):
    """A draft whose first forecast is far off, and finite."""

    asked, by = 0, 0.0

    def extend(self, state, patches=None):
        prediction = self.model.extend(state, patches)
        self.asked += 1
        return prediction.shifted(torch.full_like(prediction.mean, self.by)) if self.asked == 1 else prediction


@pytest.mark.parametrize("by", [1e6, 1e30, float("nan")])
def test_a_proposal_beyond_the_target_is_made_again(target, drafts, series, by):
    context, draft = series(rows=2), Wild(drafts[1])
    draft.by = by
    if target.config.causal and by != 1e6:  # one pass reads all proposals: behind a mask these spoil the patch before
        with pytest.raises(NotFinite, match="the draft .* patch 1 .* overflow in the target"):
            decode_parareal(Overflowing(target), draft, context, HORIZON)
        return
    made = decode_parareal(Overflowing(target), draft, context, HORIZON)
    close(made.forecast, decode_alone(target, context, HORIZON), 1e-4)
    assert made.target_passes.eq(N).all()


def test_a_draft_is_told_from_a_target_that_cannot_read_its_proposals(target, drafts, series):
    context = series(rows=2)
    for by, words in ((1e6, "its proposals overflow in the target"), (float("nan"), "its output is not finite, or")):
        draft = Wild(drafts[1])
        draft.by = by
        with pytest.raises(NotFinite, match=f"the draft .*{words}"):
            decode_parareal(Overflowing(target), draft, context, HORIZON, passes=1)
