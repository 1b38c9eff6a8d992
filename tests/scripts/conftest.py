"""A tiny pair of models and a series, for the programs that decode with them."""
import pytest
from helpers import PATCH, tiny_draft, tiny_target

from models.checkpoint import save_checkpoint


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a tiny pair and a series; the flags of a sweep of 4 cells over them."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{0.3 * (i % 24):.2f},{(i * 7 % 11) / 5:.2f}\n" for i in range(600))
    (tmp_path / "two.csv").write_text("a,b\n" + rows)
    target = tiny_target()
    for name, model in (("timer_xl", target), ("timer_xl_draft", tiny_draft(target))):
        settings = model.config.as_dict() | {"model": name, "seq_len": 4 * PATCH}
        save_checkpoint(tmp_path / "given" / name, model.state_dict(), settings)
    return ("--target given/timer_xl/checkpoint.pth --draft given/timer_xl_draft/checkpoint.pth --root_path . "
            f"--data_path two.csv --horizon {4 * PATCH} --windows 20 --batch_size 8 --grid published --sigma 0.2,0.4 "
            "--bias 1 --k 1,3 --quiet")
