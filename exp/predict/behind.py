"""Writing in a thread beside the one that forecasts, one item behind it."""
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Behind:
    """Does one thing after another in a thread; the next waits for the one before. Waits at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._last: Future[Any] | None = None

    def do(self, work: Callable[..., Any], *what: Any) -> None:
        """Raises what the last one raised."""
        self._wait()
        self._last = self._pool.submit(work, *what)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._pool.shutdown(wait=True)
