"""The command line: parse, call study, print. Standard output carries the answer only; notes go to standard error."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer

from ssah_lens.cli_options import (
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
from ssah_lens.errors import BadInput, Fault, SsahLensError
from ssah_lens.show.terminal import estimate, print_direction, print_table, print_training, strongest_cells
from ssah_lens.show.text import printable

app = typer.Typer(
    help="Tests whether safety lives in a few units behind one binary choice: refuse or fulfil.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="The shipped prompt collection.", no_args_is_help=True)
app.add_typer(data_app, name="data")

PROMPTS = "prompt file, shipped set (harmful:test) or hub id (hub:owner/name)"
SCORES = "attribution, attribution-ig, contrast (needs --unaligned), exact, mask, snip, wanda, wifv"

# ---- weights and data


@app.command()
def models(json_: Json = False, quiet: Quiet = False) -> None:
    """Built-in models: sizes, licences, what is cached."""
    from ssah_lens.chat.built_in import BUILT_IN, cached_folder, is_cached

    rows = [
        {
            "name": b.name,
            "parameters": b.parameters,
            "download_bytes": b.n_bytes,
            "licence": b.licence,
            "aligned": b.aligned,
            "description": b.description,
            "cached": is_cached(b.name),
            "folder": str(cached_folder(b.name)),
        }
        for b in BUILT_IN.values()
    ]

    def table() -> None:
        print_table(
            "Built-in models",
            ["name", "parameters", "download", "licence", "aligned", "cached"],
            [
                [
                    r["name"],
                    f"{r['parameters'] / 1e6:.0f}M",
                    f"{r['download_bytes'] / 1e6:.0f} MB",
                    r["licence"],
                    r["aligned"],
                    "yes" if r["cached"] else "no",
                ]
                for r in rows
            ],
        )

    Shell(json_, quiet).answer({"models": rows}, table)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="built-in name")], json_: Json = False, quiet: Quiet = False
) -> None:
    """Downloads a built-in model, checks it and keeps it as safetensors."""
    from ssah_lens.chat import built_in

    shell = Shell(json_, quiet)
    folder = run(shell, lambda: built_in.fetch(name, shell.note))
    shell.answer({"name": name, "folder": str(folder)}, lambda: print(folder))


@data_app.command("check")
def data_check(json_: Json = False, quiet: Quiet = False) -> None:
    """Validates the shipped collection: counts, near-duplicates, splits, how well its sides are matched."""
    from ssah_lens.chat.check import check_collection

    shell = Shell(json_, quiet)
    found = check_collection()
    for problem in found.problems:
        shell.note(problem)
    if found.problems:
        raise Fault(f"the shipped collection has {len(found.problems)} problems, the first: {found.problems[0]}")

    def table() -> None:
        listed = lambda counts: ", ".join(f"{k} {v}" for k, v in counts.items())
        print_table(
            "Shipped collection: no problems",
            ["file", "rows", "by split", "by kind"],
            [[n, str(c.rows), listed(c.splits), listed(c.groups)] for n, c in found.files.items()],
        )
        print(f"all files loaded in {found.load_seconds:.3f} s")
        m, no_model = found.matching, "no tokenizer here; ssah-lens fetch smollm2-135m"
        rows = [
            ["phrasings", listed(found.files["refusal_pairs"].phrasings)],
            ["words a prompt, harmful and harmless", f"{m.words[0]:.1f}, {m.words[1]:.1f}"],
            ["AUROC of the number of words", estimate(m.length_auroc)],
            ["AUROC of word counts, train to test", f"{estimate(m.leak.matched)}, n={m.leak.matched.n} prompts"],
            ["  harmful side scores above its own twin", f"{estimate(m.leak.twins)}, n={m.leak.twins.n} pairs"],
            [
                "  harmful against ordinary instructions",
                f"{estimate(m.leak.unmatched)}, n={m.leak.unmatched.n} prompts",
            ],
            [
                "  words that lean (harmful:harmless)",
                listed({w.word: f"{w.harmful}:{w.harmless}" for w in m.leak.words}),
            ],
            ["most frequent opening", f"'{m.template}', {m.template_share:.1%} of the pairs"],
            [
                "token-aligned pairs",
                f"{listed(m.aligned)}, all of these {m.aligned_everywhere}" if m.aligned else no_model,
            ],
        ]
        print_table("Pairs: how well the sides are matched", ["", ""], rows)

    shell.answer(found, table)


# ---- the study


@app.command()
def study(
    model: Annotated[str, typer.Option("--model", help="built-in name, folder, .gguf file or hub id")] = "smollm2-135m",
    unaligned: Annotated[Optional[str], typer.Option("--unaligned", help="its unaligned counterpart")] = None,
    profile: Annotated[Optional[str], typer.Option("--profile", help="quick, standard, full")] = None,
    config: Annotated[Optional[Path], typer.Option("--config", help="TOML over the profile")] = None,
    out: Annotated[Path, typer.Option("--out", help="run folder; an interrupted run resumes there")] = Path(
        "runs/study"
    ),
    stages: Annotated[Optional[str], typer.Option("--stages", help="some stages only, separated by commas")] = None,
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
                [r.id, r.claim, estimate(r.effect), estimate(r.control) if r.control else "", str(r.verdict)]
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


# ---- single commands


@app.command()
def refusal(
    model: Model,
    harmful: Annotated[Path, typer.Option("--harmful", help=PROMPTS)],
    harmless: OptionalFile = None,
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
    files = [commands.read_limited(f, limit, seed) for f in (harmful, harmless)]
    result = run(
        shell, lambda: commands.run_refusal(loader(shell, device, dtype, system)(model), *files, judge, max_new_tokens)
    )

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
    system: System = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Teaches an unaligned model to refuse harmful prompts, and saves it."""
    from ssah_lens.config import AlignConfig
    from ssah_lens.study import commands
    from ssah_lens.units import parse_roles

    shell = Shell(json_, quiet)
    only = (train_only, parse_roles(roles)) if train_only else None
    files = [commands.read_limited(f, None) for f in (harmful, harmless)]
    config = AlignConfig(steps=steps) if steps else AlignConfig()
    load = loader(shell, device, dtype, system)
    shell.note(
        f"{config.steps} steps: about {config.steps * 2.5 / 60 + 1.5:.0f} minutes on two CPU cores for smollm2-135m"
    )
    result = run(shell, lambda: commands.run_align(lambda: load(model), out, *files, only, config, seed, shell.note))
    shell.answer(result, lambda: print_training(result))


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
    files = [commands.read_limited(f, None) for f in (safety, utility)]
    given = {"calibration": limit, "steps": steps}
    config = UnitsConfig(score=score, **COMMAND_UNITS | {k: v for k, v in given.items() if v})
    load = loader(shell, device, dtype, system)
    minutes = "50 minutes" if score == "exact" else "7 minutes"
    shell.note(
        f"scores, then sizes by ablation: about {minutes} on two CPU cores for smollm2-135m, twenty times that for a "
        "model of 1.5 billion; a run that was killed resumes"
    )

    def work():
        aligned = load(model)
        if span and span.stop > aligned.grid.n_layers:
            raise BadInput(f"--layers {layers}: the model has layers 0-{aligned.grid.n_layers - 1}")
        return commands.run_units(aligned, load(unaligned) if unaligned else None, out, *files, config, span, seed)

    result = run(shell, work)
    shell.answer(
        result,
        lambda: print_table(
            f"Units by {result.score}, in {result.out}",
            ["role", "units", "share of units", "share of parameters"],
            [[r, str(s.n), f"{s.units:.2%}", f"{s.parameters:.2%}"] for r, s in result.roles.items()],
        ),
    )


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
    files = [commands.read_limited(f, limit, seed) for f in (harmful, harmless)]
    config = AblateConfig(controls=controls)
    load = loader(shell, device, dtype, system)
    result = run(
        shell,
        lambda: commands.run_ablate(load(model), units, chosen, mode, *files, config, max_new_tokens, seed, shell.note),
    )

    def table() -> None:
        rows = [("undamaged", result.baseline), (f"without {roles}", result.ablated)]
        rows += [(f"without random twin {i + 1}", b) for i, b in enumerate(result.controls)]
        print_table(
            f"{result.share.units:.2%} of units, {result.share.parameters:.2%} of parameters, {mode} ablation",
            ["", "harmful refused", "incoherent", "harmless refused", "perplexity of answers"],
            [
                [
                    n,
                    estimate(b.harmful.refused),
                    estimate(b.harmful.incoherent),
                    estimate(b.harmless.refused),
                    f"{b.utility.answer_perplexity.value:.2f}",
                ]
                for n, b in rows
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
    resolved = study_config(config, **named)
    files = [read_limited(f, limit, seed) for f in (harmful, harmless)]

    def work():
        from ssah_lens.study.direction_command import run_direction
        from ssah_lens.study.runner import MINUTES

        about = MINUTES[resolved.profile]["direction"]
        shell.note(f"profile {resolved.profile}: about {about} minutes on two CPU cores for smollm2-135m")
        return run_direction(resolved, out, *files, shell.note)

    result = run(shell, work)
    shell.answer(result, lambda: print_direction(result))


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
    check_policy(policy)
    if lr is not None and not 0 < lr < 1:
        raise BadInput(f"--lr is {lr}; allowed is above 0 and below 1, for example 5e-5")
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
        policy=policy,
        curve_every=curve_every,
        checkpoints=checkpoint,
        seed=seed,
    )
    load = loader(shell, device, dtype, system)
    result = run(shell, lambda: finetune.run_finetune(lambda: load(model), prompts, out, options, shell.note))
    fell = result.before.harmful.refused.value - result.after.harmful.refused.value
    if fell > 0.05:
        shell.note(
            f"warning: refusals of harmful prompts fell by {fell * 100:.0f} points; the tuned model is less safe"
        )
    shell.answer(result, lambda: print_training(result))


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
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Which roles units had before fine-tuning and have after it, both cut at the sizes before."""
    from ssah_lens.study.transfer import transfer as find
    from ssah_lens.units import UnitTable

    shell = Shell(json_, quiet)
    result = find(*(UnitTable.load(f) for f in (before, after)), UnitTable.load(null) if null else None)
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
                    estimate(result.held[b]) if b in result.held else "",
                    f"{result.chance[b]:.2f}" if b in result.chance else "",
                    *([estimate(result.null.held[b]) if b in result.null.held else ""] if result.null else []),
                ]
                for b in roles
            ],
        )

    shell.answer(result, table)


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
    noising: Annotated[bool, typer.Option("--noising", help="corrupted into clean, instead of clean into it")] = False,
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
        print_table("Strongest", [*result.axes, "effect"], strongest_cells(result))
        print(f"pictures: {out / 'patching.png'}, {out / 'patching.html'}")

    shell.answer(result, table)


# ---- entry


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


if __name__ == "__main__":
    main()
