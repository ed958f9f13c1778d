"""One error family: what the user can mend, told in one line."""

from __future__ import annotations


class SsahLensError(Exception):
    """Base of every error that ssah-lens raises on purpose."""


class BadInput(SsahLensError, ValueError):
    """The user can mend it: the message says what was got, what is allowed and what to do.

    The command line prints it on one line and exits with status 2.
    """


class Fault(SsahLensError, RuntimeError):
    """A promise of ours is broken (a frozen weight moved, a result is not finite): exit status 1."""
