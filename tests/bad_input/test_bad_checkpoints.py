"""Checkpoints and args.json that are missing, damaged, hostile, or of another model."""
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from bad_input.cases import DRAFT, SPECULATIVE, TEST, Case, just_target, name_of, pair
from helpers import SMALL, save_pair, save_small

import run
from models.checkpoint import CHECKPOINT


class Payload:
    """Unpickling an object of this class would run a command."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def truncated():
    save_small("given/target")
    content = Path("given/target/checkpoint.pth").read_bytes()
    Path("given/target/checkpoint.pth").write_bytes(content[:len(content) // 2])


def malicious():
    save_small("given/target")
    with open("given/target/checkpoint.pth", "wb") as handle:
        pickle.dump({"head.weight": Payload()}, handle)


def malicious_archive():
    save_small("given/target")
    torch.save({"head.weight": Payload()}, "given/target/checkpoint.pth")


def list_of_tensors():
    save_small("given/target")
    torch.save([torch.zeros(3)], "given/target/checkpoint.pth")


def settings_of_another_shape():
    save_small("given/other", d_model=24)
    save_small("given/target")
    Path("given/other/checkpoint.pth").replace("given/target/checkpoint.pth")


def args_json(content):
    def prepare():
        save_small("given/target")
        Path("given/target/args.json").write_text(content)
    return prepare


def settings_with(**changes):
    """The args.json of a good target, with some values changed."""
    def prepare():
        save_small("given/target")
        path = Path("given/target/args.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return prepare


def target_of_patch_24():
    save_small("given/target", input_token_len=24)


def bare_draft():
    save_pair()
    Path("given/draft/args.json").unlink()


CASES = [
    Case("checkpoint missing", TEST, ["target/checkpoint.pth", "does not exist"]),
    Case("checkpoint cut short", TEST, ["target/checkpoint.pth", "damaged"], truncated),
    Case("checkpoint that runs code, plain pickle", TEST, ["target/checkpoint.pth", "could run code"], malicious),
    Case("checkpoint that runs code, torch archive", TEST, ["target/checkpoint.pth", "could run code"],
         malicious_archive),
    Case("checkpoint of a wrong type", TEST, ["target/checkpoint.pth", "list"], list_of_tensors),
    Case("checkpoint of another shape", TEST,
         ["target/args.json", "d_model is 16", "target/checkpoint.pth", "trained with 24"], settings_of_another_shape),
    Case("checkpoint of a draft tested as a target", f"{TEST} --test_dir draft",
         ["draft/checkpoint.pth", "timer_xl_draft", "not a timer_xl"], pair()),
    Case("checkpoint of a draft as the distillation target",
         f"--model timer_xl_draft --distill --distill_target_ckpt {DRAFT}", ["draft/checkpoint.pth", "timer_xl_draft"],
         pair()),
    Case("size of the target to imitate contradicting its args.json", "--model timer_xl_draft --distill "
         "--distill_target_ckpt given/target/checkpoint.pth --distill_target_d_model 8",
         ["--distill_target_d_model 8", "given/target/checkpoint.pth", "trained with 16"], just_target),
    Case("target given as the draft", f"{TEST} --use_speculative --spec_draft_ckpt given/target/checkpoint.pth",
         ["target/checkpoint.pth", "not a timer_xl_draft", "--spec_draft_model"], just_target),
    Case("folder of the draft without a checkpoint", f"{TEST} --use_speculative --spec_draft_ckpt given",
         ["given/checkpoint.pth", "does not exist"], just_target),
    Case("bare draft without its sizes", "--is_training 0 --checkpoints given --test_dir target --use_speculative "
         f"--spec_draft_ckpt {DRAFT} --draft_scale_d_ff 0.5", [DRAFT, "another shape", "settings it was trained with"],
         bare_draft),
    Case("args.json cut short", TEST, ["target/args.json", "not valid JSON"], args_json('{"model": "timer_')),
    Case("args.json is a list", TEST, ["target/args.json", "JSON object"], args_json("[1]")),
    Case("args.json without the architecture", TEST, ["args.json", "d_model"],
         args_json('{"model": "timer_xl", "input_token_len": 12}')),
    Case("args.json without the patch length", TEST, ["args.json", "input_token_len"],
         args_json('{"model": "timer_xl", "d_model": 16, "n_heads": 2, "d_ff": 32, "e_layers": 1}')),
    Case("args.json of an unknown model", TEST, ["target/args.json", "'gpt'", "timer_xl_draft", "correct it"],
         settings_with(model="gpt")),
    Case("args.json with a model that is no name", TEST, ["target/args.json", "['timer_xl']", "correct it"],
         settings_with(model=["timer_xl"])),
    Case("args.json with a context that is no number", TEST, ["target/args.json", "seq_len", "'48'", "correct it"],
         settings_with(seq_len="48")),
    Case("args.json with an unknown kind of data", TEST, ["target/args.json", "data is 'Weekly'", "correct it"],
         settings_with(data="Weekly")),
    Case("args.json with a path that is no text", TEST, ["target/args.json", "data_path is 5", "correct it"],
         settings_with(data_path=5)),
    Case("args.json with a size that is no number", TEST, ["target/args.json", "d_model", "'16'", "correct it"],
         settings_with(d_model="16")),
    Case("flag contradicting args.json", f"{TEST} --d_model 32",
         ["--d_model 32", "16", "target/checkpoint.pth", "leave it out"], just_target),
    Case("switch contradicting args.json", f"{TEST} --use_norm", ["--use_norm True", "False"], just_target),
    Case("target of another patch length", TEST,
         ["target/checkpoint.pth", "trained with 24", "--input_token_len 12", "leave it out"], target_of_patch_24),
    Case("draft of another patch length", SPECULATIVE,
         ["draft/checkpoint.pth", "24", "--input_token_len 12", "patch"], pair(input_token_len=24)),
    Case("draft missing", SPECULATIVE, [DRAFT, "does not exist"], just_target),
    Case("draft missing, found before the training", f"--use_speculative --spec_draft_ckpt {DRAFT}",
         [DRAFT, "does not exist"]),
    Case("pretrained weights missing", "--adaptation --pretrain_model_path given/none.pth", ["given/none.pth"]),
    Case("adaptation of another size", f"--adaptation --pretrain_model_path given/target/{CHECKPOINT} --d_model 32 "
         "--data_path nowhere.csv", ["--d_model 32", "16", "given/target"], just_target),
    Case("adaptation of another model", f"--adaptation --pretrain_model_path {DRAFT}",
         ["given/draft", "timer_xl_draft", "--model"], pair()),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bad_checkpoints_are_refused(refused, case):
    refused(case)


def test_the_folder_of_a_draft_is_as_good_as_its_file(workplace, capsys):
    save_pair()
    assert run.main(f"{SMALL} {TEST} --use_speculative --spec_draft_ckpt given/draft".split()) == 0, capsys.readouterr()


def test_a_bare_draft_has_the_patch_of_its_target(workplace, capsys):
    bare_draft()
    flags = f"{SMALL} {SPECULATIVE} --draft_stochastic".replace("--input_token_len 12 ", "")
    assert run.main(flags.split()) == 0, capsys.readouterr().err


def test_the_payload_of_these_tests_would_really_run(workplace):
    # else the test of malicious checkpoints could not fail
    pickle.loads(pickle.dumps(Payload()))
    assert Path("executed").exists()
