"""What `from patchspec import ...` offers; what the library may import is tested in test_imports.py."""
import utils


def test_what_the_library_offers_is_there():
    assert len(utils.__all__) == len(set(utils.__all__))
    assert [name for name in utils.__all__ if not hasattr(utils, name)] == []
