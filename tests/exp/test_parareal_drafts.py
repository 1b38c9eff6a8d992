"""scripts/distillation/parareal_drafts.sh: its drafts, rows of a tiny pair, and the table made of them."""
import csv

import pytest

from scripts.results import documents, parareal_drafts
from scripts.results.plans import plan_of, settings_of


@pytest.fixture
def document(any_plan, place, monkeypatch):
    """The document that the table is written to."""
    document = place / documents.SUCCESS
    document.parent.mkdir()
    document.write_text(f"{documents.PARAREAL_DRAFTS.begin}\nold\n{documents.PARAREAL_DRAFTS.end}\n")
    monkeypatch.setattr(parareal_drafts, "ROOT", place)
    monkeypatch.setattr(parareal_drafts, "TABLE", place / "docs" / "drafts.csv")
    monkeypatch.setattr(parareal_drafts, "WINDOWS", 4)
    monkeypatch.setattr(parareal_drafts, "HORIZONS", (36, 60))
    monkeypatch.setattr(parareal_drafts, "variants", lambda data: [(data, parareal_drafts.Variant("preset", "")),
                                                                   (data, parareal_drafts.Variant("answer", ""))])
    return document


def rows():
    with open(parareal_drafts.TABLE, newline="") as file:
        return list(csv.DictReader(file))


def test_every_draft_is_measured_once_and_written(document, monkeypatch, capsys):
    assert parareal_drafts.main(["--only", "etth1"]) == 0, capsys.readouterr().err
    found = rows()
    assert [(row["data"], row["draft"], row["horizon"]) for row in found] == [
        ("etth1", name, horizon) for name in ("preset", "answer") for horizon in ("36", "60")]
    for row in found:
        deviation = [float(row[f"rms_{passes}"]) for passes in (1, 2, 3, 4)]
        assert float(row["draft_rms"]) > 0 and deviation[0] > deviation[1] > deviation[2] >= deviation[3]
        assert (deviation[2] < 1e-5) == (row["horizon"] == "36")  # three patches: three passes are plain decoding
        assert 1 <= float(row["coupling_passes"]) <= 5
    monkeypatch.setattr(parareal_drafts, "measured", lambda *_: pytest.fail("measured again"))
    assert parareal_drafts.main(["--only", "etth1"]) == 0
    lines = document.read_text().splitlines()
    assert "old" not in lines and sum(line.startswith("| etth1 | ") for line in lines) == 4


def test_an_unknown_target_is_refused(document, capsys):
    assert parareal_drafts.main(["--only", "nothing"]) == 2
    assert "--only nothing: give some of etth1,pool" in capsys.readouterr().err


@pytest.mark.parametrize("data", parareal_drafts.DATA)
def test_the_drafts_have_one_target_and_folders_of_their_own(data, tmp_path):
    every = parareal_drafts.variants(data)
    known = {settings: plan_of(settings, 2021, tmp_path) for settings, _ in every}
    assert len({plan.target_file for plan in known.values()}) == 1
    for settings, variant in every:
        train = settings_of([*known[settings].draft, *variant.flags.split()]).train
        wanted = {"preset": 0, "serial": 0}.get(variant.name, 10)
        assert train.distill and train.answer == wanted and parareal_drafts.TITLES[variant.name]
    own = [variant for settings, variant in every if settings != data and not variant.flags]
    assert [variant.name for variant in own] == ["answer"]
