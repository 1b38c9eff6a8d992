"""Flags: their names, defaults and limits. What contradicts what is in `exp.options`."""
import argparse
import math
from pathlib import Path

from data_provider.data_factory import DATASETS
from layers.transformer import ACTIVATIONS
from utils.acceptance import RULES
from utils.checkpoint import MOST_LAYERS, MOST_WIDTH
from utils.errors import UserError
from utils.schedules import LRADJ

MOST_SEED = 2**32 - 1  # numpy takes no larger one


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag is one line like every other error of this program."""

    def error(self, message):
        raise UserError(f"{message} (--help lists the flags)")


def between(low, high=None, kind=float, open_low=False):
    """An argparse type that names the allowed range."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
        too_low = value <= low if open_low else value < low
        if not math.isfinite(value) or too_low or (high is not None and value > high):
            bounds = f"{'above' if open_low else 'at least'} {low:.12g}"
            bounds += f" and at most {high:.12g}" if high is not None else ""
            raise argparse.ArgumentTypeError(f"{text} is out of range: must be {bounds}")
        return value
    return parse


def count_or_auto(text):
    """An argparse type: a whole number from 1, or 'auto'."""
    return text if text == "auto" else count(text)


def noise_or_calibrated(text):
    """An argparse type: a standard deviation from 0, or 'calibrated'."""
    return text if text == "calibrated" else non_negative(text)


def name_part(text):
    """A word that becomes part of a folder's name."""
    if "/" in text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is part of a folder's name: leave out '/' and control characters")
    return text


def csv_name(text):
    if not text.isprintable() or Path(text).suffix != ".csv":
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a csv file: end it with .csv")
    return text


def device_list(text):
    """'0,1,2' -> [0, 1, 2]"""
    devices = [natural(part) for part in text.split(",")]
    if len(set(devices)) < len(devices):
        raise argparse.ArgumentTypeError(f"{text} names a GPU twice: every process needs its own")
    return devices


# what is above these limits is a slip of the keyboard, and would end in exhausted memory or an overflow
MOST, LARGEST = 2**31, 1e6
count = between(1, MOST, kind=int)
natural = between(0, MOST, kind=int)
width = between(1, MOST_WIDTH, kind=int)
depth = between(1, MOST_LAYERS, kind=int)
rate = between(0.0, 0.999)
non_negative = between(0.0, LARGEST)
positive = between(0.0, LARGEST, open_low=True)


def build_parser() -> Parser:
    parser = Parser(prog="run.py", description="Speculative decoding of autoregressive time-series transformers")
    for add_group in (_basic, _data, _model, _training, _device, _distillation, _speculation, _reports):
        add_group(parser)
    return parser


def _basic(parser):
    add = parser.add_argument_group("run").add_argument
    add("--task_name", default="forecast", choices=["forecast"])
    add("--is_training", type=int, default=1, choices=[0, 1], help="1: train, then test; 0: test a checkpoint")
    add("--model_id", type=name_part, default="test",
        help="names the run; with --model, --des and --itr it makes the folder name")
    add("--model", default="timer_xl", choices=["timer_xl", "timer_xl_draft"])
    add("--des", type=name_part, default="test",
        help="a word of description, in the name of a run (of the results, with --test_dir)")
    add("--itr", type=count, default=1, help="how many times to train, with seeds seed, seed + 1, ...")
    add("--seed", type=between(0, MOST_SEED, kind=int), default=2021)
    add("--checkpoints", default="./checkpoints/", help="where checkpoints are written and found")
    add("--test_dir", default=None, help="folder under --checkpoints to test (default: this run's own)")
    add("--test_file_name", default="checkpoint.pth")
    add("--resume", action="store_true", help="continue an interrupted training of the same settings")
    add("--do_predict", action="store_true", help="forecast --test_pred_len steps beyond the last row of --data_path, "
        "in its own units, with the checkpoint of --test_dir (and the draft of --spec_draft_ckpt)")
    add("--quiet", action="store_true", help="no progress bars")


def _data(parser):
    add = parser.add_argument_group("data").add_argument
    add("--data", default="MultivariateDatasetBenchmark", choices=sorted(DATASETS))
    add("--root_path", default=None, help="folder of --data_path (default: $DATASET_ROOT, else ./dataset)")
    add("--data_path", default="ETT-small/ETTh1.csv", help="csv, txt, npz or npy")
    add("--test_flag", default="T", choices=["T"], help="test domain; T, the test split, is the only one")
    add("--seq_len", type=count, default=672, help="context in training, a multiple of the patch")
    add("--input_token_len", type=count, default=96, help="length of a patch")
    add("--output_token_len", type=count, default=None, help="must equal --input_token_len")
    add("--test_seq_len", type=count, default=None, help="context in testing (default: --seq_len)")
    add("--test_pred_len", type=count, default=96, help="horizon")
    add("--test_windows", type=count, default=None, help="test on so many windows (of each series), evenly spread from "
        "the first to the last (default: all)")
    add("--subset_rand_ratio", type=between(0.0, 1.0, open_low=True), default=1.0,
        help="few-shot: share of the training windows, evenly spread")
    add("--num_workers", type=between(0, 64, kind=int), default=0)


def _model(parser):
    add = parser.add_argument_group("architecture (read from args.json where a checkpoint has one)").add_argument
    add("--d_model", type=width, default=512)
    add("--n_heads", type=width, default=8)
    add("--d_ff", type=width, default=2048)
    add("--e_layers", type=depth, default=1)
    add("--dropout", type=rate, default=0.1)
    add("--activation", default="relu", choices=sorted(ACTIVATIONS))
    add("--covariate", action="store_true", help="forecast the last variable, the others serve as covariates")
    add("--use_norm", action="store_true", help="normalise by the series' own statistics")
    add("--norm_mode", default="window", choices=["window", "causal"],
        help="statistics of the whole window, or of every patch's own trailing window (makes --rolling cache exact)")
    add("--norm_window", type=natural, default=0, help="causal: patches of that trailing window (0: the test context)")
    add("--flash_attention", action=argparse.BooleanOptionalAction, default=True, help="fused attention kernel")
    add("--draft_stochastic", action="store_true", help="draft with mean and log-variance heads")
    add("--draft_patches", type=count, default=1, help="patches that one pass of the draft proposes")
    for part in ("d_model", "n_heads", "d_ff", "e_layers"):
        add(f"--draft_scale_{part}", type=between(0.0, 1.0, open_low=True), default=1.0)


def _training(parser):
    add = parser.add_argument_group("training").add_argument
    add("--train_epochs", type=count, default=10)
    add("--batch_size", type=count, default=32)
    add("--learning_rate", type=between(0.0, open_low=True), default=1e-4)
    add("--weight_decay", type=non_negative, default=0.0)
    add("--loss", default="MSE", choices=["MSE"])
    add("--lradj", default="type1", choices=LRADJ)
    add("--cosine", action="store_true", help="cosine annealing over --tmax epochs instead of --lradj")
    add("--tmax", type=count, default=10)
    add("--patience", type=count, default=3, help="stop after so many validations without improvement")
    add("--val_every", type=natural, default=0, help="validate every so many steps (0: once an epoch)")
    add("--clip_grad", type=non_negative, default=1.0, help="largest gradient norm (0: no clipping)")
    add("--ema", type=rate, default=0.0,
        help="decay of a moving average of the weights, which is then what is validated and saved (0: none)")
    add("--valid_last", action="store_true", help="validation counts the newest token only")
    add("--last_token", action="store_true", help="training counts the newest token only")
    add("--skip_patches", type=natural, default=0, help="predictions after so many first patches of a training series "
        "do not count; with --norm_mode causal their trailing windows are cut short")
    add("--nonautoregressive", action="store_true", help="--last_token and --valid_last together")
    add("--adaptation", action="store_true", help="start from --pretrain_model_path")
    add("--pretrain_model_path", default=None)


def _device(parser):
    add = parser.add_argument_group("device").add_argument
    add("--gpu", type=natural, default=0, help="index of the GPU; without one the CPU is used")
    add("--devices", type=device_list, default=None, help="GPUs of --ddp, one a process: 0,1,2,3 (default: in order)")
    add("--ddp", action="store_true", help="distributed training; start with torchrun")
    add("--dp", action="store_true", help="refused: --ddp does the same and better")
    add("--compile", action="store_true", help="torch.compile the transformer of loaded models, with CUDA graphs on a "
        "GPU; on a CPU the preset gained nothing from it")
    add("--amp", action="store_true", help="automatic mixed precision, in training and testing")
    add("--amp_dtype", default="bf16", choices=["bf16", "fp16"])


def _distillation(parser):
    add = parser.add_argument_group("distillation").add_argument
    add("--distill", action="store_true", help="train --model to imitate a target")
    add("--distill_target_model", default="timer_xl", choices=["timer_xl"])
    add("--distill_target_ckpt", default=None)
    for part in ("d_model", "n_heads", "d_ff", "e_layers"):
        add(f"--distill_target_{part}", type=depth if part == "e_layers" else width, default=None,
            help="for a target without args.json")
    add("--draft_nll_var_reg", type=non_negative, default=0.0, help="weight of the variance regularisation")
    add("--draft_teacher_noise", type=noise_or_calibrated, default=0.0, help="noise on its output: a standard "
        "deviation in standardised units, or 'calibrated': samples of the target's calibrated law")
    add("--draft_teacher_dropout", type=rate, default=0.0)
    add("--draft_rollout", type=natural, default=0, help="on-policy: learn the target's own forecasts of so many "
        "patches after each window (0: its answers to real windows, as published)")


def _speculation(parser):
    add = parser.add_argument_group("speculation").add_argument
    add("--use_speculative", action="store_true", help="test with a draft proposing and the target verifying")
    add("--spec_draft_model", default="timer_xl_draft", choices=["timer_xl", "timer_xl_draft"])
    add("--spec_draft_ckpt", default=None)
    add("--spec_accept_rule", default=None, choices=sorted(RULES), help="default: tolerance")
    add("--spec_k", type=count_or_auto, default=None, help="most proposals a round, or 'auto': chosen by measurement, "
        "plain decoding where nothing is faster (default: all remaining patches for tolerance, else 3)")
    add("--spec_repropose", default="draft", choices=["draft", "target", "corrected"], help="proposals after a "
        "rejection come from the draft, from what the target's last pass said of later patches (tolerance only), or "
        "from the draft shifted by the gap that this pass found")
    add("--spec_tol", type=non_negative, default=0.15, help="tolerance: largest rms gap, in window standard deviations")
    add("--spec_emit", default=None, choices=["sample", "mean"], help="what leaves the decoder (default: mean for "
        "tolerance, which has no other, else sample)")
    add("--spec_sigma", type=positive, default=0.25, help="simplified, exact, coupling: the target's sigma, "
        "standardised units")
    add("--spec_sigma_mode", default="fixed", choices=["fixed", "adaptive", "calibrated"],
        help="fixed; from spec_sigma_adapt_c * mean squared gap (simplified); or fitted to the target's errors on the "
        "validation part, kept beside its checkpoint (exact, coupling, and --num_samples of the target alone)")
    add("--spec_covariance", default="diag", choices=["diag", "full"], help="calibrated: the elements of a patch by "
        "themselves, or with their correlations, which gives smooth paths")
    add("--spec_sigma_adapt_c", type=positive, default=4.0)
    add("--spec_accept_bias", type=positive, default=1.0, help="simplified: factor on the acceptance ratio")
    add("--spec_accept_mse_tol", type=between(-LARGEST, LARGEST), default=-1.0,
        help="simplified: also accept where the mean squared gap to the target's mean is at most this (<= 0: off)")
    add("--spec_temp", type=positive, default=1.0, help="simplified, exact, coupling: factor on the sigmas")
    add("--spec_adaptive", action="store_true", help="adapt K between batches to the acceptance seen, up to --spec_k")
    add("--rolling", default=None, choices=["window", "cache"], help="re-encode windows, or keep keys and values "
        "(default: cache for --norm_mode causal, where it is exact, else window)")
    add("--season", type=count, default=24, help="steps in a season, for the seasonal-naive row of --compare")
    add("--compare", action="store_true", help="one table: target, draft, seasonal-naive and the speculative rules")


def _reports(parser):
    add = parser.add_argument_group("reports").add_argument
    add("--num_samples", type=between(2, 10000, kind=int), default=None, help="draw so many paths a test window, of "
        "the target alone or by a sampling rule, and score them: CRPS, energy score, coverage of bands (39 or more for "
        "that of 95 %%), PIT; with --do_predict: quantiles")
    add("--save_samples", action="store_true", help="write the paths to samples.npz in the folder of results")
    add("--spec_debug_accept", action="store_true", help="write every judgement to a csv")
    add("--spec_debug_out", type=csv_name, default="spec_accept_debug.csv", help="its name, in the folder of results")
    add("--spec_debug_n", type=count, default=64, help="of how many windows")
    add("--trace_inference_breakdown", action="store_true", help="time spent in target, draft and the rest")
    add("--visualize", action="store_true", help="write PNGs of forecasts")
    add("--output_attention", action="store_true", help="write the attention of the first test window (PNG, npz)")
