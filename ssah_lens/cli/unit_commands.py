"""Commands about units: score them, ablate them, see how they move."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ssah_lens.cli.app import app
from ssah_lens.cli.options import (
    PROMPTS,
    SCORES,
    AnyDevice,
    AnyDtype,
    AnySeed,
    Device,
    Dtype,
    Json,
    Model,
    OptionalFile,
    Quiet,
    Roles,
    Seed,
    Shell,
    System,
    layer_span,
    loader,
    run,
)
from ssah_lens.errors import BadInput
from ssah_lens.show.terminal import counted, print_table, print_units


@app.command()
def units(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="units file, .parquet")],
    score: Annotated[str, typer.Option("--score", help=SCORES)] = "mask",
    unaligned: Annotated[Optional[str], typer.Option("--unaligned", help="counterpart that fulfils")] = None,
    safety: OptionalFile = None,
    utility: OptionalFile = None,
    layers: Annotated[
        Optional[str], typer.Option("--layers", help="A-B: only these layers' units become SCU, UCU or RU")
    ] = None,
    limit: Annotated[Optional[int], typer.Option("--limit", min=8, help="calibration prompts on each side")] = None,
    steps: Annotated[Optional[int], typer.Option("--steps", min=1, help="of a score that learns (mask)")] = None,
    system: System = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Scores every neuron and head and labels it SCU, UCU, CU or RU."""
    from ssah_lens.config import COMMAND_UNITS, UnitsConfig
    from ssah_lens.score import score as known_score
    from ssah_lens.study import commands

    shell = Shell(json_, quiet)
    known_score(score)
    span = layer_span(layers)
    safe, useful = commands.read_limited(safety, None), commands.read_limited(utility, None)
    given = {"calibration": limit, "steps": steps}
    config = UnitsConfig.model_validate({"score": score} | COMMAND_UNITS | {k: v for k, v in given.items() if v})
    load = loader(shell, device, dtype, system)

    def work():
        from ssah_lens.study.estimate import estimate
        from ssah_lens.study.workload import units_minutes

        about = estimate(units_minutes(config), model)
        shell.note(f"scores, then sizes by ablation: {about}; a run that was killed resumes")
        aligned = load(model)
        if span and span.stop > aligned.grid.n_layers:
            raise BadInput(f"--layers {layers}: the model has layers 0-{aligned.grid.n_layers - 1}")
        other = load(unaligned) if unaligned else None
        return commands.run_units(aligned, other, out, safe, useful, config, span, seed)

    result = run(shell, work)
    shell.answer(result, lambda: print_units(result))


@app.command()
def ablate(
    model: Model,
    units: Annotated[Path, typer.Option("--units", help="units file")],
    harmful: Annotated[Path, typer.Option("--harmful", help=PROMPTS)],
    harmless: Annotated[Path, typer.Option("--harmless", help=PROMPTS)],
    roles: Roles = "SCU",
    mode: Annotated[str, typer.Option("--mode", help="mean, zero, resample")] = "mean",
    controls: Annotated[
        int, typer.Option("--controls", min=1, max=1000, help="matched random sets to generate with")
    ] = 3,
    limit: Annotated[
        Optional[int], typer.Option("--limit", min=1, help="at most this many prompts of each file")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, max=2048)] = 24,
    system: System = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measures the model without the units of a role, beside matched random sets."""
    from ssah_lens.config import AblateConfig
    from ssah_lens.intervene import MODES
    from ssah_lens.study import commands
    from ssah_lens.units import parse_roles

    shell = Shell(json_, quiet)
    chosen = parse_roles(roles)
    if mode not in MODES:
        raise BadInput(f"no ablation mode '{mode}': allowed are {', '.join(MODES)}")
    asked, ordinary = commands.read_limited(harmful, limit, seed), commands.read_limited(harmless, limit, seed)
    config = AblateConfig(controls=controls)
    load = loader(shell, device, dtype, system)
    result = run(
        shell,
        lambda: commands.run_ablate(
            load(model), units, chosen, mode, asked, ordinary, config, max_new_tokens, seed, shell.note
        ),
    )

    def table() -> None:
        rows = [("undamaged", result.baseline), (f"without {roles}", result.ablated)]
        rows += [(f"without random twin {i + 1}", b) for i, b in enumerate(result.controls)]
        print_table(
            f"{result.share.units:.2%} of units, {result.share.parameters:.2%} of parameters, {mode} ablation",
            ["", "harmful refused", "incoherent", "harmless refused", "perplexity of own answers"],
            [
                [
                    n,
                    counted(b.harmful.refused),
                    counted(b.harmful.incoherent),
                    counted(b.harmless.refused),
                    counted(b.utility.answer_perplexity),
                ]
                for n, b in rows
            ],
        )
        print(f"refusals lost beyond the random sets: {counted(result.effect)} (share of prompts, paired)")
        if result.damage:
            print(result.damage)

    shell.answer(result, table)


@app.command()
def transfer(
    before: Annotated[Path, typer.Argument(metavar="UNITS_BEFORE", help="units file before fine-tuning")],
    after: Annotated[Path, typer.Argument(metavar="UNITS_AFTER", help="units file of the tuned model, same score")],
    null: Annotated[
        Optional[Path], typer.Option("--null", help="units file of the first model on another calibration sample")
    ] = None,
    picture: Annotated[
        Optional[Path], typer.Option("--picture", help="draw it: .png, .svg, .pdf or .html (interactive)")
    ] = None,
    device: AnyDevice = "cpu",
    dtype: AnyDtype = "float32",
    seed: AnySeed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Which roles units had before fine-tuning and have after it, both cut at the sizes before."""
    from ssah_lens.study.transfer import doubts
    from ssah_lens.study.transfer import transfer as find
    from ssah_lens.units import UnitTable

    shell = Shell(json_, quiet)
    first, second = UnitTable.load(before), UnitTable.load(after)
    result = find(first, second, UnitTable.load(null) if null else None)
    for text in doubts(first, second, null is not None):
        shell.note(text)
    if picture:
        from ssah_lens.show.transfer_figures import picture as draw

        draw(result).save(picture)

    def table() -> None:
        roles = list(result.matrix)
        print_table(
            f"shares of all {result.n_units} units by {result.score}, roles cut at the sizes before",
            ["before", *(f"-> {r}" for r in roles), "held", "by chance", *(["held, null"] if result.null else [])],
            [
                [
                    b,
                    *(f"{result.matrix[b][a]:.2%}" for a in roles),
                    counted(result.held[b]) if b in result.held else "",
                    f"{result.chance[b]:.2f}" if b in result.chance else "",
                    *([counted(result.null.held[b]) if b in result.null.held else ""] if result.null else []),
                ]
                for b in roles
            ],
        )

    shell.answer(result, table)
