"""The optional package that reads and writes parquet files."""
from pathlib import Path
from typing import Any

from utils.errors import UserError


def pyarrow_for(path: Path, instead: str) -> Any:
    """pyarrow, with its module parquet. Raises UserError where it is missing; instead: what else helps with `path`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: parquet files need the package pyarrow: pip install -r requirements-parquet.txt, or "
                        f"{instead}") from error
    return pyarrow
