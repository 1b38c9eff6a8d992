"""The grid of decoding times runs on a CPU too, on tiny models, and writes what it promises."""
import csv

import pandas as pd
import pytest
import torch
from helpers import TINY, tiny_draft, tiny_target

from models.checkpoint import save_checkpoint
from scripts.benchmark import gpu_grid
from scripts.benchmark.decode_speed import CONFIGS

WAYS = ["target", "draft", "parareal 2", "parareal 3", "parareal 4", "parareal tol 0.15"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    config = gpu_grid.ModelConfig(**TINY.as_dict() | {"input_token_len": 96})
    monkeypatch.setitem(CONFIGS, "preset", (2, config))
    monkeypatch.setitem(CONFIGS, "deep", (1, config))
    return tmp_path


def rows_of(folder, *flags):
    out = folder / "grid.csv"
    assert gpu_grid.main(["--out", str(out), "--budget_s", "0.01", "--quiet", *flags]) == 0
    with open(out, newline="") as handle:
        return list(csv.DictReader(handle))


def test_every_way_is_timed_in_both_precisions(tiny):
    rows = rows_of(tiny, "--cells", "deep:192:400:2")
    assert list(rows[0]) == gpu_grid.COLUMNS
    for dtype in ("float32", "bf16"):
        here = {row["method"]: row for row in rows if row["dtype"] == dtype and row["graphs"] == "0"}
        assert set(here) == {*WAYS, "forced 0.9"}
        assert [here[name]["target_passes"] for name in ("target", "parareal 2", "parareal 4")] == ["5.0", "2.0", "4.0"]
        assert all(float(row["ms_median"]) > 0 and int(row["repeats"]) >= 3 for row in here.values())
    apart = {row["method"]: float(row["rms_from_target"]) for row in rows if row["dtype"] == "float32"}
    assert apart["target"] == 0 and apart["draft"] > apart["parareal 2"] > apart["parareal 4"]
    assert {row["weights"] for row in rows} == {"random"} and bool(rows[0]["device"])
    graphs = {row["from_eager"] for row in rows if row["graphs"] == "1"}
    assert bool(graphs) == torch.cuda.is_available() and all(float(change) < 1e-4 for change in graphs)


def test_a_given_pair_forecasts_the_given_series(tiny):
    target = tiny_target(input_token_len=96, norm_mode="causal", norm_window=2)
    for name, model in (("timer_xl", target), ("timer_xl_draft", tiny_draft(target))):
        save_checkpoint(tiny / name, model.state_dict(), model.config.as_dict() | {"model": name})
    values = torch.randn(9200, 2, generator=torch.Generator().manual_seed(0)).cumsum(0)
    pd.DataFrame(values.numpy(), columns=["a", "b"]).assign(date="then").to_csv(tiny / "data.csv")
    pair = ["--pair", f"{tiny / 'timer_xl'},{tiny / 'timer_xl_draft'}"]
    with pytest.raises(AssertionError):  # the index that pandas writes is a column of numbers too
        rows_of(tiny, "--cells", "preset:192:400:1", *pair, "--data", str(tiny / "data.csv"))
    pd.DataFrame(values.numpy(), columns=["a", "b"]).assign(date="then").to_csv(tiny / "data.csv", index=False)
    rows = rows_of(tiny, "--cells", "preset:192:400:1,deep:192:96:1", *pair, "--data", str(tiny / "data.csv"))
    assert {(row["config"], row["weights"]) for row in rows} == {("preset", "trained"), ("deep", "random")}
    assert {row["method"] for row in rows if row["config"] == "preset"} == {*WAYS, "tolerance 0.15", "coupling"}


@pytest.mark.parametrize("flags", [["--pair", "a"], ["--data", "a.csv"], ["--pair", "a", "--data", "a.csv"],
                                   ["--cells", "huge:672:720:1"]])
def test_flags_that_make_no_sense_are_refused(flags, capsys):
    assert gpu_grid.main([*flags, "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("error: --")
