"""The forecasting experiment: train, test (alone or speculative), compare, predict."""
from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_provider.data_factory import spread_windows
from exp.evaluate.bands import Bands, bands_of, rolled_part
from exp.evaluate.by_series import Walk
from exp.evaluate.comparison import compare, compared_methods, describe
from exp.evaluate.evaluation import AcceptanceLog, Evaluation, Interrupted, evaluate
from exp.evaluate.methods import (
    AloneMethod,
    Method,
    SpeculativeMethod,
    WidenedMethod,
    make_rule,
    make_speculative,
)
from exp.evaluate.paths import evaluate_paths, samples_shape, windows_at_once
from exp.evaluate.pictures import breakdown, draw_attention, draw_forecasts
from exp.evaluate.planning import plan_once
from exp.evaluate.promise import Kept, add_found, checked, keep_promise, refuse_without_windows
from exp.exp_basic import Exp_Basic, autocast, seed_everything
from exp.flags import flat, in_flags
from exp.laws import calibration_part, target_law
from exp.memory import Shape, refuse_unfitting_test
from exp.own_heads import heads_beside
from exp.ownership import SOURCES, of_results, results_folder, sources, training_folder
from exp.predict.files import predict
from exp.predict.forecaster import Forecaster
from exp.predict.panel_files import columns_of, predict_panel
from exp.report.decision import decide
from exp.report.results import (
    breakdown_line,
    errors_line,
    files_table,
    inference_line,
    log_breakdown,
    log_forecast,
    log_inference,
    refuse_huge_samples,
    rejection_note,
    samples_line,
    write_csv,
    write_metrics,
    write_partial,
    write_series,
)
from exp.train.training import train, validated
from models.checkpoint import CHECKPOINT
from models.registry import DRAFTS, checkpoint_in
from utils.errors import UserError
from utils.files import inside, refuse_unwritable
from utils.interface import Model
from utils.speculative_decoder import patches_in
from utils.target_law import TargetLaw
from utils.timing import hardware

RESULTS = "./test_results"
log = logging.getLogger(__name__)


class Exp_Forecast(Exp_Basic):
    """One call of the program: `run` trains --itr times and tests each time, or tests or predicts with a checkpoint."""

    def run(self) -> None:
        run = self.settings.run
        if run.is_training:
            self._train_and_test()
            return
        seed_everything(run.seed)
        setting, checkpoint = run.test_dir or self.setting(), self.tested_checkpoint()
        self._refuse_unwritable(setting)
        path, base, used = self.settings.data.files[0].path, self._results_base(setting), self._used(checkpoint)
        columns = columns_of(self.settings, path) if run.do_predict else None
        with results_folder(base, used) if self.is_main else nullcontext(base) as folder:
            if columns is not None:
                predict_panel(Forecaster(self.settings, checkpoint, self.device), path, columns, folder, used)
            elif run.do_predict:
                predict(Forecaster(self.settings, checkpoint, self.device), path, folder)
            else:
                self._compare_or_test(setting, checkpoint, folder)
        self.team.close()

    def _train_and_test(self) -> None:
        first = self.settings
        self._check_what_follows_training()
        for iteration in range(first.run.itr):
            self.settings = first.with_("run", seed=first.run.seed + iteration)
            seed_everything(self.settings.run.seed)
            self._train_and_test_once(self.setting(iteration))
        self.team.close()

    def _train_and_test_once(self, setting: str) -> None:
        folder, kept, results = self._trained_folder(setting), self._kept(), self._results_base(setting)
        tested = folder / CHECKPOINT if self.settings.train.self_draft is None else self._target_checkpoint()
        used = self._used(tested)
        with ExitStack() as held:
            if self.is_main:  # both folders from the start: hours later they might be another's
                held.enter_context(training_folder(folder, kept, self.settings.train.self_draft is None))
                results = held.enter_context(results_folder(results, used))
            train(self, folder, kept)
            self.team.once(lambda: None)  # the checkpoint is whole
            if self.is_main:
                used |= self._used(tested)  # the results are of the new weights
            self._compare_or_test(setting, tested, results)

    def _target_checkpoint(self) -> Path:
        """The target that a draft, or its own heads, learn from."""
        return checkpoint_in(str(self.settings.train.target_checkpoint))

    def _trained_folder(self, setting: str) -> Path:
        """Where a training keeps what it trains: heads beside their target, all else in the run's own folder."""
        if self.settings.train.self_draft is None:
            return self.checkpoint_folder(setting)
        return heads_beside(self._target_checkpoint()).parent

    def _kept(self) -> dict[str, Any]:
        """The contents of args.json."""
        train = self.settings.train
        files = sources(self.settings.data.files, distill_target_ckpt=train.target_checkpoint,
                        pretrain_model_path=train.pretrain_model_path)
        return flat(self.settings) | {SOURCES: files, "processes": self.world_size}

    def _check_what_follows_training(self) -> None:
        """Raises now, not after hours of training, what would stop the test."""
        run, settings = self.settings.run, self.settings
        for iteration in range(run.itr):
            self._refuse_unwritable(self.setting(iteration))
            refuse_unwritable(self._trained_folder(self.setting(iteration)), "--checkpoints/--model_id/--des")
        self._check_test_part(self.tested_split())
        validated(self)
        if "calibrated" in (settings.spec.sigma_mode, settings.train.teacher_noise):
            calibration_part(self)
        if settings.spec.growth is not None:
            rolled_part(self)
        if (run.use_speculative or run.compare) and run.draft == "model":
            self.load_draft()

    def _refuse_unwritable(self, setting: str) -> None:
        refuse_unwritable(self._results_base(setting), "--model_id/--des/--test_dir")

    def _check_test_part(self, dataset) -> None:
        spread_windows(dataset, self.settings.data.test_windows)
        refuse_without_windows(self.settings, dataset)
        if self.settings.report.save_samples:
            refuse_huge_samples(samples_shape(self.settings, dataset))

    def _compare_or_test(self, setting: str, checkpoint: Path, folder: Path) -> None:
        with autocast(self.settings.run, self.device):
            if self.settings.run.compare:
                self.compare(checkpoint, folder)
            else:
                self.test(setting, checkpoint, folder)

    def _suffix(self) -> str:
        """Of the folder of results: what was done."""
        run, spec, samples = self.settings.run, self.settings.spec, self.settings.report.num_samples
        if run.do_predict:
            return f"_predict_{self.settings.data.label}"
        other = self.settings.model.trained_on not in (None, self.settings.data.label)
        split = "_val" if self.settings.data.test_flag == "V" else ""
        windows = (f"_{self.settings.data.label}" if other else "") + split
        if run.compare:
            return f"{windows}_compare"
        if run.use_speculative:
            return f"{windows}_spec_{spec.rule}_{spec.emission if samples is None else 'samples'}"
        return windows if samples is None else f"{windows}_samples"

    def _used(self, checkpoint: Path) -> dict[str, Any]:
        """What the results of this run with `checkpoint` depend on."""
        run, heads = self.settings.run, heads_beside(checkpoint)
        beside = heads if heads.is_file() else None  # a model may have heads of its own
        files = sources(self.settings.data.files, checkpoint=checkpoint,
                        spec_draft_ckpt=beside if run.draft == "head" else run.draft_checkpoint)
        return of_results(flat(self.settings)) | {SOURCES: files}

    def _results_base(self, setting: str) -> Path:
        run = self.settings.run
        mode = self._suffix() + (f"_{run.des}" if run.test_dir and run.des != type(run).des else "")
        folder = inside(RESULTS, f"{setting}_pl{self.settings.data.horizon}{mode}", "--model_id/--des/--test_dir")
        inside(folder, self.settings.report.judgements_file, "--spec_debug_out")
        return folder

    def test(self, setting: str, checkpoint: Path, folder: Path) -> dict:
        """Rolling forecast of every test window; writes metrics.json and the requested reports.

        Of several processes, the main one chooses what is chosen or fitted once, and reports; the others return {}.
        """
        settings, report = self.settings, self.settings.report
        model, draft = self.load_tested(checkpoint), None
        if settings.run.use_speculative:
            model, draft = self.with_draft(model, checkpoint)
        dataset, loader = self.test_part()
        self._check_test_part(dataset)
        law = None
        if report.num_samples is not None or settings.spec.sigma_mode == "calibrated":
            law = self.team.once(lambda: target_law(self, model, checkpoint))
        method = self._method(model, draft, law)
        self._refuse_unfitting(dataset, model, draft)
        bands = None
        if report.num_samples is not None and law is not None and settings.spec.sigma_mode == "calibrated":
            found_law = law
            bands = self.team.once(lambda: bands_of(self, model, checkpoint, found_law))
        if settings.spec.k == "auto":
            plan_once(self, {settings.spec.rule: method}, [min(settings.data.batch_size, len(dataset))])
        promise = None
        if settings.run.use_speculative and settings.spec.promises:
            assert isinstance(method, SpeculativeMethod)
            free = method
            promise = self.team.once(lambda: keep_promise(self, free, checkpoint, dataset))
            method = promise.method(free)
        # after planning: the trace is of forecasting
        tested, traced = method.traced(self.device) if report.trace_inference_breakdown else (method, [])
        observer = AcceptanceLog(report.judgements_windows) if report.log_judgements else None
        began = time.monotonic()
        out = self._evaluate(tested, model, loader, folder, dataset, observer, promise)
        for part in traced:
            part.seconds, part.passes = map(sum, zip(*self.team.everyone((part.seconds, part.passes))))
        metrics = self._reported(out, time.monotonic() - began, setting, checkpoint, promise) if self.is_main else {}
        if traced and self.is_main:
            metrics["breakdown"] = breakdown(out.seconds, *traced)
        if report.num_samples is not None and law is not None:
            if self.is_main:
                write_metrics(folder, metrics)  # sampling takes long: an interruption must not lose these
            metrics["samples"] = self._test_paths(method, law, bands, dataset, folder)
        if not self.is_main:
            return {}
        if traced:
            log.info(breakdown_line(metrics["breakdown"]))
            log_breakdown(folder.name, metrics["breakdown"])
        write_metrics(folder, metrics)
        if out.by_series is not None:
            write_series(folder, out.by_series.rows())
        log_forecast(folder.name, metrics)
        log_inference(folder.name, metrics)
        self._write_extras(folder, method, model, law, dataset, observer)
        log.info("results: %s", folder)
        return metrics

    def _reported(self, out: Evaluation, seconds: float, setting: str, checkpoint: Path,
                  promise: Kept | None) -> dict[str, Any]:
        """Says what the walk, which took so many seconds, has found; the contents of metrics.json."""
        data, metrics = self.settings.data, self._metrics(out, setting, checkpoint)
        metrics |= {"processes": self.team.size, "windows_per_second": out.windows / seconds}
        log.info("%s%s, horizon %d: %s", setting, self._suffix(), data.horizon, errors_line(metrics))
        if len(metrics["files"]) > 1:
            log.info(files_table(metrics["files"]))
        log.info(inference_line(metrics))
        if promise is not None:
            metrics["promise"] = promise.record
        note = rejection_note(metrics, patches_in(data.horizon, self.patch_len))
        if note is not None:
            log.info("note: %s", note)
        return metrics

    def _refuse_unfitting(self, dataset, model, draft) -> None:
        settings, windows = self.settings, min(self.settings.data.batch_size, len(dataset))
        shape = Shape(windows, dataset.variables, settings.data.test_context, settings.data.horizon)
        refuse_unfitting_test(shape, self.device, model, draft)
        if settings.report.num_samples is not None:
            paths = replace(shape, windows=min(windows, windows_at_once(settings, dataset)),
                            samples=settings.report.num_samples)
            refuse_unfitting_test(paths, self.device, model, draft)

    def _method(self, model, draft, law: TargetLaw | None) -> Method:
        """The method under test; beside sampled paths the point metrics are those of mean emission."""
        settings, emit = self.settings, None if self.settings.report.num_samples is None else "mean"
        if not settings.run.use_speculative:
            return AloneMethod(model, settings.data.horizon, is_draft=settings.model.name in DRAFTS)
        rule = make_rule(settings.spec, law, emit=emit)
        return make_speculative(model, draft, settings.spec, settings.data.horizon, settings.run.seed, rule)

    def _evaluate(self, method: Method, target: Model, loader, folder: Path, dataset, observer,
                  promise: Kept | None) -> Evaluation:
        settings = self.settings
        walk = Walk(dataset, spread_windows(dataset, settings.data.test_windows))
        methods, records = ({"tested": method}, None) if promise is None else \
            checked(promise, method, target, settings, walk)
        try:
            found = evaluate(methods, loader, self.device, settings.model.config.covariate, settings.run.quiet,
                             observer, None if promise is None else next(iter(methods)), records, walk=walk,
                             team=self.team)
            if promise is not None and self.is_main:
                add_found(promise.record, found["tested"], found["target alone"])
            return found["tested"]
        except Interrupted as stop:
            self._keep(folder, stop, len(spread_windows(dataset, settings.data.test_windows)))
            raise

    def _test_paths(self, method: Method, law: TargetLaw, bands: Bands | None, dataset, folder: Path) -> dict:
        """Scores of sampled paths, by the rule under test or from the target alone."""
        settings, spec = self.settings, self.settings.spec.filled()
        sampled = method.sampled(spec, law, settings.run.seed, int(settings.report.num_samples or 0))
        growth = None if bands is None else bands.chosen(spec.growth)
        if bands is not None and growth == "rollouts":
            sampled = WidenedMethod(sampled, bands.growth, self.patch_len)
        loader = self.tested_batches(dataset, windows_at_once(settings, dataset))
        scores = evaluate_paths(sampled, dataset, loader, settings, self.device, folder, self.team)
        if not self.is_main:
            return {}
        drawn_from = {"spec_covariance": spec.covariance, "spec_growth": growth or "none",
                      "spec_width": "one" if law.widths is None else "mixture"} \
            if spec.sigma_mode == "calibrated" else {"spec_sigma": spec.sigma}
        if bands is not None:
            scores["validation"] = bands.result(spec.growth)
        scores["law"] = {"spec_sigma_mode": spec.sigma_mode, "spec_temp": spec.temp} | drawn_from
        log.info(samples_line(scores))
        return scores

    def _metrics(self, out: Evaluation, setting: str, checkpoint: Path) -> dict:
        data, settings = self.settings.data, self.settings
        metrics = out.result(data.batch_size) | hardware(self.device)
        metrics["files"] = {} if out.by_series is None else out.by_series.files()
        metrics |= {"setting": setting, "checkpoint": str(checkpoint), "data_path": data.data_path, "data": data.kind,
                    "context": data.test_context, "horizon": data.horizon, "seed": settings.run.seed,
                    "test_windows": data.test_windows, "test_flag": data.test_flag}
        if settings.run.use_speculative:
            used = flat(settings)
            metrics["speculation"] = {name: used[name] for name in used if name.startswith("spec_")}
        return metrics

    def _keep(self, folder: Path, stop: Interrupted, windows: int) -> None:
        """Saves the results of an interrupted evaluation under a name that complete results never have."""
        rows = [{"method": name} | out.result(self.settings.data.batch_size) for name, out in stop.so_far.items()]
        path = write_partial(folder, {"windows_of_the_split": windows, "rows": rows})
        log.info("interrupted after the first %d of %d windows; results so far: %s", rows[-1]["windows"], windows, path)

    def _planned(self, methods: Mapping[str, Method], batch_sizes: list[int]) -> Mapping[str, Method]:
        """The methods whose K was planned: all for `k` auto; else a copy of the last, so that no row changes."""
        if self.settings.spec.k == "auto":
            plan_once(self, methods, batch_sizes)
            return methods
        *_, name = methods
        copied = {name: methods[name].again()}
        try:
            plan_once(self, copied, batch_sizes)
        except UserError as error:  # the table needs no validation windows: it does not fail for want of advice
            log.info("note: --compare is without the planner's K: %s", in_flags(str(error)))
            return {}
        return copied

    def _write_extras(self, folder: Path, method: Method, model, law: TargetLaw | None, dataset, observer) -> None:
        settings, report = self.settings, self.settings.report
        if report.visualize:
            drawn = method.again(make_rule(settings.spec, law))
            draw_forecasts(folder, drawn, AloneMethod(model, settings.data.horizon), dataset, settings, self.device)
        if observer is not None:
            write_csv(inside(folder, report.judgements_file, "--spec_debug_out"), observer.rows, observer.COLUMNS)
        if report.output_attention:
            draw_attention(folder, model, dataset, self.device)

    def compare(self, checkpoint: Path, folder: Path) -> list[dict]:
        """The table of --compare, on the terminal, as csv and as a picture."""
        settings = self.settings
        target = self.load_tested(checkpoint)
        pair = self.with_draft(target, checkpoint)
        dataset, loader = self.test_part()
        self._refuse_unfitting(dataset, *pair)
        walk = Walk(dataset, spread_windows(dataset, settings.data.test_windows))
        methods = compared_methods(target, pair, settings, walk)
        planned = self._planned(methods, sorted({1, min(settings.data.batch_size, len(dataset))}))
        try:
            rows = compare(methods, dataset, loader, settings, self.device, folder, planned, walk, self.team)
        except Interrupted as stop:
            self._keep(folder, stop, len(spread_windows(dataset, settings.data.test_windows)))
            raise
        if not self.is_main:
            return []
        log.info(describe(rows))
        write_metrics(folder, {"rows": rows, "decision": decide(rows), "processes": self.team.size,
                               "checkpoint": str(checkpoint),
                               "draft": settings.run.draft_checkpoint, "settings": flat(settings)})
        if settings.report.visualize:
            *_, tolerance = methods.values()
            draw_forecasts(folder, tolerance, AloneMethod(target, settings.data.horizon), dataset, settings,
                           self.device)
        log.info("table: %s\nplot: %s", folder / "compare.csv", folder / "compare.png")
        return rows
