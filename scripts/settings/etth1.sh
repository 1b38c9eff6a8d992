# The preset of the quickstart: causal normalisation, so that a key-value cache is exact, and a draft that proposes seven
# patches in one pass. Minutes on two CPU cores.
. scripts/settings/etth1_causal.sh
draft+=(--draft_patches 7)
# The tolerance of the comparison, chosen on the validation split: of 0.15, 0.2, 0.25, 0.3 the one with the fewest target
# passes whose MSE there is at most half a per cent above the target's (docs/STOCHASTIC_DRAFT_SUCCESS.md).
comparing=(--spec_tol 0.3)
