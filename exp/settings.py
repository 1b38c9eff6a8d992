"""All settings, in frozen sections. Each field is declared once: default, limit, help, flag, requirements.

    flag      name on the command line (default: the name of the field)
    needs     flags, or 'flag=value', at least one of which must be set for it to have an effect
    not_with  flag -> reason why the two exclude each other
    free      may differ between an interrupted training and its continuation: it does not affect the weights

`exp.flags` builds the parser from these declarations; `exp.options` resolves what depends on several of them. In Python
the sections are used directly: SpecSettings(rule="coupling", sigma=0.25).
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from data_provider.data_factory import BALANCES, DATASETS
from data_provider.files import DataFile, data_files, label_of
from exp.limits import (
    COUNT,
    NATURAL,
    NON_NEGATIVE,
    RATE,
    SEED,
    SHARE,
    CsvName,
    DeviceList,
    ModelName,
    NamePart,
    Paths,
)
from exp.panels import PanelSettings
from exp.schedules import LRADJ
from exp.section import ONE_WAY, OWN_HEADS, SPECULATION, TEST_WINDOWS, Section, fields_of
from exp.speculation import SpecSettings
from models.config import LAYERS, MOST_LAYERS, STEPS, WIDTH, ModelConfig
from models.registry import DRAFTS, MODELS
from models.timer import NORM_ROLLS
from models.timer_xl import ROLLING
from utils.errors import UserError, shorten
from utils.limits import Number, OneOf, OrNone, OrWord, Switch, Text, limited, whole

ROLLOUT = {flag: f"has no effect with --{flag}, which learns the patches after the context"
           for flag in ("self_draft", "draft_rollout")}
DRAFT_KINDS = ("model", "head")
HEADS_ALONE = {"self_draft": "and --self_draft are two trainings: heads are trained on a target that stays as it is"}
IMITATION = ("distill", "self_draft")
# names that scripts of OpenLTM, STRIDE and the Time-Series-Library give to what this program does
TASKS = ("forecast", "long_term_forecast", "pretrain", "finetune")
TEACHERS = sorted(set(MODELS) - set(DRAFTS))
CHOICE = f"{', '.join(sorted(MODELS))}, or module:function"
SERIES_DRAWN, WINDOWS_DRAWN = 12, 5
TRAINING, TESTING = ("is_training=1",), ("is_training=0",)


@dataclass(frozen=True)
class RunSettings(Section):
    """The task, its folders and its device."""

    task_name: str = limited("forecast", OneOf(TASKS), "first word of the run's folder name; the work is the same for "
                             "all of them: --is_training, --adaptation and --distill say what is done")
    is_training: int = limited(1, whole(0, 1), "1: train, then test; 0: test a checkpoint", free=True)
    model_id: str = limited("test", NamePart(), "name of the run; forms the folder name with --model, --des and --itr")
    des: str = limited("test", NamePart(), "short description, part of the run's folder name (with --test_dir: of "
                       "the results folder)")
    itr: int = limited(1, COUNT, "number of training runs, with seeds seed, seed + 1, ...", free=True)
    seed: int = limited(2021, SEED)
    checkpoints: str = limited("./checkpoints/", Text(), "folder of checkpoints")
    test_dir: str | None = limited(None, OrNone(Text()), "folder under --checkpoints to test (default: this run's own)",
                                   needs=TESTING, free=True)
    test_file_name: str = limited("checkpoint.pth", Text(), "checkpoint file in that folder", needs=TESTING, free=True)
    resume: bool = limited(False, Switch(), "continue an interrupted training, or forecasts of a long table, with "
                           "the same settings", needs=(*TRAINING, "do_predict"), free=True)
    do_predict: bool = limited(False, Switch(), "forecast --test_pred_len steps beyond the last row of --data_path, in "
                               "its own units, with the checkpoint in --test_dir (and the draft in --spec_draft_ckpt)")
    inspect: str | None = limited(None, OrNone(Text()), "say what a checkpoint is, how it rolls and which drafts fit "
                                  "it, or why it cannot be used: the file, its folder, a public folder, or a folder "
                                  "of them; alone, without data", free=True)
    use_speculative: bool = limited(False, Switch(), "speculative decoding: a draft proposes, the target verifies",
                                    free=True)
    compare: bool = limited(False, Switch(), "one table: target, draft, seasonal-naive and the speculative rules",
                            free=True, not_with=TEST_WINDOWS)
    draft: str = limited("model", OneOf(DRAFT_KINDS), "what proposes: another model (--spec_draft_ckpt), or the "
                         "target's own longer heads, which --self_draft trains", flag="spec_draft", needs=SPECULATION,
                         free=True)
    draft_model: str = limited("timer_xl_draft", ModelName(MODELS), "model type of the draft: "
                               f"{CHOICE}; the latter may need no --spec_draft_ckpt", flag="spec_draft_model",
                               needs=SPECULATION, free=True, not_with=OWN_HEADS)
    draft_checkpoint: str | None = limited(None, OrNone(Text()), "checkpoint of the draft, or its folder",
                                           flag="spec_draft_ckpt", needs=SPECULATION, free=True, not_with=OWN_HEADS)
    quiet: bool = limited(False, Switch(), "no progress bars", free=True)
    gpu: int | None = limited(None, OrNone(NATURAL), "GPU index (default: 0); the CPU is used if there is no GPU",
                              free=True, not_with={
        "ddp": "has no effect with --ddp, where each process has its own GPU (--devices)",
        "workers": "has no effect on workers, which Ray gives their GPUs",
        "ray_address": "has no effect on workers, which Ray gives their GPUs"})
    devices: tuple[int, ...] | None = limited(None, OrNone(DeviceList()), "GPUs for --ddp, one per process: 0,1,2,3 "
                                              "(default: in order)", needs=("ddp",), free=True)
    ddp: bool = limited(False, Switch(), "train and test with several processes, each with a share of every batch, "
                        "or of the batches; start with torchrun")
    dp: bool = limited(False, Switch(), "of OpenLTM: refused, with the command that takes its place")
    compile: bool = limited(False, Switch(), "record decodes of fixed shape as CUDA graphs on a GPU: a model alone, "
                            "its sampled paths, parareal; without a GPU, and for acceptance rules, nothing changes")
    bf16: bool = limited(False, Switch(), "forecast with weights in bfloat16 (on a CPU in large products only)",
                         needs=TESTING, not_with={
        "amp": "chooses a precision, and so does --amp"})
    amp: bool = limited(False, Switch(), "automatic mixed precision, in training and testing")
    amp_dtype: str = limited("bf16", OneOf(("bf16", "fp16")), needs=("amp",))


@dataclass(frozen=True)
class ModelSettings(Section):
    """The model and its architecture.

    asked: settings of `ModelConfig` that were given; the others come from the checkpoint. config: the resulting
    architecture of the model to train or test. trained_on: short name of the data that a tested checkpoint was trained
    on, if its args.json tells.
    """

    name: str = limited("timer_xl", ModelName(MODELS), f"model to train or test: {CHOICE}, which runs that code of "
                        "yours: it returns a model that is tested as it is (docs/YOUR_MODEL.md)", flag="model")
    rolling: str | None = limited(None, OrNone(OneOf(ROLLING)), "window: re-encode the last patches for every "
                                  "prediction; cache: keep keys and values of a growing series (default: the model's "
                                  "own way, cache for --norm_mode causal, else window; the other gives another "
                                  "forecast from the second patch on, but for a timer, whose forecast is that of "
                                  "--norm_roll)")
    norm_roll: str | None = limited(None, OrNone(OneOf(NORM_ROLLS)), "timer: what normalises a patch: window, all so "
                                    "far, anew for every prediction; frozen, the context; patch, the context for its "
                                    "own patches and each later one by itself (default: patch, as the public model's "
                                    "own generate)", needs=("model=timer", "distill_target_model=timer"))
    asked: Mapping[str, Any] = field(default_factory=dict)
    config: ModelConfig = field(default_factory=ModelConfig)
    trained_on: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in sorted(set(self.asked) - set(fields_of(ModelConfig))):
            raise UserError(f"`asked` has {shorten(name)}, which is not a setting of ModelConfig: correct it")


@dataclass(frozen=True)
class DataSettings(Section):
    """The series and their windows; lengths in steps."""

    kind: str = limited("MultivariateDatasetBenchmark", OneOf(DATASETS), "all variables of a window together, or each "
                        "one separately; Utsd_Npy, Utsd: the latter for all npy or csv files below --root_path, 90 % "
                        "of the rows of each for training, 5 % each for validation and test", flag="data")
    root_path: str | None = limited(None, OrNone(Text()), "folder of --data_path (default: $DATASET_ROOT, else "
                                    "./dataset)")
    data_path: str = limited("ETT-small/ETTh1.csv", Paths(), "data files (csv, txt, npz, npy, parquet), folders of "
                             "them, or patterns like 'ETT-small/*.csv'; several are a pool, each of whose series is "
                             "forecast by itself")
    balance: str | None = limited(None, OrNone(OneOf(BALANCES)), "training batches draw every series equally often, or "
                                  "every window once per epoch (default: series for a pool, windows for one file)",
                                  needs=TRAINING)
    test_flag: str = limited("T", OneOf(("T", "V")), "split to forecast: T, test; V, validation, for choosing settings",
                             free=True, not_with=TEST_WINDOWS)
    context: int = limited(672, STEPS, "context length in training, a multiple of the patch", flag="seq_len")
    test_context: int = limited(672, STEPS, "context length in testing (default: --seq_len)", flag="test_seq_len")
    horizon: int = limited(96, STEPS, "steps to forecast", flag="test_pred_len", free=True)
    test_windows: int | None = limited(None, OrNone(COUNT), "test on this many windows per series, evenly spaced "
                                       "from the first to the last (default: all)", free=True, not_with=TEST_WINDOWS)
    val_windows: int | None = limited(None, OrNone(COUNT), "validate on this many windows per series, evenly spaced "
                                      "(default: all)", needs=TRAINING)
    subset_ratio: float = limited(1.0, SHARE, "few-shot: fraction of the training windows, evenly spaced",
                                  flag="subset_rand_ratio", not_with=TEST_WINDOWS)
    batch_size: int = limited(32, COUNT)
    num_workers: int = limited(0, whole(0, 64), free=True, not_with=TEST_WINDOWS)

    @cached_property  # a file that comes into a folder during a training is not of this run
    def files(self) -> list[DataFile]:
        return data_files(self.root_path, self.data_path)

    @property
    def by_series(self) -> bool:
        """True if training batches draw every series equally often."""
        return len(self.files) > 1 if self.balance is None else self.balance == "series"

    @property
    def label(self) -> str:
        """A short name of the data."""
        return label_of(self.data_path)

    @property
    def univariate(self) -> bool:
        """True if each variable is a separate series."""
        return self.kind != "MultivariateDatasetBenchmark"


@dataclass(frozen=True)
class TrainSettings(Section):
    """Optimisation and training objective."""

    train_epochs: int = limited(10, COUNT, free=True)
    learning_rate: float = limited(1e-4, Number(0, math.inf, open_low=True))
    weight_decay: float = limited(0.0, NON_NEGATIVE)
    loss: str = limited("MSE", OneOf(("MSE",)))
    lradj: str = limited("type1", OneOf(LRADJ), "learning-rate schedule", not_with={
        "cosine": "has no effect with --cosine, which replaces the schedule"})
    cosine: bool = limited(False, Switch(), "cosine annealing over --tmax epochs instead of --lradj")
    tmax: int = limited(10, COUNT, needs=("cosine",))
    patience: int = limited(3, COUNT, "stop after this many validations without improvement")
    val_every: int = limited(0, NATURAL, "steps between validations (0: once per epoch)")
    clip_grad: float = limited(1.0, NON_NEGATIVE, "maximum gradient norm (0: no clipping)")
    ema: float = limited(0.0, RATE, "decay of a moving average of the weights, which is then validated and saved "
                         "instead (0: off)")
    valid_last: bool = limited(False, Switch(), "validation loss on the newest token only", not_with=ROLLOUT)
    last_token: bool = limited(False, Switch(), "training loss on the newest token only", not_with=ROLLOUT)
    nonautoregressive: bool = limited(False, Switch(), "--last_token and --valid_last together", not_with=ROLLOUT)
    skip_patches: int = limited(0, NATURAL, "leave the first N predictions of a window out of the loss; with "
                                "--norm_mode causal their trailing windows are incomplete", not_with=ROLLOUT)
    adaptation: bool = limited(False, Switch(), "start from --pretrain_model_path", needs=TRAINING,
                               not_with=HEADS_ALONE)
    pretrain_model_path: str | None = limited(None, OrNone(Text()), "checkpoint to start from", needs=("adaptation",))
    distill: bool = limited(False, Switch(), "train --model to imitate a target", needs=TRAINING, not_with=HEADS_ALONE)
    self_draft: int | None = limited(None, OrNone(whole(2, MOST_LAYERS)), "train longer heads on the target in "
                                     "--distill_target_ckpt, which stays as it is, so that a pass speaks of this many "
                                     "patches; they are kept beside it, for --spec_draft head", needs=TRAINING)
    target_model: str = limited("timer_xl", ModelName(TEACHERS), f"model type of the target to imitate: "
                                f"{', '.join(TEACHERS)}, or module:function, as for --model; the latter may need no "
                                "--distill_target_ckpt", flag="distill_target_model", needs=("distill",))
    target_checkpoint: str | None = limited(None, OrNone(Text()), "checkpoint of the target to imitate",
                                            flag="distill_target_ckpt", needs=IMITATION)
    target_d_model: int | None = limited(None, OrNone(WIDTH), "for a target without args.json",
                                         flag="distill_target_d_model", needs=("distill",))
    target_n_heads: int | None = limited(None, OrNone(WIDTH), "for a target without args.json",
                                         flag="distill_target_n_heads", needs=("distill",))
    target_d_ff: int | None = limited(None, OrNone(WIDTH), "for a target without args.json",
                                      flag="distill_target_d_ff", needs=("distill",))
    target_e_layers: int | None = limited(None, OrNone(LAYERS), "for a target without args.json",
                                          flag="distill_target_e_layers", needs=("distill",))
    variance_reg: float = limited(0.0, NON_NEGATIVE, "weight of the variance regularisation", flag="draft_nll_var_reg")
    teacher_noise: float | str = limited(0.0, OrWord(NON_NEGATIVE, "calibrated"), "noise added to the target's output: "
                                         "a standard deviation in standardised units, or 'calibrated': samples of the "
                                         "target's calibrated law", flag="draft_teacher_noise", needs=("distill",))
    noise_unit: str = limited("series", OneOf(("series", "window")), "--draft_teacher_noise is in standard deviations "
                              "of the series, as published, or of each window, which keeps it small in windows that "
                              "hardly move", flag="draft_noise_unit", needs=("draft_teacher_noise",), not_with={
        "draft_teacher_noise=calibrated": "has no effect with --draft_teacher_noise calibrated, whose law is in units "
                                          "of each window"})
    teacher_dropout: float = limited(0.0, RATE, "dropout rate in the target", flag="draft_teacher_dropout",
                                     needs=("distill",))
    rollout: int = limited(0, NATURAL, "on-policy: learn the target's own forecasts of this many patches after each "
                           "window (0: its predictions on real windows, as published; with --self_draft its value)",
                           flag="draft_rollout", needs=IMITATION)
    rollout_context: float = limited(0.0, NON_NEGATIVE, "with --draft_rollout: weight of the target's predictions "
                                     "within the real windows, learned beside its forecasts after them",
                                     flag="draft_rollout_context", needs=("draft_rollout",))
    answer: float = limited(0.0, NON_NEGATIVE, "with --draft_rollout: weight of a loss on how the draft's answer "
                            "changes when its own proposals take the place of the target's forecast, for parareal and "
                            "corrected proposals", flag="draft_answer", needs=("draft_rollout",))
    hinge: float = limited(0.0, NON_NEGATIVE, "with --draft_answer: also learn to stay within this tolerance "
                           "(--spec_tol) of the target, proposed at first and corrected", flag="draft_hinge",
                           needs=("draft_answer",))

    @property
    def target_sizes(self) -> dict[str, int]:
        """The sizes of the target that were given."""
        sizes = {size: getattr(self, f"target_{size}") for size in ("d_model", "n_heads", "d_ff", "e_layers")}
        return {size: value for size, value in sizes.items() if value is not None}


@dataclass(frozen=True)
class ReportSettings(Section):
    """Measurements and files beyond the point metrics."""

    season: int | None = limited(None, OrNone(COUNT), "steps per season, for MASE and the seasonal-naive row of "
                                 "--compare (default: a day by the file's times; 24 where it has none)", free=True,
                                 not_with=TEST_WINDOWS)
    num_samples: int | None = limited(None, OrNone(whole(2, 10000)), "sample this many paths per test window, from the "
                                      "target alone or with a sampling rule, and score them: CRPS, energy score, "
                                      "band coverage (the 95 % band needs at least 39), PIT; with --do_predict: "
                                      "quantiles",
                                      free=True, not_with=ONE_WAY)
    clip_min: float | None = limited(None, OrNone(Number(-1e300, 1e300)), "lower limit of a forecast and its "
                                     "quantiles, in the units of the file: 0 for counts", needs=("do_predict",),
                                     free=True)
    save_samples: bool = limited(False, Switch(), "write the paths to samples.npz in the results folder",
                                 needs=("num_samples",), free=True, not_with=TEST_WINDOWS)
    log_judgements: bool = limited(False, Switch(), "write every judgement to a csv", flag="spec_debug_accept",
                                   needs=SPECULATION, free=True, not_with=ONE_WAY | TEST_WINDOWS | {
        "spec_accept_rule=parareal": "has no effect with --spec_accept_rule parareal, which judges nothing"})
    judgements_file: str = limited("spec_accept_debug.csv", CsvName(), "name of that csv, in the results folder",
                                   flag="spec_debug_out", needs=("spec_debug_accept",), free=True)
    judgements_windows: int = limited(64, COUNT, "number of windows in that csv", flag="spec_debug_n",
                                      needs=("spec_debug_accept",), free=True)
    trace_inference_breakdown: bool = limited(False, Switch(), "report the time spent in target, draft and the rest",
                                              free=True, not_with=ONE_WAY | TEST_WINDOWS | {
        "compile": "times passes one by one, but a decode that --compile has recorded is replayed as a whole"})
    visualize: bool = limited(False, Switch(), "write PNGs of forecasts", free=True, not_with=TEST_WINDOWS)
    pictures: int | None = limited(None, OrNone(NATURAL), f"most pictures (default: {SERIES_DRAWN} series of "
                                   f"--do_predict, {WINDOWS_DRAWN} windows of --visualize)", free=True,
                                   needs=("do_predict", "visualize"))
    output_attention: bool = limited(False, Switch(), "write the attention weights of the first test window (PNG, npz)",
                                     free=True, not_with=ONE_WAY | TEST_WINDOWS)


@dataclass(frozen=True)
class Settings:
    """One run, immutable: another seed or horizon is another Settings (`with_`)."""

    run: RunSettings = field(default_factory=RunSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    spec: SpecSettings = field(default_factory=SpecSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    panel: PanelSettings = field(default_factory=PanelSettings)

    def with_(self, section: str, **changes: Any) -> Settings:
        """A copy with some fields of one section changed."""
        return replace(self, **{section: replace(getattr(self, section), **changes)})


SECTIONS: dict[str, type] = {own.name: type(getattr(Settings(), own.name)) for own in fields(Settings)}
