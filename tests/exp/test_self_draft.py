"""scripts/distillation/self_draft.sh: rows of a tiny pair whose target has heads, their times, and their table."""
import csv
import shutil

import pytest
from exp_helpers import BASE

import run
from exp.own_heads import heads_beside
from scripts.results import documents, plans, self_draft

missing = plans.missing  # before a fixture replaces it


@pytest.fixture
def document(any_plan, place, monkeypatch):
    """The document that the table is written to; the target of the plan has longer heads."""
    document = place / documents.SUCCESS
    document.parent.mkdir()
    document.write_text(f"{documents.SELF_DRAFT.begin}\nold\n{documents.SELF_DRAFT.end}\n")
    any_plan.heads = heads_flags(any_plan.target_file)
    for name, value in {"ROOT": place, "TABLE": place / "docs" / "heads.csv", "WINDOWS": 6, "REPEATS": 3,
                        "HORIZONS": (36, 60), "TOLERANCES": (0.3, 5.0)}.items():
        monkeypatch.setattr(self_draft, name, value)
    assert run.main(any_plan.heads) == 0
    return document


def heads_flags(target_file):
    return (f"{BASE} --root_path . --is_training 1 --self_draft 3 --train_epochs 1 --learning_rate 0.01 "
            f"--distill_target_ckpt {target_file}").split()


def rows():
    with open(self_draft.TABLE, newline="") as file:
        return list(csv.DictReader(file))


def test_both_drafts_are_measured_once_and_their_times_again(document, monkeypatch, capsys):
    assert self_draft.main([]) == 0, capsys.readouterr().err
    found = rows()
    names = [("none", "")] + [(draft, rule) for rule in ("tolerance 0.3", "tolerance 5", "coupling")
                              for draft in ("draft", "heads")]
    assert [(row["horizon"], row["proposals"], row["rule"]) for row in found] == [
        (horizon, *name) for horizon in ("36", "60") for name in names]
    at = {(row["horizon"], row["proposals"], row["rule"]): row for row in found}
    assert [float(at["60", draft, "tolerance 5"]["target_passes"]) for draft in ("draft", "heads")] == [1.0, 3.0]
    assert float(at["60", "heads", "tolerance 5"]["draft_passes"]) == 0 and at["60", "none", ""]["rms"] == "0"
    assert at["60", "heads", "coupling"]["rms"] == "" and all(float(row["ms_median"]) > 0 for row in found)
    assert int(at["60", "heads", "coupling"]["parameters"]) == 16 * 16 + 16 + 2 * 12 * 17
    lines = document.read_text().splitlines()
    assert "old" not in lines and sum(line.startswith("| 60 | ") for line in lines) == len(names)
    with monkeypatch.context() as patch:
        patch.setattr(self_draft.Compared, "at", lambda *_: pytest.fail("measured again"))
        assert self_draft.main([]) == 0
    monkeypatch.setattr(self_draft.Compared, "measured", lambda *_: pytest.fail("measured again"))
    assert self_draft.main(["--times"]) == 0
    without = [{name: value for name, value in row.items() if not name.startswith("ms_")} for row in found]
    assert [{name: row[name] for name in without[0]} for row in rows()] == without
    assert [row["ms_median"] for row in rows()] != [row["ms_median"] for row in found]


def test_times_of_another_target_are_refused(document, capsys):
    assert self_draft.main([]) == 0
    text = self_draft.TABLE.read_text()
    self_draft.TABLE.write_text(text.replace(rows()[0]["target_sha256"], "0" * 12))
    assert self_draft.main(["--times"]) == 2
    assert "is of another target, or of other rows: delete those of horizon 36" in capsys.readouterr().err


def test_heads_are_trained_where_they_are_missing(document, any_plan):
    flags = any_plan.heads
    assert missing(flags) is None
    shutil.rmtree(heads_beside(any_plan.target_file).parent)
    assert missing(flags) == [*flags, "--resume"]


def test_the_plan_of_a_settings_file_has_the_training_of_heads(tmp_path):
    plan = plans.plan_of("etth1", 2021, tmp_path)
    assert plan.heads[plan.heads.index("--self_draft") + 1] == "8"
    assert plan.heads[plan.heads.index("--distill_target_ckpt") + 1] == str(plan.target_file)
