"""Progress bars for terminal and notebook alike, on standard error, shown only when work lasts over two seconds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
Tell = Callable[[int, str], None]
"""Given a bar's number and its line; an empty line when the bar ends."""
_QUIET: ContextVar[bool] = ContextVar("ssah_lens_quiet", default=False)
_TELL: ContextVar[Tell | None] = ContextVar("ssah_lens_tell", default=None)


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """No progress bars inside."""
    token = _QUIET.set(on)
    try:
        yield
    finally:
        _QUIET.reset(token)


def is_quiet() -> bool:
    """Whether bars are left out here."""
    return _QUIET.get()


@contextmanager
def bars_told(tell: Tell | None) -> Iterator[None]:
    """Inside, bars are not drawn; `tell` is given their lines instead. None draws them as ever."""
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


def progress(items: Iterable[T] | None, what: str, total: int | None = None, **options: str) -> tqdm[T]:
    """Iterates with a bar that carries a time estimate; silent for the first two seconds.

    Args:
        items: what to go through; None for a bar that the caller updates and closes.
        what: label.
        total: how many, where `items` cannot say.
        options: of tqdm.
    """
    from tqdm.auto import tqdm

    tell = _TELL.get()
    if tell is not None and not _QUIET.get():
        return _telling(tell)(
            items, desc=what, total=total, mininterval=0.5, file=io.StringIO(), disable=False, **options
        )
    return tqdm(items, desc=what, total=total, delay=2, leave=False, disable=_QUIET.get() or None, **options)


def _telling(tell: Tell) -> type[tqdm]:
    from tqdm.std import tqdm

    class Telling(tqdm):
        """A bar whose line goes to `tell`."""

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            d = self.format_dict
            left = (d["total"] - d["n"]) / d["rate"] if d["total"] and d["rate"] else None
            line = f"{d['prefix']} {d['n']}" + (f" of {d['total']}" if d["total"] else "")
            tell(id(self), line + (f", {tqdm.format_interval(left)} left" if left else ""))

        def close(self) -> None:
            super().close()
            tell(id(self), "")

    return Telling
