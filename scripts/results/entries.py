"""What is measured: the entries of the table, their seeds, and how many test windows each comparison forecasts."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SEEDS = (2021, 2022, 2023)
BATCH = 64
# Test windows per series, evenly spread over the test part: about 2000 forecasts a comparison, which take about a
# minute on two CPU cores. The number depends on the file alone, so that models of a single file and of a pool are
# compared on the same windows.
WINDOWS, WINDOWS_OF = 300, {"weather": 100}
# which files a pair is compared on: those it was trained on at once, each by itself, or each that it has not seen
TOGETHER, EACH, UNSEEN = "together", "each", "unseen"


@dataclass(frozen=True)
class Entry:
    """settings: the name of a file in scripts/settings; seeds: how many of SEEDS are trained; title: what the tables
    call it, with the names of the data files in place of {data}."""

    name: str
    settings: str
    seeds: int = 1
    files: str = TOGETHER
    title: str = "{data}"

    def titled(self, data: str) -> str:
        return self.title.format(data=data)


ENTRIES = (
    Entry("etth1", "etth1", seeds=3),
    Entry("etth2", "etth2_causal"),
    Entry("ettm1", "ettm1_causal"),
    Entry("weather", "weather"),
    Entry("electricity", "electricity"),
    Entry("pool", "pool", seeds=3, title="pool"),
    Entry("pool_files", "pool", files=EACH, title="pool's pair on {data}"),
    Entry("zeroshot", "pool_zeroshot", files=UNSEEN, title="zero-shot on {data}"),
)
BY_NAME = {entry.name: entry for entry in ENTRIES}


def label(files: Sequence[str]) -> str:
    """Of data files, in the table: 'ETTh1', or several of them."""
    return " ".join(Path(file).stem for file in files)


def windows_of(files: Sequence[str]) -> int | None:
    """Test windows per series; None: as many as the settings file says."""
    return WINDOWS_OF.get(label(files), WINDOWS) if len(files) == 1 else None
