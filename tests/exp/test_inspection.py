"""--inspect: what it says of a checkpoint is so, its command works, and what cannot be used is refused."""
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exp_helpers import CAUSAL_DRAFT, CAUSAL_TARGET, DRAFT, PATCH, TARGET, save
from helpers import public_folder, tiny_draft, tiny_series, tiny_target, tiny_timer, write_series

import run
from exp.inspection import inspected
from exp.ownership import SOURCES
from models.checkpoint import read_settings, read_state
from models.config import ModelConfig
from models.deduce import deduced
from utils.errors import UserError
from utils.files import digest


def lines_of(path):
    """First column -> text of its lines."""
    rows, name = {}, ""
    for line in inspected(Path(path))[1:]:
        name = line[2:17].strip() or name
        rows.setdefault(name, []).append(line[17:])
    return {name: " | ".join(text) for name, text in rows.items()}


def test_a_trained_target_is_described_without_data(lab, place):
    path = lab / "checkpoints" / TARGET
    said = lines_of(path)
    count = sum(value.numel() for value in read_state(path / "checkpoint.pth").values())
    assert said["family"] == "timer_xl, a target"
    assert said["sizes"] == f"d_model 16 x 1 layers, 2 heads, d_ff 32: {count:,} parameters"
    assert said["patch"] == "patch 12, context 48 (4 patches)" and said["normalised"] == "each window as a whole"
    assert said["rolls"].startswith("by window; --rolling cache would be an approximation")
    assert said["trained on"] == "tiny.csv, all variables together"
    assert f"{DRAFT} (distilled from it)" in said["drafts beside"].split(" | ")
    assert said == lines_of(path / "checkpoint.pth")


def test_a_causal_pair_knows_each_other(lab, causal, place):
    said = lines_of(lab / "checkpoints" / CAUSAL_TARGET)
    assert said["normalised"] == "each patch by its own trailing 4 patches"
    assert said["rolls"] == "by cache, which is exact"
    assert f"{CAUSAL_DRAFT} (distilled from it)" in said["drafts beside"] and DRAFT in said["drafts beside"]
    draft = lines_of(lab / "checkpoints" / CAUSAL_DRAFT)
    assert draft["family"] == "timer_xl_draft, a draft" and "patch 12, 2 of them a pass" in draft["patch"]
    assert f"{CAUSAL_TARGET} (its teacher)" in draft["targets beside"]
    assert f"{TARGET} (its" not in draft["targets beside"]


@pytest.mark.parametrize("changes, settings, fits", [
    ({}, {}, True), ({"input_token_len": 6}, {}, False), ({"covariate": True}, {}, False),
    ({}, {"data": "UnivariateDatasetBenchmark"}, False)])
def test_a_draft_fits_if_patch_and_variables_agree(place, changes, settings, fits):
    target = tiny_target()
    save("all/target", target, seq_len=48, data="MultivariateDatasetBenchmark", covariate=False)
    config = replace(tiny_draft(target).config, **changes)
    save("all/draft", type(tiny_draft(target))(config), seq_len=48,
         **({"data": "MultivariateDatasetBenchmark"} | settings))
    assert lines_of("all/target")["drafts beside"] == ("draft" if fits else "none that fits")


def test_a_public_target_and_the_draft_that_learned_from_it_know_each_other(place):
    pytest.importorskip("safetensors")
    target = tiny_timer()
    public_folder("all/public", target)
    learned = {SOURCES: {"distill_target_ckpt": {"path": "", "sha256": digest(Path("all/public/model.safetensors"))}}}
    for name, settings in (("learned", learned), ("other", {})):
        save(f"all/{name}", tiny_draft(tiny_target(input_token_len=target.patch_len)), seq_len=48,
             data="UnivariateDatasetBenchmark", **settings)
    assert lines_of("all/public")["drafts beside"] == "learned (distilled from it) | other"
    assert lines_of("all/learned")["targets beside"] == "public (its teacher)"
    assert lines_of("all/other")["targets beside"] == "public"


def test_folders_are_looked_at_from_the_inside_too(lab, monkeypatch):
    path = lab / "checkpoints" / TARGET
    said = lines_of(path)
    monkeypatch.chdir(path)
    assert lines_of(".") == lines_of("checkpoint.pth") == said
    assert f"{DRAFT} (distilled from it)" in said["drafts beside"]


def test_a_folder_without_permission_hides_no_other(place, monkeypatch):
    save("all/open", tiny_target())
    save("all/closed", tiny_draft(tiny_target()))
    whole = lines_of("all/open")
    assert whole["drafts beside"] == "closed"
    real = Path.stat

    def stat(self, **how):
        if self.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **how)
    monkeypatch.setattr(Path, "stat", stat)
    assert lines_of("all/open") == whole | {"drafts beside": "none that fits"}
    lines = inspected(Path("all"))
    assert lines[0] == "closed: not usable: permission denied" and lines[1].startswith("open: timer_xl, ")


def test_a_public_folder_without_its_weights_says_what_is_missing(place):
    Path("half").mkdir()
    Path("half/config.json").write_text('{"model_type": "timer"}')
    with pytest.raises(UserError, match=r"half has no checkpoint .* no model.safetensors: download that too"):
        inspected(Path("half"))


def test_what_was_fitted_to_it_is_listed(place):
    save("one", tiny_target())
    for name in ("checkpoint_calibration_ETTh1_48_diag.pth", "checkpoint_certificate_x.pth", "other_calibration_y.pth"):
        Path("one", name).write_bytes(b"")
    kept = lines_of("one")["kept with it"]
    assert "checkpoint_calibration_ETTh1_48_diag.pth" in kept and "checkpoint_certificate_x.pth" in kept
    assert "other" not in kept


@pytest.mark.parametrize("of", ["this", "another"])
def test_longer_heads_are_said_to_be_of_this_target_or_not(place, of):
    save("one", tiny_target())
    target = Path("one/checkpoint.pth")
    known = {"distill_target_ckpt": {"path": "x", "sha256": digest(target) if of == "this" else "0"}}
    save("one/checkpoint_heads", tiny_target(), sources=known)
    kept = lines_of("one")["kept with it"]
    assert kept == {"this": "longer heads, for --use_speculative --spec_draft head: checkpoint_heads",
                    "another": "longer heads of other weights, which cannot be used: checkpoint_heads"}[of]
    with pytest.raises(UserError, match="holds longer heads of a target, and no model: inspect .*one"):
        inspected(Path("one/checkpoint_heads"))


MODELS = {"window": tiny_target, "causal": lambda: tiny_target(norm_mode="causal", norm_window=5),
          "wide": lambda: tiny_target(n_heads=4, e_layers=3, d_ff=24),
          "timer": lambda: tiny_timer(n_heads=4, d_model=32),
          "draft": lambda: tiny_draft(tiny_target(), patches=3), "mean draft": lambda: tiny_draft(tiny_target(), False),
          "causal draft": lambda: tiny_draft(tiny_target(norm_mode="causal", norm_window=5), patches=2)}
WINDOW, CAUSAL = {"activation", "use_norm"}, {"activation", "norm_window"}
OPEN = {"window": WINDOW, "wide": WINDOW, "causal": CAUSAL, "timer": {"n_heads"}, "draft": WINDOW, "mean draft": WINDOW,
        "causal draft": CAUSAL}


@pytest.mark.parametrize("kind", MODELS)
def test_sizes_follow_from_the_shapes(kind):
    model = MODELS[kind]()
    guess = deduced(model.state_dict(), Path("x.pth"))
    assert guess.open.keys() == OPEN[kind]
    config = ModelConfig.from_mapping(guess.settings)
    for name in guess.settings.keys() - guess.open.keys():
        assert getattr(config, name) == getattr(model.config, name), name
    assert not [name for name in ("input_token_len", "d_model", "d_ff", "e_layers") if name not in guess.settings]
    assert (guess.model == "timer") == (kind == "timer") and guess.model.endswith("draft") == kind.endswith("draft")


THEIRS = "forecast_ETTh1_timer_xl_Custom_sl48_it8_ot8_lr0.0001_bt32_wd0_el2_dm16_dff32_nh2_cosFalse_test_0"


@pytest.mark.parametrize("kind", ["window", "wide", "causal", "draft", "causal draft"])
def test_the_command_for_a_bare_checkpoint_tests_it(place, monkeypatch, kind):
    write_series(tiny_series(300))
    Path("checkpoints", THEIRS).mkdir(parents=True)
    torch.save(MODELS[kind]().state_dict(), Path("checkpoints", THEIRS, "weights.pth"))
    command = lines_of(f"checkpoints/{THEIRS}")["to test it"]
    assert "--test_file_name weights.pth" in command and "--seq_len 48" in command
    flags = command.replace("FOLDER", ".").replace("FILE", "tiny.csv")
    program, script, *words = shlex.split(flags)
    assert (program, script) == ("python", "run.py")
    assert run.main([*words, "--quiet", "--test_pred_len", "8"]) == 0


def test_the_number_of_heads_is_said_to_be_open_or_found_in_the_name(place):
    for folder in ("bare", THEIRS.replace("nh2", "nh4").replace("timer_xl", "timer")):
        Path(folder).mkdir()
        torch.save(MODELS["timer"]().state_dict(), Path(folder, "checkpoint.pth"))
        said = lines_of(folder)
        assert said["not known"].startswith("--n_heads: as ")
        assert ("--n_heads 4" in said["to test it"]) == (folder != "bare")
        assert ("name says" in said["not known"]) == (folder != "bare")


def test_settings_inside_a_checkpoint_serve_where_args_json_is_gone(place):
    save("lost", tiny_target(norm_mode="causal", norm_window=5, activation="gelu"))
    Path("lost/args.json").unlink()
    said = lines_of("lost")
    assert "the settings inside it" in said["family"] and said["not known"] == "nothing"
    assert "--norm_window 5" in said["to test it"] and "--activation gelu" in said["to test it"]
    assert said["normalised"] == "each patch by its own trailing 5 patches"


def test_a_public_folder(place):
    pytest.importorskip("safetensors")
    public_folder("hub", tiny_timer())
    said = lines_of("hub")
    assert said["family"] == "timer, a target, a public model" and said["normalised"] == "--norm_roll patch"
    assert "by cache, which is exact" in said["rolls"] and "--model timer" in said["to test it"]


def test_a_folder_of_checkpoints_has_a_line_each(own_lab, capsys):
    checkpoints = own_lab / "checkpoints"
    (checkpoints / "broken").mkdir()
    (checkpoints / "broken" / "checkpoint.pth").write_bytes(b"nothing")
    (checkpoints / "empty").mkdir()
    assert run.main(["--inspect", str(checkpoints)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition(":")[0] for line in lines} >= {TARGET, DRAFT, "broken"} and "empty" not in str(lines)
    assert re.search(rf"^{TARGET}: timer_xl, .* parameters, patch {PATCH}, .* rolls by window$", "\n".join(lines), re.M)
    assert re.search(r"^broken: not usable: .* was not loaded", "\n".join(lines), re.M)


def bare_nan():
    state = tiny_target().state_dict()
    state["head.weight"][0] = float("nan")
    return state


@pytest.mark.parametrize("content, words", [
    (b"nothing", ["checkpoint x.pth was not loaded"]), ({"a": torch.ones(2)}, ["is of no model that is known here"]),
    ({key: value for key, value in tiny_target().state_dict().items() if "conv2" not in key}, ["tensors missing"]),
    (bare_nan(), ["holds NaN or infinity in head.weight"]), ([1, 2], ["not a state dict"]),
    ({"embedding.weight": torch.ones(8, 8), "head.weight": torch.ones(9, 8)}, ["is of no model that is known"])])
def test_what_cannot_be_used_is_refused_in_one_line(place, capsys, content, words):
    if isinstance(content, bytes):
        Path("x.pth").write_bytes(content)
    else:
        torch.save(content, "x.pth")
    assert run.main(["--inspect", "x.pth"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and all(word in said for word in words), said


@pytest.mark.parametrize("flags, words", [
    ("--inspect nowhere.pth", ["nowhere.pth does not exist"]), ("--inspect .", ["has no checkpoint (.pth, "]),
    ("--inspect x --seed 3", ["--inspect looks at a path alone: leave out --seed"]),
    ("--inspect bad", ["bad/args.json", "d_model"]),
    ("--inspect all", ["none of the 2 checkpoints in all can be used"])])
def test_paths_that_lead_to_nothing(place, capsys, flags, words):
    if "bad" in flags or "all" in flags:
        for folder in ("bad", "all/a", "all/b"):
            save(folder, tiny_target())
            args = Path(folder, "args.json")
            args.write_text(json.dumps(read_settings(args.with_name("checkpoint.pth")) | {"d_model": -1}))
        shutil.rmtree("all" if "bad" in flags else "bad")
    assert run.main(flags.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
