"""Progress bars for terminal and notebook alike, on standard error, shown only when work lasts over two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
_QUIET: ContextVar[bool] = ContextVar("ssah_lens_quiet", default=False)


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """No progress bars inside."""
    token = _QUIET.set(on)
    try:
        yield
    finally:
        _QUIET.reset(token)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Iterates with a bar that carries a time estimate; silent for the first two seconds."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=what, total=total, delay=2, leave=False, disable=_QUIET.get() or None)
