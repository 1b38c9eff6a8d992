"""Flags of OpenLTM, STRIDE, Timer and the Time-Series-Library that do not exist here: what to write instead of each.

None of them is taken and ignored: a command line that keeps one of them would not do what it says.
"""
from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

ONE_MODEL = "leave it out, it belongs to a model that is not here (--model lists those that are)"
ONE_TASK = "leave it out, this program does nothing but forecast"
NO_TIMES = "leave it out, no model here reads time stamps"
VARIABLES = "leave it out, the data file tells the number of variables"
HORIZON = "write --test_pred_len, the steps to forecast; a training learns the next patch (--input_token_len)"
DEBUG = "leave it out, --spec_debug_n counts whole windows, with all their rounds"
ADAPTER = "leave it out, no forecast used that projection (the width of a target to imitate: --distill_target_d_model)"
WEIGHTS = "write --adaptation --pretrain_model_path FILE to train from weights, --is_training 0 --test_dir NAME to test"
NO_AUGMENTATION = "leave it out, training windows are not augmented"
GPU = "leave it out, a GPU is used if there is one (CUDA_VISIBLE_DEVICES= hides it, --gpu picks one)"

WORDS: dict[str, str] = {
    # STRIDE
    "spec_topp": "leave it out, it changed nothing (--spec_temp narrows the law of sampled patches)",
    "spec_draft_seq_len": "leave it out, the draft sees the target's context (--test_seq_len)",
    "spec_debug_max_batches": DEBUG, "spec_debug_max_rounds": DEBUG,
    "target_d_model": ADAPTER, "adapter_to_target": ADAPTER,
    "time_exclude_norm": "leave it out, times are of whole forecasts (--trace_inference_breakdown splits them)",
    # OpenLTM
    "load_time_stamp": NO_TIMES, "mix_embeds": NO_TIMES,
    "checkpoint": "write --checkpoints for the folder of all runs, --test_dir for the name of one of them",
    "local_rank": "leave it out, start with torchrun, which tells each process its rank",
    # Timer
    "ckpt_path": WEIGHTS, "is_finetuning": WEIGHTS, "train_test": WEIGHTS,
    "finetune_epochs": "write --train_epochs",
    "use_ims": "leave it out, every forecast is made patch by patch",
    "output_len": HORIZON, "patch_len": "write --input_token_len", "patch_size": "write --input_token_len",
    # Time-Series-Library
    "features": "leave it out for M; for MS write --covariate, for S give a file with that one variable",
    "target": "leave it out, with --covariate the last column is the one to forecast; move it there",
    "freq": NO_TIMES, "embed": NO_TIMES,
    "label_len": "leave it out, the context of a decoder-only model is --seq_len",
    "pred_len": HORIZON,
    "inverse": "leave it out, metrics are of standardised values, --do_predict writes the units of the file",
    "use_amp": "write --amp",
    "use_gpu": GPU, "no_use_gpu": GPU, "gpu_type": GPU,
    "use_multi_gpu": "write torchrun --nproc_per_node N run.py --ddp",
} | dict.fromkeys(("enc_in", "dec_in", "c_out", "n_vars"), VARIABLES) | dict.fromkeys((
    "mask_rate", "anomaly_ratio", "seasonal_patterns", "use_class_weights", "label_col", "use_dtw"), ONE_TASK,
) | dict.fromkeys(("augmentation_ratio", "jitter", "scaling", "permutation", "magwarp", "timewarp"), NO_AUGMENTATION,
) | dict.fromkeys((
    "node_num", "node_list", "gpt_layers", "kernel_size", "stride", "factor", "mode", "AP_levels", "use_decoder",
    "d_mode", "d_layers", "d_d_model", "layers", "hidden_dim", "ts_vocab_size", "domain_des", "llm_model",
    "llm_layers", "expand", "d_conv", "top_k", "num_kernels", "moving_avg", "distil", "channel_independence",
    "decomp_method", "down_sampling_layers", "down_sampling_window", "down_sampling_method", "seg_len",
    "p_hidden_dims", "p_hidden_layers", "individual", "alpha", "top_p", "pos"), ONE_MODEL)


def is_foreign(argument: str) -> bool:
    """True for a flag of another program, with a value or without."""
    return argument.startswith("--") and argument[2:].partition("=")[0] in WORDS


def refusal(unknown: Sequence[str], known: Sequence[str]) -> str:
    """The text of an error about arguments that no flag takes. known: the flags there are, with their dashes.

    Flags with the same words share them; a flag of nowhere gets the nearest of `known`.
    """
    flags = list(dict.fromkeys(argument.partition("=")[0] for argument in unknown if argument.startswith("--")))
    if not flags:
        return f"no flag takes {' '.join(unknown)}: leave it out (a switch such as --use_norm has no value)"
    told: dict[str, list[str]] = {}
    for flag in flags:
        told.setdefault(_words(flag, known), []).append(flag)
    return "; ".join(f"{', '.join(those)}: {words}" for words, those in told.items())


def _words(flag: str, known: Sequence[str]) -> str:
    if flag[2:] in WORDS:
        return WORDS[flag[2:]]
    near = [name for name in known if name.startswith(flag) or flag.startswith(name)]
    near = near[:3] or get_close_matches(flag, known, n=1)
    return f"no such flag, did you mean {' or '.join(near)}?" if near else "no such flag"
