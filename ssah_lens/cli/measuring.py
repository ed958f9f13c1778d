"""Commands that look at a model: refusal, direction, patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ssah_lens.cli.app import app
from ssah_lens.cli.options import (
    PROMPTS,
    Device,
    Dtype,
    Json,
    Model,
    OptionalFile,
    Quiet,
    Seed,
    Shell,
    System,
    layer_span,
    loader,
    run,
)
from ssah_lens.show.terminal import estimate, print_direction, print_table, strongest_cells


@app.command()
def refusal(
    model: Model,
    harmful: Annotated[Path, typer.Option("--harmful", help=PROMPTS)],
    harmless: Annotated[
        Optional[Path], typer.Option("--harmless", help=f"{PROMPTS}; not measured when not given")
    ] = None,
    limit: Annotated[
        Optional[int], typer.Option("--limit", min=1, help="at most this many prompts of each file")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, max=2048)] = 24,
    judge: Annotated[str, typer.Option("--judge")] = "keyword",
    system: System = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """How often the model refuses harmful and harmless prompts."""
    from ssah_lens.study import commands

    shell = Shell(json_, quiet)
    commands.check_judge(judge)
    asked, ordinary = commands.read_limited(harmful, limit, seed), commands.read_limited(harmless, limit, seed)
    load = loader(shell, device, dtype, system)
    result = run(shell, lambda: commands.run_refusal(load(model), asked, ordinary, judge, max_new_tokens))

    def table() -> None:
        sides = [("harmful", result.harmful)] + ([("harmless", result.harmless)] if result.harmless else [])
        print_table(
            f"{result.model}, judge {judge}",
            ["prompts", "refused", "fulfilled", "incoherent", "n"],
            [
                [n, estimate(o.refused), estimate(o.fulfilled), estimate(o.incoherent), str(o.refused.n)]
                for n, o in sides
            ],
        )

    shell.answer(result, table)


@app.command()
def direction(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="run folder; an interrupted run resumes there")],
    unaligned: Annotated[Optional[str], typer.Option("--unaligned", help="counterpart that fulfils")] = None,
    harmful: OptionalFile = None,
    harmless: OptionalFile = None,
    limit: Annotated[
        Optional[int], typer.Option("--limit", min=8, help="at most this many prompts of each file")
    ] = None,
    profile: Annotated[Optional[str], typer.Option("--profile", help="quick, standard, full")] = None,
    config: Annotated[Optional[Path], typer.Option("--config", help="TOML over the profile")] = None,
    system: System = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Is refuse-or-fulfil one direction, and where is it made?"""
    from ssah_lens.config import study_config
    from ssah_lens.study.commands import read_limited

    shell = Shell(json_, quiet)
    named = {"model": model, "unaligned": unaligned, "profile": profile, "device": device, "dtype": dtype, "seed": seed}
    named["system"] = system
    resolved = study_config(config, **named)
    asked, ordinary = read_limited(harmful, limit, seed), read_limited(harmless, limit, seed)

    def work():
        from ssah_lens.study.direction_command import run_direction
        from ssah_lens.study.estimate import estimate
        from ssah_lens.study.plan import MINUTES

        about = estimate(MINUTES[resolved.profile]["direction"], resolved.model)
        shell.note(f"profile {resolved.profile}: {about}")
        return run_direction(resolved, out, asked, ordinary, shell.note)

    result = run(shell, work)
    shell.answer(result, lambda: print_direction(result))


@app.command()
def patch(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="folder for patching.json, patching.png and patching.html")],
    clean: Annotated[Optional[str], typer.Option("--clean", help="prompt whose metric is effect 1 (harmful)")] = None,
    corrupted: Annotated[Optional[str], typer.Option("--corrupted", help="its twin, effect 0 (harmless)")] = None,
    pairs: Annotated[
        Optional[Path], typer.Option("--pairs", help=".jsonl or .csv: clean, corrupted (or harmful, harmless)")
    ] = None,
    site: Annotated[str, typer.Option("--site", help="resid, attn, mlp, head, neuron")] = "resid",
    layers: Annotated[Optional[str], typer.Option("--layers", help="A-B: only these layers")] = None,
    noising: Annotated[
        bool,
        typer.Option(
            "--noising", help="put corrupted activations into the clean run, not clean ones into the corrupted run"
        ),
    ] = False,
    steps: Annotated[
        Optional[int],
        typer.Option("--attribution", min=0, help="guess by gradients: 0 plain, N integrated over N points"),
    ] = None,
    limit: Annotated[Optional[int], typer.Option("--limit", min=1, help="at most this many pairs of the file")] = None,
    system: System = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Which activation, moved between two matched prompts, moves the choice to refuse?"""
    from ssah_lens.study.patch import given_pairs, run_patch

    shell = Shell(json_, quiet)
    sides = given_pairs(clean, corrupted, pairs, limit, seed)
    span = layer_span(layers)
    load = loader(shell, device, dtype, system)
    result = run(
        shell, lambda: run_patch(lambda: load(model), *sides, out, site, noising, span, seed, shell.note, steps)
    )

    def table() -> None:
        print_table(
            f"Patching {site} ({result.method}), {result.n} pair(s): {result.metric}",
            ["", "metric"],
            [["clean (effect 1)", estimate(result.clean)], ["corrupted (effect 0)", estimate(result.corrupted)]],
        )
        print_table(
            f"Strongest; each activation is replaced by {result.estimand}",
            [*result.axes, "effect"],
            strongest_cells(result),
        )
        print(f"pictures: {out / 'patching.png'}, {out / 'patching.html'}")

    shell.answer(result, table)
