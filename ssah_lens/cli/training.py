"""Commands that train: align, finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ssah_lens.cli.app import app
from ssah_lens.cli.options import (
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
from ssah_lens.config import MAX_STEPS
from ssah_lens.errors import BadInput
from ssah_lens.show.terminal import print_training, safety_lost


@app.command()
def align(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="new folder for the aligned model")],
    harmful: OptionalFile = None,
    harmless: OptionalFile = None,
    train_only: Annotated[
        Optional[Path], typer.Option("--train-only", help="units file: only these roles' parameters change")
    ] = None,
    roles: Roles = "RU",
    steps: Annotated[Optional[int], typer.Option("--steps", min=1, max=MAX_STEPS)] = None,
    lr: Annotated[Optional[float], typer.Option("--lr", help="peak learning rate")] = None,
    system: System = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Teaches an unaligned model to refuse harmful prompts, and saves it."""
    from ssah_lens.config import COMMAND_ALIGN, AlignConfig
    from ssah_lens.study import commands
    from ssah_lens.study.estimate import estimate
    from ssah_lens.units import parse_roles

    shell = Shell(json_, quiet)
    only = (train_only, parse_roles(roles)) if train_only else None
    ours, ordinary = commands.read_limited(harmful, None), commands.read_limited(harmless, None)
    _check_rate(lr)
    given = {"steps": steps, "lr": lr}
    config = AlignConfig.model_validate(COMMAND_ALIGN | {k: v for k, v in given.items() if v is not None})
    load = loader(shell, device, dtype, system)
    shell.note(f"{config.steps} steps: {estimate(config.steps * 4 / 60 + 3, model)}")
    work = lambda: commands.run_align(lambda: load(model), out, ours, ordinary, only, config, seed, shell.note)
    result = run(shell, work)
    shell.answer(result, lambda: print_training(result))


@app.command()
def finetune(
    model: Model,
    data: Annotated[Path, typer.Option("--data", help="prompts with answers")],
    out: Annotated[Path, typer.Option("--out", help="new folder for the tuned model")],
    freeze: Annotated[
        Optional[Path], typer.Option("--freeze", help="units file: these roles' parameters are held")
    ] = None,
    roles: Annotated[
        Optional[str], typer.Option("--roles", help="default: SCU with --freeze, RU with --train-only")
    ] = None,
    top_cu: Annotated[
        float, typer.Option("--top-cu", min=0, max=1, help="also this share of all units, the safest CU")
    ] = 0.0,
    train_only: Annotated[
        Optional[Path], typer.Option("--train-only", help="units file: only these roles' parameters change")
    ] = None,
    method: Annotated[
        str,
        typer.Option("--method", help="full, lora, prefix, llama-adapter, safety-layers, first-token, mix-refusals"),
    ] = "full",
    layers: Annotated[
        Optional[str], typer.Option("--layers", help="A-B: the safety layers; early middle when not given")
    ] = None,
    mix: Annotated[float, typer.Option("--mix", help="refusals that mix-refusals adds, per row of data")] = 0.1,
    epochs: Annotated[float, typer.Option("--epochs", min=0.01)] = 1.0,
    lr: Annotated[Optional[float], typer.Option("--lr", help="peak learning rate; the method's own by default")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 8,
    policy: Annotated[
        str, typer.Option("--policy", help="blocks: embeddings, norms, unembedding are held; all: they are trained")
    ] = "blocks",
    curve_every: Annotated[
        int, typer.Option("--curve-every", min=0, help="measure refusal and loss every so many steps; 0 for never")
    ] = 0,
    checkpoint: Annotated[
        Optional[Path], typer.Option("--checkpoint", help="folder: an interrupted run resumes from there")
    ] = None,
    system: System = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tunes on your data, safety units frozen if asked, and says what became of safety."""
    from ssah_lens.study import commands, finetune
    from ssah_lens.train.methods import check_method
    from ssah_lens.train.trainable import check_policy
    from ssah_lens.units import parse_roles

    shell = Shell(json_, quiet)
    check_method(method)
    may_move = check_policy(policy)
    _check_rate(lr)
    if (roles or top_cu) and not (freeze or train_only):
        raise BadInput("--roles and --top-cu say which units of a units file: give --freeze UNITS, or leave them out")
    if top_cu and train_only:
        raise BadInput("--top-cu belongs to --freeze; leave it out, or name the roles to train with --roles")
    prompts = commands.read_limited(data, None, need_answers=True)
    options = finetune.FinetuneOptions(
        method=method,
        freeze=(freeze, parse_roles(roles or "SCU"), top_cu) if freeze else None,
        only=(train_only, parse_roles(roles or "RU")) if train_only else None,
        layers=layer_span(layers),
        mix=mix,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        policy=may_move,
        curve_every=curve_every,
        checkpoints=checkpoint,
        seed=seed,
    )
    load = loader(shell, device, dtype, system)
    result = run(shell, lambda: finetune.run_finetune(lambda: load(model), prompts, out, options, shell.note))
    shell.note(safety_lost(result.lost))
    shell.answer(result, lambda: print_training(result))


def _check_rate(lr: float | None) -> None:
    if lr is not None and not 0 < lr < 1:
        raise BadInput(f"--lr is {lr}; allowed is above 0 and below 1, for example 5e-5")
