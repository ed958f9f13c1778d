"""The command line: parse, call study, print. Standard output carries the answer only; notes go to standard error."""

from ssah_lens.cli import collection, measuring, studies, training, unit_commands  # noqa: F401 (they register their commands)
from ssah_lens.cli.app import app
from ssah_lens.cli.entry import main

__all__ = ["app", "main"]
