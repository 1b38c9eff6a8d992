"""Device, model registry, checkpoints and distributed set-up."""
import json
import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from exp.options import adopt, check_against_checkpoint
from layers.linear import pack_linears
from models import timer_xl, timer_xl_draft
from models.config import ModelConfig
from utils.checkpoint import ARGS, load_into, read_settings, read_state
from utils.errors import UserError
from utils.files import inside

MODELS = {"timer_xl": timer_xl.Model, "timer_xl_draft": timer_xl_draft.Model}
SIZES = ("d_model", "n_heads", "d_ff", "e_layers")
SCALES = tuple(f"draft_scale_{size}" for size in SIZES)
DRAFT_ONLY = {"draft_stochastic": False, "draft_patches": 1} | dict.fromkeys(SCALES, 1.0)
ARCHITECTURE = (*SIZES, "activation", "covariate", "use_norm", "norm_mode", "norm_window",
                "input_token_len")


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Exp_Basic:
    """What every experiment needs: where it runs, its models, its folders."""

    def __init__(self, args):
        self.args = args
        self.rank, self.world_size = 0, 1
        self.device = self._set_up_distributed() if args.ddp else self._choose_device()
        if args.amp and args.amp_dtype == "fp16" and self.device.type == "cpu":
            raise UserError("--amp_dtype fp16 needs a GPU: use bf16 on the CPU")
        self.is_main = self.rank == 0

    def _choose_device(self) -> torch.device:
        if not torch.cuda.is_available():
            if "gpu" in self.args.explicit:
                print(f"note: --gpu {self.args.gpu} was asked for, but there is no CUDA device; running on the CPU")
            return torch.device("cpu")
        if self.args.gpu >= torch.cuda.device_count():
            raise UserError(f"--gpu {self.args.gpu} does not exist: there are {torch.cuda.device_count()}, from 0")
        return torch.device("cuda", self.args.gpu)

    def _set_up_distributed(self) -> torch.device:
        if "RANK" not in os.environ:
            raise UserError("--ddp needs the environment of torchrun: torchrun --nproc_per_node N run.py --ddp ...")
        device = self._device_of_process(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        return device

    def _device_of_process(self, local: int) -> torch.device:
        """The GPU of process `local` of this machine; --devices must name enough of them even where there is none."""
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = self.args.devices or list(range(present))
        if local >= len(devices) and (present or self.args.devices):
            raise UserError(f"--ddp: {len(devices)} GPUs for process {local + 1} of this machine: start fewer "
                            "processes (torchrun --nproc_per_node), or name one GPU for each by --devices")
        if not present:
            return torch.device("cpu")
        if max(devices) >= present:
            raise UserError(f"--devices names GPU {max(devices)}: there are {present}, from 0")
        torch.cuda.set_device(devices[local])
        return torch.device("cuda", devices[local])

    def say(self, text: str) -> None:
        if self.is_main:
            print(text, flush=True)

    def setting(self, iteration: int = 0) -> str:
        """Folder name of a run: task, model id, model, description, iteration. Everything else is in args.json."""
        args = self.args
        return f"{args.task_name}_{args.model_id}_{args.model}_{args.des}_{iteration}"

    def checkpoint_folder(self, setting: str) -> Path:
        return inside(self.args.checkpoints, setting, "--model_id/--des/--test_dir")

    def config_from_flags(self, model: str, prefix: str = "") -> ModelConfig:
        """Architecture by the flags; `prefix` 'distill_target_' reads the target's own size flags where given."""
        if self.args.norm_mode == "causal" and not self.args.use_norm:
            raise UserError("--norm_mode causal has no effect without --use_norm: add that flag, or leave this one out")
        if self.args.norm_window and self.args.norm_mode != "causal":
            raise UserError("--norm_window has no effect without --norm_mode causal: a window is normalised as a whole")
        settings = dict(vars(self.args))
        for size in SIZES:
            settings[size] = getattr(self.args, prefix + size) or getattr(self.args, size)
        if model != "timer_xl_draft":
            settings |= DRAFT_ONLY
        return ModelConfig.from_mapping(settings)

    def new_model(self, name: str, config: ModelConfig) -> torch.nn.Module:
        built = config.scaled()
        if built.d_model % built.n_heads or built.d_model // built.n_heads % 4:
            raise UserError(f"--d_model {config.d_model} with --n_heads {config.n_heads}: a head's width must be a "
                            "multiple of 4 (rotary pairs); change one of them")
        return MODELS[name](config).to(self.device)

    def load_model(self, name: str, path: str | Path, prefix: str = "") -> torch.nn.Module:
        """A trained model. Its architecture comes from the args.json beside it, else from the flags.

        prefix: the flags that describe this model ('' or 'distill_target_'); what was given and contradicts args.json
        is an error that names both values.
        """
        settings = read_settings(path)
        if settings is None:
            config = self.config_from_flags(name, prefix)
        else:
            if settings.get("model") != name:
                raise UserError(f"checkpoint {path} is a {settings.get('model')}, not a {name}: give the other one, or "
                                "change --model / --spec_draft_model / --distill_target_model")
            missing = [name for name in (*SIZES, "input_token_len") if name not in settings]
            if missing:
                raise UserError(f"{Path(path).with_name(ARGS)} lacks {', '.join(missing)}: restore it, or delete it "
                                "and give the flags")
            if settings["input_token_len"] != self.args.input_token_len:
                raise UserError(f"checkpoint {path} has a patch of {settings['input_token_len']} steps, this run has "
                                f"--input_token_len {self.args.input_token_len}: they must be equal, for target and "
                                "draft alike")
            names = SIZES if prefix else ARCHITECTURE + ((*SCALES, "draft_patches") if name == "timer_xl_draft" else ())
            check_against_checkpoint(settings, self.args.explicit, self.args, names, path, prefix)
            config = ModelConfig.from_mapping(settings | {"flash_attention": self.args.flash_attention})
        model = self.new_model(name, config)
        load_into(model, read_state(path), path)
        self._choose_rolling(model, path)
        if self.args.compile:
            model.blocks.compile(mode="reduce-overhead" if self.device.type == "cuda" else None)
        elif not self.args.amp:  # packed weights are float32
            pack_linears(model)
        return model.eval()

    def _choose_rolling(self, model: torch.nn.Module, path: str | Path) -> None:
        """--rolling, where it is given; says so where it is an approximation, refuses it where it would be wrong."""
        rolling = self.args.rolling
        if rolling is None:
            return
        if rolling == "cache" and model.config.covariate:
            raise UserError(f"--rolling cache: {path} was trained with --covariate, where the last variable looks "
                            "ahead in the others, so that nothing can be kept; use --rolling window")
        if rolling == "cache" and model.config.use_norm and not model.config.causal:
            self.say(f"note: --rolling cache is an APPROXIMATION for {path}: it normalises whole windows, so the "
                     "statistics of the context are frozen (exact: --rolling window, or train with --norm_mode causal)")
        model.rolling = rolling

    def tested_checkpoint(self, setting: str) -> Path:
        """The checkpoint that a test names; patch, context and data class come from it where no flag says otherwise."""
        path = inside(self.checkpoint_folder(setting), self.args.test_file_name, "--test_file_name")
        settings = read_settings(path) or {}
        adopt(self.args, settings, ("input_token_len", "seq_len", "data", "covariate"))
        trained_on, tested_on = Path(settings.get("data_path", "")).name, Path(self.args.data_path).name
        if settings and trained_on != tested_on and not self.args.do_predict:
            self.say(f"note: {path} was trained on {trained_on} and is tested on {tested_on}")
        return path

    def load_pair(self, checkpoint: Path):
        """(model under test, draft or None)"""
        args = self.args
        model = self.load_model(args.model, checkpoint)
        if not (args.use_speculative or args.compare):
            return model, None
        return model, self.load_model(args.spec_draft_model, args.spec_draft_ckpt)

    def adopt_target(self) -> None:
        """A draft has its target's sizes (times the scales), patch and normalisation, unless flags differ."""
        settings = read_settings(self.args.distill_target_ckpt) or {}
        adopt(self.args, settings, (*ARCHITECTURE, "seq_len", "data"))

    def adopt_pretrained(self) -> None:
        """Training that starts from other weights has their architecture; a flag that contradicts it is an error."""
        args, path = self.args, self.args.pretrain_model_path
        settings = read_settings(path) or {}
        if settings.get("model", args.model) != args.model:
            raise UserError(f"--pretrain_model_path {path} is a {settings['model']}, not a {args.model}: give the "
                            "other one, or change --model")
        names = ARCHITECTURE + ((*SCALES, "draft_stochastic") if args.model == "timer_xl_draft" else ())
        check_against_checkpoint(settings, args.explicit, args, names, path)
        adopt(args, settings, (*names, "seq_len", "data"))

    def train_settings(self, model: torch.nn.Module) -> dict:
        """What args.json keeps: every flag as it was used, and how many parameters came of it."""
        settings = {key: value for key, value in vars(self.args).items() if key != "explicit"}
        return json.loads(json.dumps(settings | {"parameters": sum(p.numel() for p in model.parameters())}))
