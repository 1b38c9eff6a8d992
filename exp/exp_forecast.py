"""The forecasting experiment: train, test (alone or speculative), compare, predict."""
from pathlib import Path

import torch
import torch.distributed as dist

from data_provider.data_factory import data_file, data_provider, spread_windows
from data_provider.target_forecasts import TargetForecasts
from exp.comparison import compare, compared_methods, describe
from exp.evaluation import AcceptanceLog, AloneMethod, Interrupted, SpeculativeMethod, evaluate, make_speculative
from exp.exp_basic import Exp_Basic, seed_everything
from exp.forecaster import Forecaster
from exp.laws import calibrated, law_of_flags, validation_part
from exp.prediction import predict
from exp.reporting import breakdown, draw_attention, draw_forecasts
from exp.sampling import PlainSampler, SpeculativeSampler, evaluate_paths, samples_shape
from exp.training import Trainer
from utils.calibration import forget
from utils.checkpoint import CHECKPOINT, load_into, read_state
from utils.errors import UserError
from utils.files import inside, refuse_unwritable
from utils.losses import DistillationLoss, RolloutLoss, SupervisedLoss, SupervisedNLL
from utils.precision import autocast
from utils.results import (
    breakdown_line,
    inference_line,
    log_breakdown,
    log_forecast,
    log_inference,
    refuse_huge_samples,
    refuse_overflow,
    samples_line,
    write_csv,
    write_metrics,
    write_partial,
)
from utils.timing import TracedModel, hardware

RESULTS = "./test_results"
VALIDATION_SEED = 1_000_000_007  # sampled forecasts of the validation part have noise of their own


class Exp_Forecast(Exp_Basic):
    """One command line: `run` trains --itr times and tests each, or tests or forecasts with a checkpoint."""

    def run(self) -> None:
        args = self.args
        if not args.is_training:
            seed_everything(args.seed)
            setting = args.test_dir or self.setting()
            checkpoint = self.tested_checkpoint(setting)
            self._check_test(setting)
            if args.do_predict:
                forecaster = Forecaster(self, checkpoint)
                predict(forecaster, data_file(args), args.test_pred_len, self._results_folder(setting))
            else:
                self._compare_or_test(setting, checkpoint)
            return
        if args.distill:
            self.adopt_target()
        if args.adaptation:
            self.adopt_pretrained()
        self._check_what_follows_training()
        first_seed = args.seed
        for iteration in range(args.itr):
            args.seed = first_seed + iteration
            seed_everything(args.seed)
            setting = self.setting(iteration)
            folder = self.train(setting)
            if self.world_size > 1:
                dist.barrier()
            if self.is_main:
                self._compare_or_test(setting, folder / CHECKPOINT)
        if self.world_size > 1:
            dist.destroy_process_group()

    def _check_what_follows_training(self) -> None:
        """What would stop the test must stop the run now, not after hours of training."""
        args = self.args
        for iteration in range(args.itr):
            self._check_test(self.setting(iteration))
        self._check_test_part(data_provider(args, "test")[0])
        if "calibrated" in (args.spec_sigma_mode, args.draft_teacher_noise):
            validation_part(args)
        if args.use_speculative or args.compare:
            self.load_model(args.spec_draft_model, args.spec_draft_ckpt)

    def _check_test(self, setting: str) -> None:
        """What can be known of a test before anything is loaded: where its results go, and what --compare needs."""
        args = self.args
        refuse_unwritable(self._results_folder(setting), "--model_id/--des/--test_dir")
        if args.compare and args.model != "timer_xl":
            raise UserError(f"--compare needs the target as --model, not {args.model}: name the draft by "
                            "--spec_draft_ckpt")
        if args.compare and args.season > args.test_seq_len:
            raise UserError(f"--season {args.season} is longer than the context of {args.test_seq_len} steps: the "
                            "seasonal-naive row of --compare repeats a whole season; give a shorter one")

    def _check_test_part(self, dataset) -> None:
        spread_windows(dataset, self.args.test_windows)
        if self.args.save_samples:
            refuse_huge_samples(samples_shape(self.args, dataset))

    def train(self, setting: str) -> Path:
        """Trains one model; returns the folder that holds its best checkpoint."""
        args = self.args
        folder = self.checkpoint_folder(setting)
        model = self._initial_model()
        loss = self._loss()
        if self.rank:  # equal weights to begin with, but dropout and noise of its own in every process
            torch.manual_seed(args.seed + 1_000_003 * self.rank)
        _, train_loader = data_provider(args, "train", rank=self.rank, world_size=self.world_size,
                                        wrapper=self._answers(loss, args.draft_teacher_dropout, args.seed))
        _, val_loader = data_provider(args, "val", wrapper=self._answers(loss, seed=args.seed + VALIDATION_SEED))
        parameters = sum(p.numel() for p in model.parameters())
        self.say(f"training {args.model} ({parameters:,} parameters) on {self.device}: {folder}")
        trainer = Trainer(model, loss, train_loader, val_loader, args, folder, self.train_settings(model), self.device,
                          self.rank, self.world_size)
        best = trainer.run()
        if self.is_main:
            forget(folder / CHECKPOINT)
        self.say(f"best validation loss {best:.5f}: {folder / CHECKPOINT}")
        return folder

    def _initial_model(self) -> torch.nn.Module:
        model = self.new_model(self.args.model, self.config_from_flags(self.args.model))
        if self.args.adaptation:
            path = self.args.pretrain_model_path
            load_into(model, read_state(path), path)
            self.say(f"adapting the weights of {path}")
        return model

    def _answers(self, loss, dropout: float = 0.0, seed: int = 0):
        """What puts the target's own forecasts in place of the answers of a data set, where the loss learns these."""
        if not isinstance(loss, RolloutLoss):
            return None

        def forecast(dataset):
            law = loss.law if self.args.draft_teacher_noise == "calibrated" else None
            forecasts = TargetForecasts(dataset, loss.teacher, loss.rollout * loss.teacher.patch_len, self.device,
                                        dropout, law, seed, self.args.quiet or not self.is_main)
            if forecasts.kept is None and self.args.num_workers:
                raise UserError(f"--num_workers {self.args.num_workers}: the target's forecasts cannot be kept "
                                "(teacher dropout, or too many), and no worker can make them: use --num_workers 0")
            return forecasts
        return forecast

    def _loss(self):
        args = self.args
        selection = dict(patch_len=args.input_token_len, covariate=args.covariate, last_token=args.last_token,
                         valid_last=args.valid_last, skip=args.skip_patches)
        if args.distill:
            teacher = self.load_model(args.distill_target_model, args.distill_target_ckpt, "distill_target_")
            noise = args.draft_teacher_noise
            if noise == "calibrated":
                noise = calibrated(args, teacher, args.distill_target_ckpt, self.device, self.say).law
            if args.draft_rollout:
                return RolloutLoss(teacher, args.draft_nll_var_reg, noise, args.draft_rollout, args.covariate)
            return DistillationLoss(teacher, args.draft_nll_var_reg, noise, args.draft_teacher_dropout,
                                    SupervisedLoss(**selection))
        if args.draft_stochastic and args.model == "timer_xl_draft":
            return SupervisedNLL(args.draft_nll_var_reg, **selection)
        return SupervisedLoss(**selection)

    def _compare_or_test(self, setting: str, checkpoint: Path) -> None:
        with autocast(self.args, self.device):
            (self.compare if self.args.compare else self.test)(setting, checkpoint)

    def _mode(self) -> str:
        args = self.args
        if args.do_predict:
            return f"_predict_{Path(args.data_path).stem}"
        if args.compare:
            return "_compare"
        emitted = args.spec_emit if args.num_samples is None else "samples"
        if args.use_speculative:
            return f"_spec_{args.spec_accept_rule}_{emitted}"
        return "" if args.num_samples is None else "_samples"

    def _results_folder(self, setting: str) -> Path:
        args = self.args
        mode = self._mode() + (f"_{args.des}" if args.test_dir and "des" in args.explicit else "")
        folder = inside(RESULTS, f"{setting}_pl{args.test_pred_len}{mode}", "--model_id/--des/--test_dir")
        inside(folder, args.spec_debug_out, "--spec_debug_out")
        return folder

    def test(self, setting: str, checkpoint: Path) -> dict:
        """Rolling forecast of every test window; writes metrics.json and what the report flags ask for."""
        args = self.args
        model, draft = self.load_pair(checkpoint)
        folder = self._results_folder(setting)
        dataset, loader = data_provider(args, "test")
        self._check_test_part(dataset)
        law = None
        if args.num_samples is not None or args.spec_sigma_mode == "calibrated":
            law = law_of_flags(args, model, checkpoint, self.device, self.say)
        traced = [TracedModel(m, self.device) if args.trace_inference_breakdown and m is not None else m
                  for m in (model, draft)]
        emit = None if args.num_samples is None else "mean"
        method = AloneMethod(traced[0], args.test_pred_len) if draft is None \
            else make_speculative(*traced, args, emit=emit, law=law)
        observer = AcceptanceLog(args.spec_debug_n) if args.spec_debug_accept else None
        if args.spec_k == "auto" and draft is not None:
            # the trace is of forecasting, not of planning
            untraced = make_speculative(model, draft, args, emit=emit, law=law)
            self._plan([untraced], [min(args.batch_size, len(dataset))])
            method.plans = untraced.plans
        try:
            out = evaluate(method, loader, self.device, args.covariate, args.quiet, observer)
        except Interrupted as stop:
            self._keep(folder, stop, len(spread_windows(dataset, args.test_windows)))
            raise
        metrics = self._metrics(out, setting, checkpoint, draft is not None)
        refuse_overflow(metrics["mse"], str(checkpoint))
        self.say(f"{setting}{self._mode()}, horizon {args.test_pred_len}: mse:{metrics['mse']:.4f}, "
                 f"mae:{metrics['mae']:.4f}")
        self.say(inference_line(metrics))
        if args.num_samples is not None:
            write_metrics(folder, metrics)  # sampling takes long: an interruption must not lose these
            sampler = PlainSampler(model, args.test_pred_len, law, args.seed)
            if draft is not None:
                sampling = make_speculative(model, draft, args, emit="sample", law=law)
                sampling.plans = method.plans
                sampler = SpeculativeSampler(sampling)
            metrics["samples"] = evaluate_paths(sampler, dataset, loader, args, self.device, folder) | self._law()
            self.say(samples_line(metrics["samples"]))
        if args.trace_inference_breakdown:
            metrics["breakdown"] = breakdown(out.seconds, *traced)
            self.say(breakdown_line(metrics["breakdown"]))
            log_breakdown(folder.name, metrics["breakdown"])
        write_metrics(folder, metrics)
        log_forecast(folder.name, metrics)
        log_inference(folder.name, metrics)
        if args.visualize:
            plans = getattr(method, "plans", None)
            method = AloneMethod(model, args.test_pred_len)
            alone = method
            if draft is not None:
                method = make_speculative(model, draft, args, law=law)
                method.plans = plans
            draw_forecasts(folder, method, alone, dataset, args, self.device)
        self._write_extras(folder, model, dataset, observer)
        self.say(f"results: {folder}")
        return metrics

    def _metrics(self, out, setting: str, checkpoint: Path, speculative: bool) -> dict:
        args = self.args
        metrics = out.result(args.batch_size) | hardware(self.device)
        metrics |= {"setting": setting, "checkpoint": str(checkpoint), "data_path": args.data_path, "data": args.data,
                    "context": args.test_seq_len, "horizon": args.test_pred_len, "seed": args.seed,
                    "test_windows": args.test_windows}
        if speculative:
            names = [name for name in vars(args) if name.startswith("spec_")]
            metrics["speculation"] = {name: getattr(args, name) for name in names}
        return metrics

    def _keep(self, folder: Path, stop: Interrupted, windows: int) -> None:
        """What an interrupted walk over the test windows has found, under a name that no whole result has."""
        rows = [{"method": name} | out.result(self.args.batch_size) for name, out in stop.so_far.items()]
        path = write_partial(folder, {"windows_of_the_split": windows, "rows": rows})
        self.say(f"interrupted after {rows[-1]['windows']} of {windows} windows, the first of the split: {path}")

    def _law(self) -> dict:
        """What the paths were drawn from, for metrics.json."""
        args = self.args
        given = {"spec_temp": args.spec_temp}
        given |= {"spec_covariance": args.spec_covariance} if args.spec_sigma_mode == "calibrated" \
            else {"spec_sigma": args.spec_sigma}
        return {"law": {"spec_sigma_mode": args.spec_sigma_mode} | given}

    def _plan(self, methods, batch_sizes) -> None:
        """--spec_k auto: chooses K for each method and batch size, on validation windows spread over their split."""
        dataset, _ = data_provider(self.args, "val", context=self.args.test_seq_len)
        for size in batch_sizes:
            windows = torch.linspace(0, len(dataset) - 1, size).long().tolist()
            context = dataset.__getitems__(windows)[0].to(self.device)
            for method in methods:
                self.say(f"{method.rule.name}: {method.plan(context).describe()}")

    def _write_extras(self, folder: Path, model, dataset, observer) -> None:
        args = self.args
        if observer is not None:
            write_csv(inside(folder, args.spec_debug_out, "--spec_debug_out"), observer.rows, observer.COLUMNS)
        if args.output_attention:
            draw_attention(folder, model, dataset, self.device)

    def compare(self, setting: str, checkpoint: Path) -> list[dict]:
        """The table of --compare, on the terminal, as csv and as a picture."""
        args = self.args
        target, draft = self.load_pair(checkpoint)
        folder = self._results_folder(setting)
        dataset, loader = data_provider(args, "test")
        methods = compared_methods(target, draft, args)
        if args.spec_k == "auto":
            speculative = [method for method in methods.values() if isinstance(method, SpeculativeMethod)]
            self._plan(speculative, [1, min(args.batch_size, len(dataset))])
        try:
            rows = compare(methods, dataset, loader, args, self.device, folder)
        except Interrupted as stop:
            self._keep(folder, stop, len(spread_windows(dataset, args.test_windows)))
            raise
        self.say(describe(rows))
        write_metrics(folder, {"rows": rows, "checkpoint": str(checkpoint), "draft": args.spec_draft_ckpt,
                               "settings": {name: value for name, value in vars(args).items() if name != "explicit"}})
        if args.visualize:
            draw_forecasts(folder, make_speculative(target, draft, args, "tolerance", "mean"),
                           AloneMethod(target, args.test_pred_len), dataset, args, self.device)
        self.say(f"table: {folder / 'compare.csv'}\nplot: {folder / 'compare.png'}")
        return rows
