"""scripts/distillation/pool_drafts.sh: what is trained and compared for each draft, and the table made of it."""
import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.results import documents, drafts, measure, plans
from scripts.results.plans import plan_of, settings_of


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """The loop without its programs: what they were asked to do."""
    asked, document = [], tmp_path / documents.SUCCESS
    target, draft = (tmp_path / f"forecast_pool_timer_xl_{name}_0" / "checkpoint.pth"
                     for name in ("target", "draft_stochastic"))
    plan = SimpleNamespace(target=["target"], draft=["draft", "--des", "stochastic"], compare=["compare"],
                           target_file=target, draft_file=draft)

    def program(flags):
        asked.append(flags)
        errors = {"target alone (cached)": 0.5, "draft alone": 0.55, "speculative tolerance 0.15": 0.51}
        rows = [{"method": name, "mse": error / 2, "mae": error, "rms_in_windows": 0.2, "target_passes": 2.5,
                 "windows": 576} for name, error in errors.items()]
        (tmp_path / "metrics.json").write_text(json.dumps({"rows": rows}))
        return {"table": "compare.csv"}
    for variant in drafts.VARIANTS:
        name = variant.des if variant.flags else "stochastic"
        folder = tmp_path / f"forecast_pool_timer_xl_draft_{name}_0"
        folder.mkdir()
        (folder / "args.json").write_text(json.dumps({"parameters": 144_000}))
    target.parent.mkdir()
    target.write_bytes(b"target")
    document.parent.mkdir()
    document.write_text(f"a\n{documents.POOL_DRAFTS.begin}\nold\n{documents.POOL_DRAFTS.end}\nb\n")
    monkeypatch.setattr(measure, "run_program", program)
    monkeypatch.setattr(plans, "plan_of", lambda *_: plan)
    monkeypatch.setattr(plans, "missing", lambda flags: None if flags == ["target"] else flags)
    monkeypatch.setattr(drafts, "ROOT", tmp_path)
    monkeypatch.setattr(drafts, "TABLE", tmp_path / "docs" / "drafts.csv")
    return SimpleNamespace(asked=asked, document=document)


def test_drafts_are_trained_compared_and_written(faked, capsys):
    assert drafts.main(["--only", "half,quarter"]) == 0, capsys.readouterr().err
    trained = [flags for flags in faked.asked if flags[0] == "draft"]
    own = ["draft", "--des", "stochastic"]
    assert trained == [[*own, *drafts.scaled(0.25, 0.25).split(), "--des", "variant_quarter"], own]
    compared = [flags for flags in faked.asked if flags[0] == "compare"]
    assert [flags[-1] for flags in compared] == ["96", "720", "96", "720"]
    assert all(flags[flags.index("--test_flag") + 1] == "V" for flags in compared)
    assert [Path(flags[flags.index("--spec_draft_ckpt") + 1]).parent.name for flags in compared[1:3]] == [
        "forecast_pool_timer_xl_draft_variant_quarter_0", "forecast_pool_timer_xl_draft_stochastic_0"]
    lines = faked.document.read_text().splitlines()
    assert lines[0] == "a" and lines[-1] == "b" and "old" not in lines
    assert "The target's MAE on the same windows is 0.5000 at 96, 0.5000 at 720." in lines[2]
    assert sum(line.endswith("| 144 k | 0.5500 (+10.0 %) | 0.5500 (+10.0 %) | 0.200 | 0.5100 | 2.50 |")
               for line in lines) == 2


def test_a_draft_that_is_measured_again_has_its_rows_once(faked):
    for only in ("half", "published", "half"):
        assert drafts.main(["--only", only]) == 0
    with open(drafts.TABLE, newline="") as file:
        assert [(row["draft"], row["horizon"]) for row in csv.DictReader(file)] == [
            (name, horizon) for name in ("published", "half") for horizon in ("96", "720")]


def test_an_unknown_draft_is_refused(faked, capsys):
    assert drafts.main(["--only", "nothing"]) == 2
    assert "--only nothing: there is no such draft: give some of published," in capsys.readouterr().err


@pytest.mark.parametrize("variant", drafts.VARIANTS, ids=lambda variant: variant.name)
def test_flags_of_drafts_are_taken(variant, tmp_path):
    draft = settings_of([*plan_of("pool", 2021, tmp_path).draft, *variant.flags.split()])
    assert draft.train.distill and (variant.name == "published") == (draft.train.rollout == 0)
