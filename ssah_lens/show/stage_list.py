"""The stages of a study as a list that lives: what is done, what is being done, what is left, and for how long.

In a terminal and in a notebook it is redrawn in place; where nothing can be redrawn (a log file, a pipe) each stage
says a line when it begins and when it ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

REDRAWN = 2.0
"""Times a second."""
SPEED = (0.2, 20.0)
"""Bounds of how much slower than the budget this machine may be taken to be."""
Note = Callable[[str], None]


class Stages(Protocol):
    """What a study tells its list."""

    @property
    def tell(self) -> Callable[[int, str], None] | None:
        """What takes the lines of progress bars; None where they draw themselves."""
        ...

    def doing(self, stage: str) -> AbstractContextManager[None]:
        """Around a stage."""
        ...


@contextmanager
def stage_list(minutes: Mapping[str, float], note: Note, live: bool) -> Iterator[Stages]:
    """Shows the stages while they run.

    Args:
        minutes: stage -> its budget, in the order in which they come.
        note: takes the lines where the list is not redrawn.
        live: False for lines only (the user wants quiet); else the list is redrawn where that is possible.
    """
    console = _console() if live and minutes else None
    if console is None:
        yield Lines(note)
        return
    from rich.live import Live

    shown = LiveList(minutes)
    with Live(console=console, get_renderable=shown.table, refresh_per_second=REDRAWN):
        yield shown


class Lines:
    """A line when a stage begins, and one when it is done."""

    tell = None

    def __init__(self, note: Note) -> None:
        self.note = note

    @contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        self.note(f"stage {stage} ...")
        started = time.perf_counter()
        yield
        self.note(f"stage {stage} done in {time.perf_counter() - started:.0f} s")


class LiveList:
    """The list itself; `table` draws it as it is now."""

    def __init__(self, minutes: Mapping[str, float], clock: Callable[[], float] = time.perf_counter) -> None:
        self.budget = {stage: 60 * m for stage, m in minutes.items()}
        self.seconds: dict[str, float] = {}
        self.bars: dict[int, str] = {}
        self.clock = clock
        self.now: tuple[str, float] | None = None
        self.failed: str | None = None

    def tell(self, bar: int, line: str) -> None:
        """A bar's line; '' when it ends."""
        if line:
            self.bars[bar] = line
        else:
            self.bars.pop(bar, None)

    @contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        """Around a stage."""
        self.now = stage, self.clock()
        try:
            yield
        except BaseException:
            self.failed = stage
            raise
        finally:
            self.seconds[stage] = self.clock() - self.now[1]
            self.now = None
            self.bars.clear()

    @property
    def left(self) -> float:
        """Seconds that all of it may still take, going by what finished stages took of their budgets."""
        budget = sum(self.budget[s] for s in self.seconds)
        speed = min(max(sum(self.seconds.values()) / budget, SPEED[0]), SPEED[1]) if budget else 1.0
        rest = sum(b for s, b in self.budget.items() if s not in self.seconds) * speed
        return max(rest - (self.clock() - self.now[1] if self.now else 0.0), 0.0)

    def table(self) -> Table:
        """As it is now."""
        from rich.table import Table
        from rich.text import Text

        out = Table.grid(padding=(0, 2))
        for stage in self.budget:
            sign, words = self._row(stage)
            out.add_row(sign, stage, Text(words))
        if self.now:
            out.add_row("", "", Text(f"about {_span(self.left)} left"))
        return out

    def _row(self, stage: str) -> tuple[str, str]:
        if stage == self.failed:
            return "[red]✗[/]", f"stopped after {_span(self.seconds[stage])}"
        if stage in self.seconds:
            return "[green]✓[/]", _span(self.seconds[stage])
        if self.now and stage == self.now[0]:
            passed = f"{_span(self.clock() - self.now[1])} of about {_span(self.budget[stage])}"
            return "[bold]▸[/]", "; ".join([passed, *list(self.bars.values())[-1:]])
        return "[dim]·[/]", f"about {_span(self.budget[stage])}"


def _span(seconds: float) -> str:
    """'45 s', '3 min 05 s', '2 h 10 min'."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


def _console() -> Console | None:
    """Where a list can be redrawn, or None."""
    in_notebook = "ipykernel" in sys.modules
    if not in_notebook and not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return console if console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal) else None
