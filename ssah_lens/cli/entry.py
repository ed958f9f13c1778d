"""Entry point: what a command raises becomes an exit status and one line."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import NoReturn

import typer

from ssah_lens.cli.app import app
from ssah_lens.errors import BadInput, SsahLensError
from ssah_lens.show.text import printable

USERS_FILES = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENOTDIR, errno.EISDIR,
)  # fmt: skip
"""A disk that is full or read-only, a name that no file can have: for the user to mend."""


def main() -> NoReturn:
    """Entry point: exit status 0 done, 2 bad input (one line), 1 a fault of ours, 130 interrupted."""
    from typer.exceptions import TyperException

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to lose the answer
    try:
        # Typer turns Ctrl-C into a returned 130, and hands back what a command returns (ours return nothing).
        code = app(standalone_mode=False) or 0
        if code == 130:
            raise KeyboardInterrupt
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk can still be told
    except BadInput as e:
        code = _complain(str(e), 2)
    except TyperException as e:
        if e.format_message().startswith("Usage:"):  # a group without a command: its help
            print(e.format_message(), file=sys.stderr)
            sys.exit(2)
        code = _complain(e.format_message(), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("interrupted; finished stages are kept, the same command resumes", 130)
    except (BrokenPipeError, SystemExit):  # typer makes the second of the first
        code = 0  # whoever read our answer has had enough of it
        _drop_output()
    except Exception as e:
        code = _failed(e)
    sys.exit(code)


def _failed(e: Exception) -> int:
    """What no command expected: the user's disk and memory are theirs to mend, the rest is a fault of ours."""
    if isinstance(e, OSError) and e.errno in USERS_FILES:
        where = f"'{e.filename}'" if e.filename else "the output"
        if e.filename is None:
            _drop_output()
        return _complain(f"cannot use {where}: {e.strerror}; finished stages are kept", 2)
    if _out_of_memory(e):
        return _complain(MEMORY, 2)
    if os.environ.get("SSAH_LENS_DEBUG"):
        raise e
    what = str(e) if isinstance(e, SsahLensError) else f"{type(e).__name__}: {e}"
    return _complain(
        f"a fault of ours: {what}; please report it where you got ssah-lens, with the command and what it prints with "
        "SSAH_LENS_DEBUG=1 set",
        1,
    )


MEMORY = "out of memory, and no smaller batch would do: take --dtype bfloat16, a smaller model or another --device"


def _out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:  # then nothing large was begun
        return isinstance(error, MemoryError)
    from ssah_lens.chat.memory import out_of_memory

    return out_of_memory(error)


def _drop_output() -> None:
    """What is still unwritten cannot be: without this, Python would complain about it at exit."""
    with suppress(OSError, ValueError):  # not a file of the system's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, code: int) -> int:
    print("ssah-lens: " + printable(" ".join(message.split())), file=sys.stderr)
    return code
