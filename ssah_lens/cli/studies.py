"""Whole studies and their reports."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from ssah_lens.cli.app import app
from ssah_lens.cli.options import (
    AnyDevice,
    AnyDtype,
    AnySeed,
    Json,
    Quiet,
    Shell,
    System,
    run,
)
from ssah_lens.show.terminal import counted, print_table
from ssah_lens.study.plan import STAGES


@app.command()
def study(
    model: Annotated[str, typer.Option("--model", help="built-in name, folder, .gguf file or hub id")] = "smollm2-135m",
    unaligned: Annotated[Optional[str], typer.Option("--unaligned", help="its unaligned counterpart")] = None,
    profile: Annotated[Optional[str], typer.Option("--profile", help="quick, standard, full")] = None,
    config: Annotated[Optional[Path], typer.Option("--config", help="TOML over the profile")] = None,
    out: Annotated[Path, typer.Option("--out", help="run folder; an interrupted run resumes there")] = Path(
        "runs/study"
    ),
    stages: Annotated[
        Optional[str], typer.Option("--stages", help=f"some only, separated by commas: {', '.join(STAGES)}")
    ] = None,
    seed: Annotated[Optional[int], typer.Option("--seed", min=0, max=2**32 - 1)] = None,
    system: System = None,
    device: Annotated[Optional[str], typer.Option("--device")] = None,
    dtype: Annotated[Optional[str], typer.Option("--dtype")] = None,
    engine: Annotated[str, typer.Option("--engine", help="local (this process), or ray: an extra")] = "local",
    address: Annotated[
        Optional[str], typer.Option("--address", help="of a running Ray cluster; one is started here when not given")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """The whole study; the quick profile leaves out the longer stages (`--stages` runs them all the same)."""
    from ssah_lens.config import study_config

    shell = Shell(json_, quiet)
    given = {"model": model, "unaligned": unaligned, "profile": profile, "seed": seed, "device": device, "dtype": dtype}
    given["system"] = system
    if config and model == "smollm2-135m":
        del given["model"]  # the default does not override the file
    resolved = study_config(config, **given)
    chosen = [s.strip() for s in stages.split(",") if s.strip()] if stages else None

    def work():
        from ssah_lens.study.runner import run_study

        return run_study(resolved, out, chosen, shell.note, engine, address)

    results = run(shell, work)
    report_file = out / "report.html"

    def table() -> None:
        print_table(
            "Scorecard",
            ["", "claim", "effect", "control", "verdict"],
            [
                [r.id, r.claim, counted(r.effect), counted(r.control) if r.control else "", str(r.verdict)]
                for r in results.scorecard
            ],
        )
        if report_file.is_file():
            print(f"report: {report_file}")

    scorecard = [asdict(r) for r in results.scorecard]
    told = {"out": str(out), "report": str(report_file), "scorecard": scorecard, "not_run": results.not_run}
    shell.answer(told, table)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="run folder")],
    figures: Annotated[
        Optional[Path],
        typer.Option("--figures", help="folder that also gets the pictures (this repository's figures/)"),
    ] = None,
    device: AnyDevice = "cpu",
    dtype: AnyDtype = "float32",
    seed: AnySeed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draws the figures and the report of a run folder again."""
    from ssah_lens.show.run_folder import copy_figures
    from ssah_lens.study.record import RunFolder
    from ssah_lens.study.runner import run_study

    shell = Shell(json_, quiet)
    config = RunFolder.existing(directory).config
    run(shell, lambda: run_study(config, directory, ["report"], shell.note))
    if figures:
        copy_figures(directory, figures)
    file = directory / "report.html"
    shell.answer({"report": str(file)}, lambda: print(f"report: {file}"))
