"""Batches that fit in memory: one that does not is cut in two and run again.

    batches = model.batches(rows)
    for chosen, batch in batches:
        with batches.room():
            ...  # all or nothing: whatever it leaves behind is written last, or overwrites itself

Nothing else in the package needs to know how large a batch may be. What was learnt is kept as `Room.share` of the model
and shrinks all later batches, so that memory runs out once and not every time. Results do not depend on it beyond the
rounding of sums in another order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ssah_lens.chat.batch import Batch, Row
from ssah_lens.errors import BadInput
from ssah_lens.memory import give_back

SMALLEST = 1 / 64
"""Share of the usual batch below which one row alone is given up."""
WORDS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "std::bad_alloc")
"""How allocators say it (CUDA, MPS, XPU; torch on CPU under Linux and Windows; libraries below torch)."""


@dataclass
class Room:
    """How much memory there is, as far as was found out.

    Attributes:
        share: of the usual tokens that a batch may hold.
    """

    share: float = 1.0

    def back_off(self, error: Exception) -> None:
        """Halves the share after memory ran out.

        Raises:
            Exception: the error itself, where it says something else, or the share is too small already.
        """
        if not out_of_memory(error) or self.share <= SMALLEST:
            raise error
        self.share /= 2
        release()


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in WORDS)


def release() -> None:
    """Gives freed memory back to the system and the device."""
    give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


class Batches:
    """Rows cut into batches; iterating gives the indices of the rows and the padded batch.

    `len` is the number of batches when all of them fit.

    Attributes:
        whole: rows of the batch as it was planned, which the present one is all or a part of: what is drawn for a batch
            at random is drawn for the whole, so that it does not depend on the memory there is.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        cuts: list[list[int]],
        most: int,
        make: Callable[[list[Row]], Batch],
        room: Room,
    ) -> None:
        self._rows, self._cuts, self._most, self._make, self._room = rows, cuts, most, make, room
        self._failed = False
        self.whole: list[int] = []

    def __len__(self) -> int:
        return len(self._cuts)

    def __iter__(self) -> Iterator[tuple[list[int], Batch]]:
        todo = deque((cut, cut) for cut in self._cuts)
        while todo:
            chosen, whole = todo.popleft()
            tokens, half = self._tokens(chosen), len(chosen) // 2
            if half and tokens > self._most * self._room.share:
                todo.extendleft(((chosen[half:], whole), (chosen[:half], whole)))
                continue
            self._failed, self.whole = False, whole
            yield chosen, self._make([self._rows[i] for i in chosen])
            if self._failed:
                release()
                self._shrink(len(chosen), tokens)
                todo.appendleft((chosen, whole))

    @contextmanager
    def room(self) -> Iterator[None]:
        """Inside, a batch that does not fit is given up; its halves (or one row with more patience) come next."""
        try:
            yield
        except Exception as e:
            if not out_of_memory(e):
                raise
            self._failed = True

    def _shrink(self, n_rows: int, tokens: int) -> None:
        share = self._room.share
        self._room.share = share / 2 if n_rows == 1 else min(share, tokens / 2 / self._most)
        if n_rows == 1 and share <= SMALLEST:
            raise BadInput(
                f"one prompt of {tokens} tokens does not fit in memory: shorten it, "
                "take --dtype bfloat16 or a device with more memory"
            )

    def _tokens(self, chosen: list[int]) -> int:
        return len(chosen) * max(len(self._rows[i].ids) for i in chosen)
