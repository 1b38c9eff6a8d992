"""Turns a command line into settings, once: flags > args.json of the checkpoint a run starts from > defaults.

Rules for a single flag are declared with it (`exp.settings`); rules that involve several flags are here.
"""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_provider.data_factory import WHOLE_FOLDERS
from data_provider.files import label_of, names_in
from data_provider.series import listed
from exp.adapters import has_draft, refuse_for_adapters
from exp.flags import DEFAULTS, FLAGS, NEEDS, given_flags, sections
from exp.foreign_names import in_place_of_dp
from exp.limits import MOST_SEED
from exp.panels import PanelSettings
from exp.section import fields_of
from exp.settings import DataSettings, ModelSettings, ReportSettings, RunSettings, Settings, TrainSettings
from exp.speculation import LOSSLESS, SpecSettings
from exp.stored import OF_DATA, completed, stored_settings, tested_checkpoint
from models.checkpoint import refuse_missing
from models.config import ModelConfig
from models.foreign import is_foreign
from models.registry import (
    ADDED_LATER,
    ARCHITECTURE,
    ARCHITECTURE_OF,
    DRAFTS,
    UNTRAINED,
    checkpoint_in,
    describe,
    predicts_longer,
)
from utils.acceptance import Parareal
from utils.errors import UserError

log = logging.getLogger(__name__)

# giving any of these without --spec_accept_rule selects the published rule
PUBLISHED = {"spec_sigma", "spec_accept_bias", "spec_sigma_mode"}
POOLED = "UnivariateDatasetBenchmark"  # the kind of a pool, whose files have different variables
LAW = {"spec_sigma", "spec_sigma_mode", "spec_covariance", "spec_temp", "spec_width"}  # plain sampling has them too


def read_command_line(argv: Sequence[str] | None = None) -> Settings:
    """The settings of a command line. Raises UserError for flags that are invalid, idle or contradictory."""
    return settled(given_flags(argv))


def settled(given: Mapping[str, Any]) -> Settings:
    """The settings that follow from `given`, the flags that were passed explicitly, with their values."""
    values = Values(given)
    if values["inspect"] is not None:
        if others := sorted(values.given - {"inspect", "quiet"}):
            raise UserError(f"--inspect looks at a path alone: leave out --{others[0]}")
        return Settings(RunSettings(**values.section("run")))
    if values["do_predict"]:
        _settle_prediction(values)
    if values["self_draft"] and values["is_training"]:
        _settle_heads(values)
    _refuse_contradictions(values)
    _refuse_idle(values)
    run = RunSettings(**values.section("run"))
    stored = _stored(run, values)
    asked = {name: given[name] for name in fields_of(ModelConfig) if name in given}
    data = _data(values, stored)
    config = _config(values, stored, asked, data)
    _refuse_odd_lengths(values, data, config)
    if values["do_predict"] and values["spec_k"] == "auto" and not data.univariate:
        raise UserError("--spec_k auto measures on many windows, but --do_predict has one where series are forecast "
                        "together: give a number, or add --data UnivariateDatasetBenchmark for a long table")
    trained_on = None if run.is_training or not stored.get("data_path") else label_of(stored["data_path"])
    model = ModelSettings(**values.section("model") | {"asked": asked, "config": config, "trained_on": trained_on})
    train = _train(values)
    return Settings(run, model, data, train, _spec(values), ReportSettings(**values.section("report")),
                    PanelSettings(**values.section("panel")))


class Values(dict):
    """Flag -> value, defaults included; `given`: names of the flags that were passed explicitly."""

    def __init__(self, given: Mapping[str, Any]):
        super().__init__(DEFAULTS | dict(given))
        self.given = set(given)

    def section(self, name: str) -> dict[str, Any]:
        return sections(self).get(name, {})


def _settle_prediction(values: Values) -> None:
    """Settles the values of --do_predict, which neither trains nor tests and uses a draft if one is named."""
    if "is_training" in values.given and values["is_training"]:
        raise UserError("--do_predict forecasts with a trained checkpoint: leave out --is_training 1, and train first")
    values["is_training"] = 0
    _refuse_excluded(values)
    if values["num_samples"] is None and values["spec_sigma_mode"] == "calibrated":
        raise UserError("--spec_sigma_mode calibrated has no effect with --do_predict unless paths are sampled: add "
                        "--num_samples, or leave it out")
    if values["num_samples"] is not None and not values.given & {"spec_sigma", "spec_sigma_mode"}:
        values["spec_sigma_mode"] = "calibrated"
    if values["spec_emit"] == "sample":
        raise UserError("--spec_emit sample draws one path, but --do_predict writes a mean: leave it out")
    values["spec_emit"] = "mean"
    values["use_speculative"] = values["use_speculative"] or has_draft(values) or values["spec_draft"] == "head"


def _settle_heads(values: Values) -> None:
    """Settles the values of --self_draft: the target is tested with its new heads, in --compare or by itself."""
    if values["model"] != "timer_xl":
        raise UserError(f"--self_draft trains heads of a timer_xl, but --model is {values['model']}: leave it out")
    if not values["distill_target_ckpt"]:
        raise UserError("--self_draft needs --distill_target_ckpt, the checkpoint of the target that gets the heads")
    if values["spec_draft"] != "head" and "spec_draft" in values.given:
        raise UserError("--self_draft is followed by a test with the heads that it trains, so that --spec_draft model "
                        "has no effect: leave it out")
    if "dropout" in values.given:
        raise UserError("--dropout has no effect with --self_draft: the target stays as it is, and heads have none; "
                        "leave it out")
    if values["itr"] > 1:
        raise UserError(f"--itr {values['itr']} with --self_draft: a target has one set of heads beside it; leave it "
                        "out")
    rollout, patches = values["draft_rollout"], values["self_draft"]
    if "draft_rollout" in values.given and rollout < patches:
        raise UserError(f"--draft_rollout {rollout} is too short for --self_draft {patches}, which learns forecasts of "
                        f"as many patches: give {patches} or more, or leave it out")
    values["draft_rollout"] = rollout or patches
    values["spec_draft"], values["use_speculative"] = "head", not values["compare"]


def _refuse_contradictions(values: Values) -> None:
    if values["ddp"] and values["do_predict"]:
        raise UserError("--ddp is for training and testing, but --do_predict runs in one process: leave out --ddp and "
                        "torchrun")
    if values["is_training"] and values["model"] in UNTRAINED:
        raise UserError(f"--model {values['model']} is used as it is published, not trained here: add --is_training 0 "
                        "and --test_dir, the folder of its weights (it can teach a draft: --distill_target_model)")
    if values["dp"]:
        raise UserError(in_place_of_dp(values))
    if values["seed"] + values["itr"] - 1 > MOST_SEED:
        raise UserError(f"--seed {values['seed']} with --itr {values['itr']} leads to seeds above {MOST_SEED}: lower "
                        "one of them")
    if values["adaptation"] and not values["pretrain_model_path"]:
        raise UserError("--adaptation needs --pretrain_model_path, the checkpoint to start from")
    if values["distill"] and not (values["distill_target_ckpt"] or is_foreign(values["distill_target_model"])):
        raise UserError("--distill needs --distill_target_ckpt, the checkpoint of the target")
    if values["use_speculative"] and values["compare"]:
        raise UserError("--compare runs every rule itself: leave out --use_speculative")
    heads = values["spec_draft"] == "head"
    if heads and values["is_training"] and not values["self_draft"]:
        raise UserError("--spec_draft head needs longer heads of the target, which --self_draft trains for a target "
                        "that is there: train it first, then its heads, or name a draft with --spec_draft_ckpt")
    if (values["use_speculative"] or values["compare"]) and not has_draft(values) and not heads:
        raise UserError(f"--{'compare' if values['compare'] else 'use_speculative'} needs --spec_draft_ckpt, the draft "
                        "(or --spec_draft head)")
    if heads and values["use_speculative"] and values["spec_accept_rule"] == Parareal.name:
        raise UserError("--spec_draft head does not go with --spec_accept_rule parareal, which asks its draft again "
                        "about corrected patches: heads speak in a pass of the target only; name another rule, or a "
                        "draft with --spec_draft_ckpt")
    if values["compare"] and values["model"] in DRAFTS:
        raise UserError(f"--compare needs the target as --model, not {values['model']}: name the draft with "
                        "--spec_draft_ckpt")
    if values["draft_patches"] > 1 and values["is_training"] and values["draft_rollout"] < values["draft_patches"]:
        raise UserError(f"--draft_patches {values['draft_patches']} needs --draft_rollout {values['draft_patches']} or "
                        "more: a draft that predicts several patches learns them from the target's own forecasts")
    if values["draft_nll_var_reg"] > 0 and not (values["draft_stochastic"] and values["model"] in DRAFTS):
        raise UserError("--draft_nll_var_reg has no effect without --model timer_xl_draft --draft_stochastic: only "
                        "that draft has a variance")
    refuse_for_adapters(values, values.given)


def _refuse_idle(values: Values) -> None:
    """Refuses flags that would have no effect, rather than ignoring them.

    One that is switched off, as it is by default, asks for nothing: so the flags of a script's settings can be undone.
    """
    for name in sorted(values.given):
        if not _is_set(values, name) and values[name] == DEFAULTS[name]:
            continue
        wanted = NEEDS[name]
        if wanted and not any(_is_set(values, condition) for condition in wanted):
            if values["do_predict"] and "use_speculative" in wanted:
                wanted = tuple({"spec_draft_ckpt": None, **dict.fromkeys(set(wanted) & {"num_samples"})})
            words = [_in_words(values, condition) for condition in wanted]
            ways = " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
            remedy = "change" if "(" in ways else "add"
            raise UserError(f"--{name} has no effect without {ways}: {remedy} that flag, or leave this one out")
    _refuse_excluded(values)


def _in_words(values: Values, condition: str) -> str:
    """The flag that fulfils a condition, with its present value if another one was given."""
    name, _, wanted = condition.partition("=")
    return f"--{condition.replace('=', ' ')}" + (f" (not {values[name]})" if wanted and name in values.given else "")


def _refuse_excluded(values: Values) -> None:
    for name in sorted(values.given):
        for other, reason in FLAGS[name].declared("not_with", {}).items():
            if _is_set(values, other):
                raise UserError(f"--{name} {reason}: leave one of them out")


def _is_set(values: Values, condition: str) -> bool:
    name, _, wanted = condition.partition("=")
    return str(values[name]) == wanted if wanted else values[name] not in (None, False, 0)


def _stored(run: RunSettings, values: Values) -> dict[str, Any]:
    """The args.json of the checkpoint that this run tests, imitates or starts from; empty for none."""
    if is_foreign(values["model"]):
        return {}
    if not run.is_training:
        checkpoint = tested_checkpoint(run, values["model"])
        stored = stored_settings(checkpoint)
        if stored:  # refuses flags that contradict it
            describe(checkpoint, values["model"], {name: values[name] for name in values.given & set(stored)})
            _note_other_data(checkpoint, stored, values, "is tested on")
        return stored
    if values["adaptation"]:
        return _of_pretrained(values)
    if values["self_draft"] or (values["distill"] and not is_foreign(values["distill_target_model"])):
        target = checkpoint_in(values["distill_target_ckpt"])
        if values["self_draft"]:
            refuse_missing(target)
        stored = stored_settings(target)
        if stored:
            if values["self_draft"]:  # flags that contradict the target
                describe(target, values["model"], {name: values[name] for name in values.given & set(stored)})
            _note_other_data(target, stored, values, "teaches its draft on")
        return stored
    return {}


def _note_other_data(checkpoint: Path, stored: Mapping[str, Any], values: Values, used: str) -> None:
    trained_on, used_on = (names_in(str(path)) for path in (stored.get("data_path", ""), values["data_path"]))
    new = [name for name in used_on if name not in trained_on]
    if trained_on and new and not values["do_predict"]:
        log.info("note: %s was trained on %s and %s %s", checkpoint, listed(trained_on), used, listed(new))


def _of_pretrained(values: Values) -> dict[str, Any]:
    """Settings for training from other weights: their architecture. Raises UserError for contradicting flags."""
    path = checkpoint_in(values["pretrain_model_path"])
    stored = stored_settings(path)
    if stored:
        added = {name for name in ADDED_LATER if name in values.given and values[name] and stored.get(name) is False}
        describe(path, values["model"], {name: values[name] for name in values.given & set(stored) - added})
        for name in sorted(added):
            log.info("note: the weights of %s were trained without --%s: %s", path, name, ADDED_LATER[name])
    return stored


def _data(values: Values, stored: Mapping[str, Any]) -> DataSettings:
    known = {name: stored[name] for name in OF_DATA if name in stored and name not in values.given}
    if known.get("data") in WHOLE_FOLDERS:  # what a model was pretrained on is not how another file is split
        known["data"] = POOLED
    if values["data"] in WHOLE_FOLDERS and "data_path" not in values.given:
        values["data_path"] = WHOLE_FOLDERS[values["data"]]
    parts = sections(values | known)["data"]
    if "test_seq_len" not in values.given:
        parts["test_context"] = parts["context"]
    settings = DataSettings(**parts)
    several = len(settings.files) > 1
    if several and values["do_predict"]:
        raise UserError(f"--do_predict forecasts one file, but --data_path names {len(settings.files)}: forecast each "
                        "by itself")
    return replace(settings, kind=POOLED) if several and "data" not in values.given | known.keys() else settings


def _config(values: Values, stored: Mapping[str, Any], asked: Mapping[str, Any], data: DataSettings) -> ModelConfig:
    """Architecture of the model to train or test, from flags and args.json."""
    names = set(ARCHITECTURE) if values["is_training"] else set(fields_of(ModelConfig))
    if values["is_training"] and values["adaptation"]:
        names |= set(ARCHITECTURE_OF[values["model"]]) - {"draft_patches"}
    known = {name: value for name, value in stored.items() if name in names}
    if values["is_training"] and stored.get("output_token_len"):  # of a teacher whose tokens may be shorter
        known["input_token_len"] = stored["output_token_len"]
    return completed(known | dict(asked), values["model"], data)


def _refuse_odd_lengths(values: Values, data: DataSettings, config: ModelConfig) -> None:
    """Refuses lengths that are not multiples of the patch, or do not fit together."""
    patch_len = config.input_token_len
    if config.patch_len != patch_len and not predicts_longer(values["model"]):
        raise UserError(f"--output_token_len {config.patch_len} differs from --input_token_len {patch_len}: make them "
                        "equal (a token predicts the next patch)")
    for flag, length in (("seq_len", data.context), ("test_seq_len", data.test_context)):
        if length % patch_len:
            raise UserError(f"--{flag} {length} is not a multiple of the patch (--input_token_len {patch_len}): use "
                            f"{length // patch_len * patch_len or patch_len}")
    if values["skip_patches"] >= data.context // patch_len:
        raise UserError(f"--skip_patches {values['skip_patches']} leaves nothing of the {data.context} steps of "
                        f"--seq_len: use at most {data.context // patch_len - 1}")
    if values["compare"] and (values["season"] or 0) > data.test_context:
        raise UserError(f"--season {values['season']} is longer than the context of {data.test_context} steps: the "
                        "seasonal-naive row of --compare repeats a whole season; give a shorter one")


def _train(values: Values) -> TrainSettings:
    parts = values.section("train")
    if parts["nonautoregressive"]:
        parts |= {"last_token": True, "valid_last": True}
    return TrainSettings(**parts)


def _spec(values: Values) -> SpecSettings:
    # paths of a prediction are sampled from the target alone: the flags of its law do not concern the rule
    sampled_prediction = values["do_predict"] and values["num_samples"] is not None
    concerning = values.given - (LAW if sampled_prediction else set())
    named = sorted(concerning & PUBLISHED)
    if "spec_accept_rule" not in values.given and named and values["use_speculative"]:
        values["spec_accept_rule"] = "simplified"
        log.info("note: --%s without --spec_accept_rule selects the published rule 'simplified' (it does not preserve "
                 "the target's law; exact and coupling do)", named[0])
    spec = SpecSettings(**values.section("spec"))
    if values["use_speculative"]:  # --compare runs all rules
        spec.refuse_contradictions(set(sections(dict.fromkeys(concerning)).get("spec", {})))
        if spec.rule in LOSSLESS and spec.emission == "mean" and not values["do_predict"]:
            log.info("note: --spec_emit mean preserves no law: where --spec_accept_rule %s accepts a proposal, the "
                     "draft's mean stays in the context", spec.rule)
    _refuse_wrong_law(values, spec)
    return spec


def _refuse_wrong_law(values: Values, spec: SpecSettings) -> None:
    """Refuses --spec_sigma_mode and --num_samples where the other flags rule them out."""
    if spec.sigma_mode == "calibrated":
        if values["test_flag"] == "V":
            raise UserError("--spec_sigma_mode calibrated fits the law to the validation split, on which --test_flag V "
                            "would then judge it: leave one of them out")
        if "spec_sigma" in values.given:
            raise UserError(f"--spec_sigma {spec.sigma} has no effect with --spec_sigma_mode calibrated, which finds "
                            "sigma itself: leave one of them out")
        if values["compare"] or (values["use_speculative"] and not values["do_predict"]):
            rule = "simplified" if values["compare"] else spec.rule
            SpecSettings(rule=rule, sigma_mode="calibrated").refuse_simplified_calibrated()
    if values["num_samples"] is None:
        if "spec_growth" in values.given:
            raise UserError("--spec_growth has no effect without --num_samples: it spreads the paths of a window about "
                            "their mean; add that flag, or leave this one out")
        idle = sorted(values.given & LAW) if values["use_speculative"] and spec.rule == Parareal.name else []
        if idle:
            raise UserError(f"--{idle[0]} has no effect with --spec_accept_rule parareal without --num_samples: its "
                            "forecast is a mean; add that flag, or leave this one out")
        return
    if values["use_speculative"] and spec.rule == "tolerance" and not values["do_predict"]:
        raise UserError("--num_samples needs a rule that samples, but --spec_accept_rule tolerance emits means: name "
                        "another rule, or leave out --use_speculative to sample from the target alone")
    if "spec_emit" in values.given:
        raise UserError("--spec_emit has no effect with --num_samples: paths are sampled, and point metrics are those "
                        "of mean emission; leave one of them out")
    if (values["do_predict"] or not values["use_speculative"]) and spec.sigma_mode == "adaptive":
        raise UserError("--spec_sigma_mode adaptive takes sigma from the gap to a draft: for --num_samples of the "
                        "target alone use fixed or calibrated")


