"""Finished parts of a stage, each a file that is there only when it is whole: a killed stage goes on with the next one.

A part depends on the run folder's configuration alone, so its name is enough to find it again. Numbers come back to
the last digit. When the stage itself is kept, its parts are thrown away.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from ssah_lens.errors import BadInput
from ssah_lens.files import write_whole

R = TypeVar("R")
KEPT = "make room or mend it, then give the same command again: what is finished is kept"


class Parts:
    """Where a stage keeps what is finished; called, it gives a part.

    Attributes:
        folder: made when something is kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def __call__(self, name: str, kind: Any, make: Callable[[], R]) -> R:
        """The part of this name; made, and kept, when it is not there.

        Args:
            name: of the file, without its ending.
            kind: type of the part: a result dataclass, or whatever JSON can hold.
            make: makes it.

        Raises:
            BadInput: it is damaged, or cannot be kept.
        """
        found = self.load(name, kind)
        if found is None:
            found = make()
            self.save(name, found)
        return found

    def load(self, name: str, kind: Any) -> Any:
        """A kept part, or None."""
        file = None if self.folder is None else self.folder / f"{name}.json"
        return read_result(file, kind) if file is not None and file.is_file() else None

    def save(self, name: str, result: Any) -> None:
        """Keeps a part; the working state that led to it is not needed any more."""
        if self.folder is not None:
            write_result(self.folder / f"{name}.json", result)
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def working(self, name: str) -> Path | None:
        """A folder for the state of a part that is under way (a training checkpoint)."""
        return None if self.folder is None else self.folder / name

    def clear(self) -> None:
        """Throws all parts away."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def write_result(file: Path, result: Any, advice: str = KEPT) -> Path:
    """Keeps a result as JSON; numbers that are not finite as text ('NaN'), which JSON has no number for."""
    text = to_json(result, indent=1, inf_nan_mode="strings", fallback=_plain)
    return write_whole(file, lambda partial: partial.write_bytes(text), advice)


def _plain(value: Any) -> Any:
    """NumPy arrays as nested lists; a type that holds one says how it is read back."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a part of a result is {type(value).__name__}, which JSON cannot hold")


def read_result(file: Path, kind: Any) -> Any:
    """A result of that type.

    Raises:
        BadInput: the file is damaged.
    """
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except (OSError, ValidationError) as e:
        raise BadInput(f"'{file}' is damaged or another version's; delete it, what it held is then made again") from e
