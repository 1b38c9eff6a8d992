"""A model whose output is not finite ends in an error that names the model, the window and the patch."""
import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from utils import (
    Coupling,
    Exact,
    FromCache,
    FromForward,
    Noise,
    NotFinite,
    Simplified,
    TargetLaw,
    Tolerance,
    decode_alone,
    decode_speculative,
    make_plan,
    next_patch_residuals,
    sample_alone,
)
from utils.errors import UserError

HORIZON = 4 * PATCH
LAW = TargetLaw.fixed(0.45)
RULES = {"tolerance": Tolerance(0.15), "all accepted": Tolerance(float("inf")), "simplified": Simplified(0.45),
         "simplified, mean": Simplified(0.45, "mean"), "exact": Exact(LAW), "exact, mean": Exact(LAW, "mean"),
         "coupling": Coupling(LAW)}
KINDS = {"window": {}, "cached": {"norm_mode": "causal", "norm_window": 4}}
NAN, INF = float("nan"), float("inf")


def speculate(target, draft, context, rule, **more):
    noise = Noise.draw(context.repeat_interleave(more.get("samples", 1), dim=0), 4, PATCH,
                       torch.Generator().manual_seed(0)) if rule.random else None
    return decode_speculative(target, draft, context, HORIZON, rule, noise=noise, **more)


def spoilt(model, name, value):
    with torch.no_grad():
        dict(model.named_parameters())[name][-1] = value
    return model


def pair(kind):
    target = tiny_target(**KINDS[kind])
    return target, tiny_draft(target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name, value", [("head_mean.bias", NAN), ("head_mean.bias", INF), ("head_mean.bias", -1e25),
                                         ("head_logvar.bias", NAN)])
def test_a_draft_whose_output_is_not_finite_is_named(series, kind, rule, name, value):
    target, draft = pair(kind)
    draft.label = "checkpoint d.pth"
    speculate(target, draft, series(), RULES[rule])
    with pytest.raises(NotFinite, match=r"the draft \(checkpoint d.pth\), patch 1 .*window 0 of its.*not finite"):
        speculate(target, spoilt(draft, name, value), series(), RULES[rule])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [NAN, -INF])
def test_a_target_whose_output_is_not_finite_is_named(series, kind, rule, value):
    target, draft = pair(kind)
    with pytest.raises(NotFinite, match=r"the target \(Model\).*patch 1 of the forecast \(steps 1 to 8\), window 0 "):
        speculate(spoilt(target, "head.bias", value), draft, series(), RULES[rule])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repropose", ["target", "corrected"])
@pytest.mark.parametrize("name", ["head_mean.bias", "head_logvar.bias"])
def test_whatever_is_proposed_after_a_rejection(series, kind, repropose, name):
    target, draft = pair(kind)
    speculate(target, draft, series(), Tolerance(0.15), repropose=repropose)
    with pytest.raises(NotFinite, match="the draft"):
        speculate(target, spoilt(draft, name, NAN), series(), Tolerance(0.15), repropose=repropose)


def test_proposals_that_overflow_in_the_target_are_the_drafts_fault(series):
    """The first, which is judged, is fine, but a cached pass over all of them is spoilt from the first patch on."""
    target = pair("cached")[0]
    draft = FromForward(lambda windows: 1e14 * windows[:, -PATCH:], PATCH)
    with pytest.raises(NotFinite, match="the draft .*proposals overflow in the target"):
        speculate(target, draft, series(), Tolerance(0.15))
    speculate(tiny_target(), draft, series(), Tolerance(0.15))  # windows are encoded one by one


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_alone_is_named_whatever_it_does(series, kind):
    context, z = series(), torch.randn(6, 2, 4, PATCH, 3, generator=torch.Generator().manual_seed(0))
    for name, value in (("head_mean.bias", NAN), ("head_mean.bias", INF), ("head_logvar.bias", NAN)):
        draft = spoilt(pair(kind)[1], name, value)
        for call in (lambda model: decode_alone(model, context, HORIZON),
                     lambda model: sample_alone(model, context, HORIZON, LAW, z)):
            with pytest.raises(NotFinite, match=r"the model \(Model\), patch 1 of .*window 0 .*not finite"):
                call(draft)


# --- a window among others, and a later patch

def hostile(windows, spoil=NAN, after=4.5):
    """The last patch again, and one more: `spoil` once it is above `after`."""
    last = windows[:, -PATCH:] + 1
    return last.where(last < after, spoil)


def step(patches, cache):
    cache.append(patches.shape[1])
    return (patches + 1).where(patches < 3.5, NAN)


def crop(cache, length):
    return [length]


MODELS = {"forward": lambda: FromForward(hostile, PATCH), "cache": lambda: FromCache(step, PATCH, list, crop)}


def rows(*levels):
    return torch.tensor(levels)[:, None, None].expand(-1, 3 * PATCH, 2)


@pytest.mark.parametrize("make", MODELS)
def test_one_bad_window_among_good_ones_is_found_at_its_patch(make):
    """Patches are level + 1, + 2, ...; above 4.5 there is nothing. Window 2 gets there in its third patch."""
    context, model = rows(-3.0, -2.0, 2.0, 1.0), MODELS[make]()
    decode_alone(model, context[:2], HORIZON)
    z = torch.zeros(4, 2, 4, PATCH, 2)
    for call in (lambda: decode_alone(model, context, HORIZON), lambda: sample_alone(model, context, HORIZON, LAW, z)):
        with pytest.raises(NotFinite, match="the model ") as caught:
            call()
        assert (caught.value.window, caught.value.patch) == (2, 2)
        assert "patch 3 of the forecast (steps 17 to 24), window 2 " in str(caught.value)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_a_bad_window_is_found_by_every_rule(make, rule, samples):
    context, good = rows(-3.0, -2.0, 2.0, 1.0), FromForward(lambda windows: windows[:, -PATCH:] + 1, PATCH)
    rule = type(RULES[rule])(0.01) if not RULES[rule].random else RULES[rule]
    speculate(MODELS[make](), good, context[:2], rule, samples=samples)
    for models, words in (((MODELS[make](), good), "the target"), ((good, MODELS[make]()), "the draft")):
        with pytest.raises(NotFinite, match=words) as caught:
            speculate(*models, context, rule, samples=samples)
        assert caught.value.window == 2


def test_a_context_that_is_not_finite_is_not_the_models_fault(series):
    context = series()
    context[3, 5, 1] = NAN
    for call in (lambda: decode_alone(tiny_target(), context, HORIZON),
                 lambda: speculate(*pair("window"), context, Tolerance(0.15))):
        with pytest.raises(ValueError, match="the context of window 3 holds NaN"):
            call()


def test_a_standard_deviation_of_zero_cannot_be_sampled_with(series):
    """Nothing would be accepted, ever."""
    target = FromForward(lambda windows: windows[:, -PATCH:], PATCH)
    draft = FromForward(lambda windows: (windows[:, -PATCH:], torch.full_like(windows[:, -PATCH:], -500.0)), PATCH)
    with pytest.raises(NotFinite, match="the draft"):
        speculate(target, draft, series(), Exact(LAW))
    speculate(target, draft, series(), Tolerance(0.15))  # does not ask for it


# --- what decodes on the way

def test_planning_and_calibrating_name_the_model_too(series):
    target, draft = pair("window")
    with pytest.raises(NotFinite, match="the draft"):
        make_plan(target, spoilt(draft, "head_mean.bias", NAN), series(), HORIZON, Tolerance(0.15), seed=0)
    context = rows(-3.0, -2.0, 2.0, 4.0)
    with pytest.raises(NotFinite, match=r"the model \(FromForward\).*window 7 .*calibration"):
        next_patch_residuals(MODELS["forward"](), [(context - 4, context), (context, context)], torch.device("cpu"))


def test_the_error_is_one_line_for_users(series):
    with pytest.raises(UserError) as caught:
        decode_alone(spoilt(tiny_target(), "head.bias", NAN), series(), HORIZON)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)
