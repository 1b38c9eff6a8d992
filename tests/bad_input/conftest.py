"""A folder to make mistakes in, and the one way in which all of them end."""
import pytest
from bad_input.cases import assert_one_error_line, tree
from helpers import SMALL, write_rows

import run


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    # one level down, so that names with '..' would land inside tmp_path and be seen
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.delenv("RANK", raising=False)
    write_rows("good.csv", 600)
    return tmp_path


@pytest.fixture
def refused(workplace, capsys, recwarn):
    """refused(case): it ends with exit code 2 and one line with the words of the case, and writes nothing."""
    def check(case):
        case.prepare()
        before = tree(workplace)
        code = run.main(f"{SMALL} {case.flags}".split())
        said = capsys.readouterr().err
        assert code == 2, said
        assert_one_error_line(said, case.words)
        assert not [str(warning.message) for warning in recwarn]  # outside of pytest: another line on stderr
        assert tree(workplace) == before  # no folder either; a payload would have left 'executed'
    return check
