"""The application that the commands register with."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Tests whether safety lives in a few units behind one binary choice: refuse or fulfil.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="The shipped prompt collection.", no_args_is_help=True)
app.add_typer(data_app, name="data")
