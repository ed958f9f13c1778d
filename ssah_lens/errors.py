"""One error family: what the user can mend, told in one line."""

from __future__ import annotations


class SsahLensError(Exception):
    """Base of every error that ssah-lens raises on purpose."""


class BadInput(SsahLensError, ValueError):
    """The user can mend it: the message says what was got, what is allowed and what to do.

    It is one line, whatever the names and contents that it repeats. The command line prints it and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class Fault(SsahLensError, RuntimeError):
    """A promise of ours is broken (a frozen weight moved, a result is not finite): exit status 1."""
