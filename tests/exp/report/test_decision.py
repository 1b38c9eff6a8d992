"""The opinion at the end of a comparison: every verdict from made rows, at and beside its limits."""
import pytest

from exp.report.decision import decide, kept_pct, naive_warning, recommendation

FLAGS = ["--use_speculative", "--spec_accept_rule", "tolerance", "--spec_tol", "0.15"]
BATCH = 64
NOT_FASTER = {"speedup_batch_1": 1.02, "speedup_batch_n": 0.8}


def row(name, mse, mae=None, faster=(1.0, 1.0), **more):
    return {"method": name, "mse": mse, "mae": mse if mae is None else mae, "batch_n": BATCH,
            "speedup_batch_1": faster[0], "speedup_batch_n": faster[1]} | more


def speculative(name="tolerance", mse=1.0, mae=None, faster=(2.0, 0.9), **more):
    return row(name, mse, mae, faster, **{"proposed": 7, "flags": [*FLAGS, name]} | more)


def rows(*more, draft=None, naive=None):
    """Of a target whose errors are 1; its draft is no good, and repeating a season neither, unless others are given."""
    return [row("target", 1.0), row("draft", 1.1, faster=(6.2, 10.0)) | (draft or {}),
            row("naive", 2.0, faster=(300.0, 400.0)) | (naive or {}), *more]


def last(*given, **changes):
    return recommendation(decide(rows(*given, **changes)))[-1]


def test_a_draft_without_loss_is_recommended_whatever_speculation_does():
    for loss in (0.9, 1.0, 1.005):  # half a per cent counts as none
        decision = decide(rows(speculative(faster=(9.0, 20.0)), draft={"mse": loss, "mae": loss}))
        assert (decision["use"], decision["method"], decision["flags"]) == ("draft", "draft", [])
        assert decision["batch_sizes"] == [1, BATCH]
    assert last(draft={"mse": 1.0, "mae": 1.0}) == "Recommendation: use the draft alone"


@pytest.mark.parametrize("error", ["mse", "mae"])
def test_a_loss_in_one_of_the_errors_is_a_loss(error):
    losing = {"mse": 0.9, "mae": 0.9} | {error: 1.00501}
    assert decide(rows(draft=losing))["use"] == "target"
    assert decide(rows(speculative(**losing)))["use"] == "target"
    within = losing | {error: 1.005}
    assert decide(rows(draft=within))["use"] == "draft"
    assert decide(rows(speculative(**within)))["use"] == "speculation"


def test_a_draft_that_is_neither_faster_nor_better_is_not_recommended():
    assert decide(rows(draft={"mse": 1.0, "mae": 1.0} | NOT_FASTER))["use"] == "target"
    assert decide(rows(draft={"mse": 0.99, "mae": 0.99} | NOT_FASTER))["use"] == "draft"
    assert decide(rows(draft={"mse": 0.99, "mae": 1.0, "speedup_batch_1": 0.5}))["use"] == "draft"  # faster at 64


def test_speculation_is_recommended_with_its_flags_where_it_pays():
    for faster, sizes, words in (((2.0, 0.9), [1], "at batch 1, the target alone at 64"),
                                 ((0.9, 2.0), [BATCH], "at batch 64, the target alone at 1"),
                                 ((2.0, 2.0), [1, BATCH], "at batch 1 and 64")):
        given = rows(speculative(faster=faster))
        decision = decide(given)
        assert (decision["use"], decision["method"]) == ("speculation", "tolerance")
        assert decision["flags"] == given[3]["flags"] and decision["batch_sizes"] == sizes
        said = recommendation(decision)[-1]
        assert said == (f"Recommendation: use speculation with these flags ({words}), in place of --compare and every "
                        f"other --spec flag: {' '.join(FLAGS)} tolerance")


def test_flags_are_printed_as_a_shell_takes_them():
    given = speculative(flags=["--use_speculative", "--spec_draft_ckpt", "my models/draft"])
    assert last(given).endswith("--use_speculative --spec_draft_ckpt 'my models/draft'")


def test_faster_is_more_than_the_clock_can_be_trusted_with():
    limit = 1 / 0.97
    assert decide(rows(speculative(faster=(limit, limit))))["use"] == "target"
    assert decide(rows(speculative(faster=(limit + 1e-9, limit))))["use"] == "speculation"
    said = last(speculative(faster=(limit, limit)))
    assert said == ("Recommendation: use the target alone: none of the others is known to be faster "
                    "without loss")


def test_of_several_rows_it_is_the_fastest_without_loss():
    slow, fast, lossy = speculative("slow", faster=(1.5, 1.1)), speculative("fast"), speculative(
        "lossy", 1.1, faster=(5.0, 5.0))
    for given in ((slow, fast, lossy), (lossy, fast, slow)):
        assert decide(rows(*given))["method"] == "fast"
    assert decide(rows(slow, lossy))["method"] == "slow"
    # batches count as well as single windows
    assert decide(rows(fast, speculative("batches", faster=(0.5, 3.0))))["method"] == "batches"
    # a speed whose loss was not measured does not make a row the fastest
    unmeasured = speculative("unmeasured", faster=(9.0, 0.9), plans={1: 7, BATCH: 3})
    assert decide(rows(unmeasured, slow))["method"] == "slow"
    # where none pays, the way beside the recommendation is the fastest without loss, and else the one that loses least
    decision = decide(rows(lossy, speculative("idle", faster=(1.0, 0.9)), speculative("worse", 1.2)))
    assert (decision["use"], decision["ways"]["speculation"]["method"]) == ("target", "idle")
    assert decide(rows(lossy, speculative("worse", 1.2)))["ways"]["speculation"]["method"] == "lossy"


def test_samples_are_not_recommended_however_good():
    sampled = speculative("sampled", 0.9, faster=(9.0, 9.0), sampled=True)
    decision = decide(rows(sampled))
    assert decision["use"] == "target" and decision["ways"]["speculation"] is None
    assert decide(rows(sampled, speculative()))["method"] == "tolerance"


def test_what_proposed_nothing_is_not_recommended_for_the_noise_of_the_clock():
    for nothing in ({"proposed": 0}, {"proposed": 0, "plans": {1: 0, BATCH: 0}}):
        assert decide(rows(speculative(faster=(1.2, 1.2), **nothing)))["use"] == "target"


@pytest.mark.parametrize("plans, sizes", [({1: 7, BATCH: 7}, [1, BATCH]), ({1: 7, BATCH: 3}, [BATCH]),
                                          ({1: 7, BATCH: 0}, []), ({1: 0, BATCH: 3}, [BATCH]), ({}, [1, BATCH])])
def test_a_speed_counts_with_the_loss_of_the_same_k_only(plans, sizes):
    decision = decide(rows(speculative(faster=(2.0, 2.0), plans=plans)))
    assert decision["batch_sizes"] == sizes and decision["use"] == ("speculation" if sizes else "target")


def test_a_batch_of_one_is_one_batch_size():
    given = [row | {"batch_n": 1} for row in rows(speculative(faster=(2.0, 1.9), plans={1: 7}))]
    decision = decide(given)
    assert decision["batch_sizes"] == [1]
    said = recommendation(decision)
    assert "tolerance: MSE +0.0 %, MAE +0.0 %; 2.00x at batch 1" in said[2] and "(at batch 1)" in said[-1]


def test_no_model_is_recommended_where_repeating_a_season_is_better():
    naive = {"mse": 0.9, "mae": 0.99}
    good = speculative(mse=0.99, faster=(9.0, 9.0))
    assert decide(rows(good, naive=naive))["use"] == "seasonal-naive"
    assert decide(rows(good, draft={"mse": 0.95, "mae": 0.95}, naive=naive))["use"] == "seasonal-naive"
    assert last(good, naive=naive) == "Recommendation: use no model, naive is better than the target"
    # a draft that is better still is the best of all, even if it is slow
    for speed in ({}, NOT_FASTER):
        assert decide(rows(good, draft={"mse": 0.8, "mae": 0.8} | speed, naive=naive))["use"] == "draft"


def test_a_season_that_is_better_in_one_error_only_is_a_warning():
    for mse, mae, words in ((0.9, 1.0, "naive: better than the target in MSE (0.9000 to 1.0000), but not in MAE."),
                            (1.1, 0.8, "naive: better than the target in MAE (0.8000 to 1.0000), but not in MSE.")):
        given = rows(speculative(), naive={"mse": mse, "mae": mae})
        warning, = naive_warning(given)
        assert warning == words
        assert decide(given)["use"] == "speculation"
    assert naive_warning(rows(naive={"mse": 1.0, "mae": 1.0})) == []
    warning, = naive_warning(rows(naive={"mse": 0.9, "mae": 0.8}))
    assert "the target is of no use, and neither is speculation" in warning


def test_the_loss_and_the_gain_of_all_ways_stand_beside_it():
    decision = decide(rows(speculative(mse=1.02, mae=0.999)))
    assert recommendation(decision)[1:4] == [
        "  draft: MSE +10.0 %, MAE +10.0 %; 6.20x at batch 1, 10.00x at batch 64",
        "  tolerance: MSE +2.0 %, MAE -0.1 %; 2.00x at batch 1, 0.90x at batch 64",
        "  target: no loss, 1x"]
    way = decision["ways"]["speculation"]
    assert (way["lossless"], way["faster_at"]) == (False, [1])
    assert (way["mse_pct"], way["mae_pct"]) == (pytest.approx(2), pytest.approx(-0.1))


def test_a_target_without_an_error_can_be_beaten_by_nothing():
    given = rows(speculative(mse=0.0), speculative("lossy", 0.1))
    given[0] |= {"mse": 0.0, "mae": 0.0}
    decision = decide(given)
    assert (decision["use"], decision["method"]) == ("speculation", "tolerance")
    assert decision["ways"]["draft"]["mse_pct"] is None and decision["ways"]["speculation"]["mae_pct"] == 0
    assert "draft: MSE above 0, MAE above 0;" in recommendation(decision)[1]


@pytest.mark.parametrize("mae, draft, kept", [
    (1.0, 1.1, 100), (1.1, 1.1, 0), (1.025, 1.1, 75), (0.99, 1.1, 110), (1.2, 1.1, -100),
    (1.0, 1.005, None), (1.0, 1.0051, 100), (1.0, 0.9, None), (0.0, 0.0, None)])
def test_the_share_of_the_targets_advantage_that_is_kept(mae, draft, kept):
    target, passes = row("target", 5.0, 1.0), {"target_passes": 2.0}
    got = kept_pct(row("any", 9.0, mae, **passes), target, row("draft", 1.0, draft))
    assert got is None if kept is None else got == pytest.approx(kept)
    assert kept_pct(row("naive", 9.0, mae), target, row("draft", 1.0, draft)) is None  # it has no model
