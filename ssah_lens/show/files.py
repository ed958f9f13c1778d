"""Writing a file so that it appears only when it is whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ssah_lens.errors import BadInput


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Writes through a hidden temporary name beside it; folders on the way are made.

    Args:
        path: where the file goes.
        write: writes to the path that it is given.

    Raises:
        BadInput: the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as e:
        raise BadInput(f"'{path}' cannot be written: {e.strerror}; choose another place") from e
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path
