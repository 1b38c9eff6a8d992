"""What the tests of damaged files share."""
from pathlib import Path

import pytest
from helpers import save_pair


@pytest.fixture(scope="module")
def given_models(tmp_path_factory):
    """A folder with an untrained target and its draft."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("models"))
        save_pair()
        return Path("given").resolve()
