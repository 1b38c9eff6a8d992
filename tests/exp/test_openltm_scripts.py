"""The command lines of OpenLTM's public scripts: each is taken as it is, or refused with what to write instead."""
from pathlib import Path

import pytest
from helpers import save_small, tiny_series, write_series

import run
from exp.foreign_names import run_of
from exp.options import read_command_line
from models.registry import MODELS

OF_TIMER_XL = "lr0.0001_bt32_wd0_el1_dm1024_dff2048_nh8_cosFalse_test_0"


def line(script):
    """The flags of one of the scripts' calls of run.py, in their order."""
    sizes, *rest = script
    return f"--task_name forecast {sizes} {' '.join(rest)}".split()


def tokens(context, patch=96, horizon=96, output=None):
    return (f"--seq_len {context} --input_token_len {patch} --output_token_len {output or patch} "
            f"--test_seq_len {context} --test_pred_len {horizon}")


ETTH1 = "--root_path ./dataset/ETT-small/ --data_path ETTh1.csv --model_id ETTh1"
ECL = "--root_path ./dataset/electricity/ --data_path electricity.csv --model_id ECL"
TOGETHER, APART = "--data MultivariateDatasetBenchmark", "--data UnivariateDatasetBenchmark"
SMALL = "--batch_size 32 --learning_rate 0.0001 --train_epochs 10 --d_model 1024 --d_ff 2048 --gpu 0 --lradj type1 " \
        "--use_norm --e_layers 1 --valid_last"
LARGE = "--e_layers 5 --d_model 512 --d_ff 2048 --batch_size 4 --learning_rate 0.0005 --train_epochs 10 --gpu 0 " \
        "--cosine --tmax 10 --use_norm --valid_last"
ADAPTED = "--e_layers 8 --d_model 1024 --d_ff 2048 --batch_size 2048 --learning_rate 5e-6 --train_epochs 10 --gpu 0 " \
          "--cosine --tmax 10 --use_norm --adaptation --pretrain_model_path checkpoints/timer_xl/checkpoint.pth"
PRETRAINED = "--learning_rate 0.0001 --train_epochs 10 --gpu 0 --cosine --tmax 10 --dp --devices 0,1,2,3,4,5,6,7"
WIDE = "--e_layers 4 --d_model 512 --d_ff 2048"
TRAIN, TEST = "--is_training 1", "--is_training 0"
NAME = "--test_dir forecast_{}_sl672_it96_ot96_{}"

# script -> the flags of its calls that are taken as they are
TAKEN = {
    "supervised/rolling_forecast/timer_xl_etth1": (TRAIN, ETTH1, "--model timer_xl", TOGETHER, tokens(672), SMALL),
    "supervised/rolling_forecast/timer_xl_ecl": (TRAIN, ECL, "--model timer_xl", TOGETHER, tokens(672), LARGE),
}
ADAPTATIONS = {
    "adaptation/full_shot/timer_xl_etth1": (TRAIN, f"{ETTH1}_full_shot", "--model timer_xl", APART, tokens(2880),
                                            ADAPTED),
    "adaptation/few_shot/timer_xl_etth1": (TRAIN, f"{ETTH1}_few_shot", "--model timer_xl", APART, tokens(2880),
                                           ADAPTED, "--subset_rand_ratio 0.5"),
}
# script -> the flags of a call, and what the one line says
REFUSED = {
    "pretrain/timer_xl_utsd": (
        (TRAIN, "--root_path ./dataset/UTSD-full-npy --model_id utsd --model timer_xl --data Utsd_Npy", tokens(2880),
         "--e_layers 8 --d_model 1024 --d_ff 2048 --batch_size 16384 --use_norm --valid_last", PRETRAINED),
        ["write torchrun --nproc_per_node 8 run.py --ddp --devices 0,1,2,3,4,5,6,7 --batch_size 2048 in place of "
         "python run.py --dp, --gpu, --devices and --batch_size 16384,"]),
    "pretrain/timer_xl_multivariate": (
        (TRAIN, "--root_path ./path/to/dataset/ --data_path dataset.csv --model_id multivariate_pretrain",
         "--model timer_xl", TOGETHER, tokens(3072), WIDE, "--batch_size 4096", PRETRAINED),
        ["run.py --ddp", "--batch_size 512"]),
    "pretrain/timer_xl_era5": (
        (TRAIN, "--root_path ./dataset/era5_pretrain/ --data_path pretrain.npy --model_id era5_pretrain",
         "--model timer_xl --data Era5_Pretrain", tokens(3072), WIDE, "--batch_size 40960", PRETRAINED),
        ["--data Era5_Pretrain: write --data UnivariateDatasetBenchmark"]),
    "supervised/rolling_forecast/timer_xl_etth1, the test": (
        (TEST, ETTH1, "--model timer_xl", TOGETHER, tokens(672, horizon=720), SMALL,
         NAME.format("ETTh1_timer_xl_ETTh1_Multi", OF_TIMER_XL)),
        ["write --test_dir forecast_ETTh1_timer_xl_test_0, after its training", "is tested by its own name"]),
    "supervised/rolling_forecast/timer_xl_ecl, the test": (  # a training, by its flags
        (TRAIN, ECL, "--model timer_xl", TOGETHER, tokens(672, horizon=192), LARGE,
         NAME.format("ECL_timer_xl_Custom_Multi", "lr0.0005_bt4_wd0_el5_dm512_dff2048_nh8_cosTrue_test_0")),
        ["--test_dir has no effect without --is_training 0 (not 1): change that flag"]),
    "supervised/rolling_forecast/autotimes_etth1": (
        (TRAIN, ETTH1, "--model autotimes", APART, "--load_time_stamp pt", tokens(672), "--d_model 256 --mix_embeds"),
        ["--model autotimes: no such model here", "--load_time_stamp, --mix_embeds: leave it out"]),
    "supervised/rolling_forecast/autotimes_etth1, the test": (
        (TEST, ETTH1, "--model autotimes", APART, "--load_time_stamp pt", tokens(672), "--d_model 256 --mix_embeds",
         NAME.format("ETTh1_autotimes_UnivariateDatasetBenchmark", "lr0.0005_bt256_wd0_el2_dm256_dff2048_nh8_cosFalse"
                     "_test_0")),
        ["--model module:function"]),
    "supervised/forecast/moirai_etth1": (
        (TRAIN, ETTH1, "--model moirai", TOGETHER, tokens(672), SMALL, "--nonautoregressive"),
        ["--model moirai: no such model here (there are: timer_xl", "--model module:function (docs/YOUR_MODEL.md)"]),
    "supervised/forecast/moment_ecl": ((TRAIN, ECL, "--model moment", TOGETHER, tokens(672), LARGE), ["moment"]),
    "supervised/forecast/ttm_etth1": (
        (TRAIN, ETTH1, "--model ttm", TOGETHER, tokens(112, 16, output=96), "--d_model 1024 --AP_levels 3 --layers 2",
         "--hidden_dim 64 --patch_size 96"), ["--model ttm: no such", "--AP_levels, --layers, --hidden_dim: leave"]),
    "supervised/forecast/time-llm_etth1": (
        (TRAIN, ETTH1, "--model time_llm", TOGETHER, tokens(112, 16, output=96), "--llm_model GPT2"),
        ["--model time_llm: no such", "--llm_model: leave it out"]),
    "adaptation/few_shot/gpt4ts_ecl": (
        (TRAIN, ECL, "--model gpt4ts", TOGETHER, tokens(96, 24, 24), "--gpt_layers 6 --patch_size 16 --stride 8"),
        ["--model gpt4ts: no such", "--gpt_layers, --stride: leave it out"]),
}


@pytest.mark.parametrize("script", TAKEN)
def test_a_training_is_taken_as_it_is(place, script):
    settings = read_command_line(line(TAKEN[script]))
    assert settings.run.is_training and settings.model.config.use_norm and settings.data.context == 672


@pytest.mark.parametrize("script", ADAPTATIONS)
def test_an_adaptation_is_taken_as_it_is(place, script):
    save_small("checkpoints/timer_xl")
    Path("checkpoints/timer_xl/args.json").unlink()  # the published checkpoint has none
    settings = read_command_line(line(ADAPTATIONS[script]))
    assert settings.train.adaptation and settings.model.config.e_layers == 8 and settings.data.univariate


@pytest.mark.parametrize("script", REFUSED)
def test_what_cannot_be_taken_is_answered_in_one_line(place, capsys, script):
    flags, words = REFUSED[script]
    assert run.main(line(flags)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and not list(place.iterdir())
    assert all(word in said for word in words), said


def test_the_commands_that_are_proposed_in_place_of_dp_are_taken(place):
    flags, _ = REFUSED["pretrain/timer_xl_utsd"]
    (place / "dataset" / "UTSD-full-npy").mkdir(parents=True)
    (place / "dataset" / "UTSD-full-npy" / "a.npy").write_bytes(b"")
    given = " ".join(line(flags)).replace("--gpu 0", "").replace("--batch_size 16384", "--batch_size 2048")
    settings = read_command_line(given.replace("--dp", "--ddp").split())
    assert settings.run.ddp and settings.run.devices == tuple(range(8)) and settings.data.kind == "Utsd_Npy"
    with pytest.raises(Exception, match="--nproc_per_node 4 run.py --ddp --devices 0,1,2,3 --batch_size 6 in"):
        read_command_line(["--dp", "--batch_size", "21"])


def test_in_a_test_dp_can_be_left_out(place, capsys):
    assert run.main(["--is_training", "0", "--dp"]) == 2
    assert "--dp: leave it out, or write torchrun --nproc_per_node 4 run.py --ddp in place" in capsys.readouterr().err


OURS = "forecast_ETTh1_timer_xl_test_0"
THEIRS = f"forecast_ETTh1_timer_xl_MultivariateDatasetBenchmark_sl48_it12_ot12_{OF_TIMER_XL}"


def test_the_wanted_folder_is_named_where_it_is(place, capsys):
    save_small(f"checkpoints/{OURS}")
    assert run.main(f"--is_training 0 --test_dir {THEIRS}".split()) == 2
    assert f"write --test_dir {OURS}, which is in checkpoints (" in capsys.readouterr().err


def test_one_that_is_nearly_so_named_is_shown(place, capsys):
    save_small("checkpoints/forecast_ETTh1_timer_xl_mine_0")
    assert run.main(f"--is_training 0 --test_dir {THEIRS}".split()) == 2
    assert "(there are: checkpoints/forecast_ETTh1_timer_xl_mine_0)" in capsys.readouterr().err


def test_a_folder_that_openltm_wrote_is_tested_by_its_own_name(place):
    write_series(tiny_series(), "tiny.csv")
    save_small(f"checkpoints/{THEIRS}")
    (place / "checkpoints" / THEIRS / "args.json").unlink()
    flags = "--quiet --is_training 0 --root_path . --data_path tiny.csv --seq_len 48 --input_token_len 12 " \
            "--test_pred_len 24 --d_model 16 --n_heads 2 --d_ff 32"
    assert run.main([*flags.split(), "--test_dir", THEIRS]) == 0


@pytest.mark.parametrize("name, model, here", [
    (THEIRS, "timer_xl", OURS),
    (f"forecast_my_model_id_timer_xl_Custom_Multi_sl48_it12_ot12_{OF_TIMER_XL}".replace("test_0", "my_words_3"),
     "timer_xl", "forecast_my_model_id_timer_xl_my_words_3"),
    (f"forecast_timer_ECL_timer_ETTh1_sl48_it12_ot12_{OF_TIMER_XL}", "timer", None),
])
def test_names_of_openltm_are_read(name, model, here):
    found = run_of(name)
    assert found.model == model or model == "timer"
    assert here in (None, found.here)
    assert found.sizes == {"seq_len": 48, "input_token_len": 12, "e_layers": 1, "d_model": 1024, "d_ff": 2048,
                           "n_heads": 8}


@pytest.mark.parametrize("name", [OURS, "my_target", "", "forecast_a_sl48_it12", *MODELS])
def test_other_names_are_none_of_openltm(name):
    assert run_of(name) is None
