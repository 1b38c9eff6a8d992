"""What OpenLTM calls things that are called otherwise here: the folder of a run, kinds of data, several GPUs."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.registry import MODELS

OTHER_MODELS = ("timer", "moirai", "moment", "gpt4ts", "ttm", "time_llm", "autotimes")  # of OpenLTM
DEVICES_THERE = (0, 1, 2, 3)  # of --dp, where no others are named
NUMBERS = {"sl": "seq_len", "it": "input_token_len", "el": "e_layers", "dm": "d_model", "dff": "d_ff", "nh": "n_heads"}
SETTING = re.compile(r"(?P<begin>.+)_sl(?P<sl>\d+)_it(?P<it>\d+)_ot\d+_lr[^_]+_bt\d+_wd[^_]+_el(?P<el>\d+)"
                     r"_dm(?P<dm>\d+)_dff(?P<dff>\d+)_nh(?P<nh>\d+)_cos(?:True|False)_(?P<des>.+)_(?P<itr>\d+)")
POOLED = "write --data UnivariateDatasetBenchmark, where every column is a series by itself"
TOGETHER = "write --data MultivariateDatasetBenchmark and name one file, whose rows are then split 70/10/20 %"
DATA = {  # kinds of data of OpenLTM's that are not here
    "Era5_Pretrain": f"{POOLED} (theirs keeps the last fifth of the columns out of the training: cut them off)",
    "Era5_Pretrain_Test": f"{POOLED} (and give it the columns that were kept out of the training)",
    "Global_Temp": TOGETHER, "Global_Wind": TOGETHER,
} | dict.fromkeys(("ETTh1", "ETTh2", "ETTm1", "ETTm2", "custom", "Custom_Multi", "ETTh1_Multi"),
                  "write --data MultivariateDatasetBenchmark; the file is --data_path")


@dataclass(frozen=True)
class OtherName:
    """A run of OpenLTM by the name of its folder.

    model: None if the name does not tell; here: how its folder is called here; sizes: flag -> number.
    """

    model: str | None
    here: str
    sizes: dict[str, int]


def run_of(name: str) -> OtherName | None:
    """The run that a folder of OpenLTM is named after; None if it is no such name."""
    match = SETTING.fullmatch(name)
    if match is None:
        return None
    sizes = {flag: int(match[short]) for short, flag in NUMBERS.items()}
    models = "|".join(sorted({*MODELS, *OTHER_MODELS}, key=len, reverse=True))
    begin = re.fullmatch(rf"(?P<run>.+?)_(?P<model>{models})_.+", match["begin"])
    if begin is None:
        return OtherName(None, "forecast_MODELID_MODEL_test_0", sizes)
    return OtherName(begin["model"], f"{begin['run']}_{begin['model']}_{match['des']}_{match['itr']}", sizes)


def refused_values(arguments: Sequence[str]) -> list[str]:
    """What to write in place of values that OpenLTM knows and this program does not, one text a flag."""
    words, found = [part for argument in arguments for part in argument.split("=", 1)], []
    for flag, value in zip(words, words[1:]):
        if flag == "--data" and value in DATA:
            found.append(f"--data {value}: {DATA[value]}")
        if flag == "--model" and value in OTHER_MODELS and value not in MODELS:
            found.append(f"--model {value}: no such model here (there are: {', '.join(MODELS)}), but one of your own "
                         "can be tested as --model module:function (docs/YOUR_MODEL.md)")
    return found


def in_place_of_dp(values: Mapping[str, Any]) -> str:
    """The command that does what one with --dp does in OpenLTM."""
    devices = values["devices"] or DEVICES_THERE
    if values["do_predict"]:
        return "--dp: leave it out, --do_predict runs in one process"
    if not values["is_training"]:
        return (f"--dp: leave it out, or write torchrun --nproc_per_node {len(devices)} run.py --ddp in place of "
                "python run.py --dp: the processes share the batches of a test")
    each = -(-values["batch_size"] // len(devices))
    gpu = "" if values["gpu"] is None else "--gpu, "
    return (f"--dp: write torchrun --nproc_per_node {len(devices)} run.py --ddp --devices "
            f"{','.join(map(str, devices))} --batch_size {each} in place of python run.py --dp, {gpu}--devices and "
            f"--batch_size {values['batch_size']}, and leave the other flags as they are (with --ddp a batch is that "
            "of each process)")
