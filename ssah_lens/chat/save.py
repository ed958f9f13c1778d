"""Saving a model so that plain transformers loads it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput


def check_free(folder: Path) -> None:
    """Before long work: the folder must not hold something else, and its parent must be writable.

    Raises:
        BadInput: it exists and is not empty, or cannot be made.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"output folder '{folder}' exists already; choose another --out, or delete it")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent):
            pass
    except OSError as e:
        raise BadInput(f"output folder '{folder}' cannot be made: {e.strerror}; choose another --out") from e


def save_model(model: ChatModel, folder: Path) -> Path:
    """Saves weights (safetensors), configuration and tokenizer; the folder appears only when it is whole.

    Raises:
        BadInput: the folder cannot be written (full disk, no permission).
    """

    def write(partial: Path) -> None:
        model.plain.save_pretrained(partial)
        model.tokenizer.save_pretrained(partial)

    return save_into(folder, write)


def save_into(folder: Path, write: Callable[[Path], None]) -> Path:
    """Lets `write` fill a folder under a temporary name, and renames it when it is whole.

    Raises:
        BadInput: the folder cannot be written (full disk, no permission).
    """
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        write(partial)
        partial.chmod(0o755)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        partial.rename(folder)
        partial = None
    except (OSError, SafetensorError) as e:
        what = getattr(e, "strerror", None) or e
        raise BadInput(f"cannot save the model in '{folder}': {what}; nothing was left there") from e
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
