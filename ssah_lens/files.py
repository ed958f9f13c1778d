"""Writing a file so that it appears only when it is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssah_lens.errors import BadInput


def temporary(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, write: Callable[[Path], object], advice: str = "choose another place") -> Path:
    """Writes through a hidden temporary name beside it, to the disk itself; folders on the way are made.

    A kill or a full disk leaves what was there before.

    Args:
        path: where the file goes.
        write: writes to the path that it is given.
        advice: what the user may do when that fails.

    Raises:
        BadInput: the place cannot be written.
    """
    partial = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb+") as f:  # a rename may outlive a power cut that the contents do not
            os.fsync(f.fileno())
        partial.replace(path)
    except OSError as e:
        raise BadInput(f"'{path}' cannot be written: {e.strerror or e}; {advice}") from e
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def write_tensors(path: Path, tensors: dict[str, Any], said: dict[str, str], advice: str) -> Path:
    """A safetensors file, written as `write_whole` does.

    Args:
        path: where the file goes.
        tensors: by name.
        said: the file's metadata.
        advice: what the user may do when that fails.

    Raises:
        BadInput: the place cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(partial: Path) -> None:
        try:
            save_file(tensors, partial, said)
        except SafetensorError as e:  # a full disk too
            raise OSError(str(e)) from e

    return write_whole(path, write, advice)
