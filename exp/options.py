"""What flags say together: defaults that depend on others, contradictions, and the args.json of a checkpoint."""
import argparse

from exp.flags import MOST_SEED, build_parser
from utils.errors import UserError

# a flag of these without a rule means the published rule
PUBLISHED = ("spec_sigma", "spec_accept_bias", "spec_sigma_mode")
LOSSLESS = ("exact", "coupling")
# the rules that a flag has a meaning for
RULES_OF = {"spec_tol": ("tolerance",)} | dict.fromkeys(
    ("spec_sigma", "spec_sigma_mode", "spec_temp"), ("simplified", *LOSSLESS)) | dict.fromkeys(
    ("spec_accept_bias", "spec_sigma_adapt_c", "spec_accept_mse_tol"), ("simplified",))
# what concerns test windows or the order of batches; a forecast beyond the last row has neither
NOT_IN_PREDICTION = ("compare", "visualize", "output_attention", "trace_inference_breakdown", "spec_debug_accept",
                     "spec_adaptive", "subset_rand_ratio", "num_workers", "save_samples", "test_windows")
# of the target's law, which plain sampling has too
LAW = {"spec_sigma", "spec_sigma_mode", "spec_covariance", "spec_temp"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parsed and checked flags; `explicit` holds the names that were really given."""
    args = build_parser().parse_args(argv)
    args.explicit = given(argv)
    _settle(args)
    return args


def given(argv: list[str] | None) -> set[str]:
    """Names of the flags that stand in a command line."""
    bare = build_parser()
    for action in bare._actions:
        action.default = argparse.SUPPRESS
    return set(vars(bare.parse_args(argv)))


def _settle(args) -> None:
    """Fills defaults that depend on other flags and refuses flags that contradict each other."""
    if args.do_predict:
        _settle_prediction(args)
    if "input_token_len" in args.explicit or (args.is_training and not args.distill and not args.adaptation):
        settle_lengths(args)  # else a checkpoint may know the patch, and `adopt` settles them
    if args.nonautoregressive:
        args.last_token = args.valid_last = True
    if args.dp:
        raise UserError("--dp is not supported: use --ddp with torchrun, also on one machine")
    if args.ddp and "gpu" in args.explicit:
        raise UserError("--gpu has no meaning with --ddp, where every process has a GPU of its own: use --devices")
    if args.seed + args.itr - 1 > MOST_SEED:
        raise UserError(f"--seed {args.seed} with --itr {args.itr} leads to seeds above {MOST_SEED}: lower one of them")
    if args.adaptation and not args.pretrain_model_path:
        raise UserError("--adaptation needs --pretrain_model_path, the checkpoint to start from")
    if args.distill and not args.distill_target_ckpt:
        raise UserError("--distill needs --distill_target_ckpt, the checkpoint of the target")
    if args.use_speculative and args.compare:
        raise UserError("--compare runs every rule itself: leave out --use_speculative")
    if (args.use_speculative or args.compare) and not args.spec_draft_ckpt:
        raise UserError(f"--{'compare' if args.compare else 'use_speculative'} needs --spec_draft_ckpt, the draft")
    if args.draft_stochastic and args.model != "timer_xl_draft" and not (args.use_speculative or args.compare):
        raise UserError("--draft_stochastic needs --model timer_xl_draft: only the draft has a log-variance head")
    if args.spec_k == "auto" and args.spec_adaptive:
        raise UserError("--spec_k auto chooses K by measurement, --spec_adaptive changes it: leave one of them out")
    _refuse_without_effect(args)
    _settle_rule(args)
    _refuse_wrong_law(args)


def _settle_prediction(args) -> None:
    """--do_predict trains and tests nothing; a draft that is named is used."""
    if "is_training" in args.explicit and args.is_training:
        raise UserError("--do_predict forecasts with a trained checkpoint: leave out --is_training 1, and train first")
    args.is_training = 0
    for name in NOT_IN_PREDICTION:
        if name in args.explicit:
            raise UserError(f"--{name} concerns test windows, --do_predict forecasts beyond the last row (and always "
                            "draws it): leave one of them out")
    if args.num_samples is None and args.spec_sigma_mode == "calibrated":
        raise UserError("--spec_sigma_mode calibrated has no effect with --do_predict unless paths are drawn: add "
                        "--num_samples, or leave it out")
    if args.num_samples is not None and not args.explicit & {"spec_sigma", "spec_sigma_mode"}:
        args.spec_sigma_mode = "calibrated"
    if args.spec_k == "auto":
        raise UserError("--spec_k auto measures on validation windows, --do_predict has none: give a number")
    if args.spec_emit == "sample":
        raise UserError("--spec_emit sample draws one path, --do_predict writes a mean: leave it out")
    args.spec_emit = "mean"
    args.use_speculative = args.use_speculative or args.spec_draft_ckpt is not None


def settle_lengths(args) -> None:
    """Context, patch and trailing window: defaults that depend on each other, and what must divide what."""
    if "test_seq_len" not in args.explicit:
        args.test_seq_len = args.seq_len
    if "output_token_len" not in args.explicit:
        args.output_token_len = args.input_token_len
    if args.output_token_len != args.input_token_len:
        raise UserError(f"--output_token_len {args.output_token_len} differs from --input_token_len "
                        f"{args.input_token_len}: a token predicts the next patch, make them equal")
    for flag in ("seq_len", "test_seq_len"):
        length = getattr(args, flag)
        if length % args.input_token_len:
            below = length // args.input_token_len * args.input_token_len
            raise UserError(f"--{flag} {length} is not a multiple of the patch (--input_token_len "
                            f"{args.input_token_len}): use {below or args.input_token_len}")
    if args.skip_patches >= args.seq_len // args.input_token_len:
        raise UserError(f"--skip_patches {args.skip_patches} leaves nothing of the {args.seq_len} steps of --seq_len: "
                        f"use at most {args.seq_len // args.input_token_len - 1}")
    if args.norm_mode == "causal" and args.norm_window == 0:
        args.norm_window = args.test_seq_len // args.input_token_len


def adopt(args, settings: dict, names) -> None:
    """Takes from a checkpoint's settings what no flag has said, so that a test needs only the checkpoint."""
    for name in names:
        if name in settings and name not in args.explicit:
            setattr(args, name, settings[name])
    settle_lengths(args)


def _refuse_without_effect(args) -> None:
    """A flag that would change nothing is refused, not ignored."""
    calibrated = args.spec_sigma_mode == "calibrated" or args.draft_teacher_noise == "calibrated"
    law = args.use_speculative or args.compare or args.num_samples is not None
    conditions = (("spec_covariance", calibrated, "--spec_sigma_mode calibrated or --draft_teacher_noise calibrated"),
                  ("spec_sigma", law, "--use_speculative, --compare or --num_samples"),
                  ("spec_temp", law, "--use_speculative, --compare or --num_samples"),
                  ("spec_", args.use_speculative or args.compare, "--use_speculative or --compare"),
                  ("save_samples", args.num_samples is not None, "--num_samples"),
                  ("distill_target_", args.distill, "--distill"), ("draft_teacher_", args.distill, "--distill"),
                  ("draft_rollout", args.distill, "--distill"),
                  ("season", args.compare, "--compare"), ("pretrain_model_path", args.adaptation, "--adaptation"),
                  ("tmax", args.cosine, "--cosine"), ("devices", args.ddp, "--ddp"),
                  ("amp_dtype", args.amp, "--amp"),
                  ("draft_scale_", args.model == "timer_xl_draft" or args.use_speculative or args.compare,
                   "--model timer_xl_draft"),
                  ("spec_sigma_adapt_c", args.spec_sigma_mode == "adaptive", "--spec_sigma_mode adaptive"),
                  ("spec_debug_n", args.spec_debug_accept, "--spec_debug_accept"),
                  ("spec_debug_out", args.spec_debug_accept, "--spec_debug_accept"),
                  ("test_dir", not args.is_training, "--is_training 0"),
                  ("test_file_name", not args.is_training, "--is_training 0"),
                  ("adaptation", args.is_training, "--is_training 1"), ("distill", args.is_training, "--is_training 1"),
                  ("resume", args.is_training, "--is_training 1"))
    for start, met, wanted in conditions:
        own = LAW if start == "spec_" else set()  # which have conditions of their own
        idle = sorted(name for name in args.explicit - own if name.startswith(start))
        if idle and not met:
            raise UserError(f"--{idle[0]} has no effect without {wanted}: add that flag, or leave this one out")
    if args.cosine and "lradj" in args.explicit:
        raise UserError("--lradj has no effect with --cosine, a schedule of its own: leave one of them out")
    single = ("spec_debug_accept", "spec_accept_rule", "spec_emit", "output_attention", "trace_inference_breakdown",
              "num_samples")
    for name in single:
        if args.compare and name in args.explicit:
            raise UserError(f"--{name} concerns one way to forecast, --compare runs them all: leave one of them out")
    if args.draft_patches > 1 and args.is_training and args.draft_rollout < args.draft_patches:
        raise UserError(f"--draft_patches {args.draft_patches} needs --draft_rollout {args.draft_patches} or more: a "
                        "draft that speaks of several patches learns them from the target's own forecasts")
    for name in ("last_token", "valid_last", "nonautoregressive", "skip_patches"):
        if args.draft_rollout and name in args.explicit:
            raise UserError(f"--{name} has no effect with --draft_rollout, which learns the patches after the context: "
                            "leave one of them out")
    if args.draft_nll_var_reg > 0 and not (args.draft_stochastic and args.model == "timer_xl_draft"):
        raise UserError("--draft_nll_var_reg has no effect without --model timer_xl_draft --draft_stochastic: only "
                        "that draft has a variance")


def _settle_rule(args) -> None:
    # paths of a prediction are drawn from the target alone: the flags of its law say nothing of the rule
    concerning = args.explicit - (LAW if args.do_predict and args.num_samples is not None else set())
    named = sorted(concerning & set(PUBLISHED))
    if args.spec_accept_rule is None:
        args.spec_accept_rule = "simplified" if named and args.use_speculative else "tolerance"
        if args.spec_accept_rule == "simplified":
            print(f"note: --{named[0]} without --spec_accept_rule means the published rule 'simplified' (it keeps no "
                  "law: exact and coupling do)")
    rule = args.spec_accept_rule
    if args.use_speculative:  # --compare runs all rules
        for name in sorted(concerning & set(RULES_OF)):
            if rule not in RULES_OF[name]:
                raise UserError(f"--{name} has no meaning for --spec_accept_rule {rule}: use "
                                f"{' or '.join(RULES_OF[name])}, or leave it out")
        if rule in LOSSLESS and args.spec_sigma_mode == "adaptive":
            raise UserError("--spec_sigma_mode adaptive takes the target's sigma from the proposal, which leaves no "
                            f"law that --spec_accept_rule {rule} could keep: use fixed, or simplified")
    if args.use_speculative and args.spec_repropose == "target" and rule != "tolerance":
        raise UserError(f"--spec_repropose target has no law that --spec_accept_rule {rule} could sample from: use "
                        "corrected, or tolerance")
    if rule == "tolerance" and args.spec_emit == "sample":
        raise UserError("--spec_emit sample has no meaning for --spec_accept_rule tolerance, which emits means")
    if args.spec_emit is None:
        args.spec_emit = "mean" if rule == "tolerance" else "sample"


def _refuse_wrong_law(args) -> None:
    """What --spec_sigma_mode and --num_samples cannot mean together with the other flags."""
    rule = args.spec_accept_rule
    if args.spec_sigma_mode == "calibrated":
        if "spec_sigma" in args.explicit:
            raise UserError(f"--spec_sigma {args.spec_sigma:g} has no effect with --spec_sigma_mode calibrated, which "
                            "finds sigma itself: leave one of them out")
        if args.compare or (args.use_speculative and rule == "simplified" and not args.do_predict):
            raise UserError("--spec_sigma_mode calibrated has a sigma for every element of a patch, the rule "
                            "simplified one number for all of them: use exact or coupling, or --spec_sigma")
    if args.num_samples is None:
        return
    if args.use_speculative and rule == "tolerance" and not args.do_predict:
        raise UserError("--num_samples needs a rule that samples, --spec_accept_rule tolerance emits means: name "
                        "another rule, or leave out --use_speculative to sample from the target alone")
    if "spec_emit" in args.explicit:
        raise UserError("--spec_emit has no effect with --num_samples: paths are sampled, and point metrics are those "
                        "of mean emission; leave one of them out")
    if (args.do_predict or not args.use_speculative) and args.spec_sigma_mode == "adaptive":
        raise UserError("--spec_sigma_mode adaptive takes sigma from the gap to a draft: for --num_samples of the "
                        "target alone use fixed or calibrated")


def check_against_checkpoint(settings: dict, explicit: set, args, fields, path, prefix: str = "") -> None:
    """A flag that was given and contradicts the args.json beside `path` is an error that names both values."""
    for name in fields:
        flag = prefix + name
        if flag in explicit and name in settings and getattr(args, flag) != settings[name]:
            raise UserError(f"--{flag} {getattr(args, flag)} contradicts the checkpoint {path}, which was trained with "
                            f"{settings[name]}: leave the flag out")
