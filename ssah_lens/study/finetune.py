"""`ssah-lens finetune`: the user's model on the user's data by one of the methods, safety and task before and after."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet, pairs
from ssah_lens.chat.save import check_free
from ssah_lens.errors import BadInput
from ssah_lens.measure import utility
from ssah_lens.measure.refusal import refusals
from ssah_lens.results import Checked, CurvePoint, FinetuneReport, Frozen
from ssah_lens.stats import paired_difference
from ssah_lens.study.commands import Note, check_model, load_units
from ssah_lens.study.freeze import frozen_set
from ssah_lens.train.adapters import save_tuned
from ssah_lens.train.checkpoint import Checkpoints
from ssah_lens.train.data import check_rows, rows_of
from ssah_lens.train.freeze import FrozenSlices, layer_slices, owned_slices
from ssah_lens.train.loop import Diverged, Trained, TrainSettings
from ssah_lens.train.methods import MIX, Method, check_method, check_units, default_lr, tune
from ssah_lens.train.trainable import Policy, trainable_parts
from ssah_lens.units import Role, UnitSet

HELD_OUT = 0.1
"""Share of the rows kept for the validation loss, when there are 10 or more."""
CURVE_PROMPTS = 24
"""Harmful validation prompts asked at each point of the curve; the test prompts are left for before and after."""
CURVE_TOKENS = 12
MAX_EPOCHS = 1000
CHECKPOINT_EVERY = 50
"""Most steps between two checkpoints; a short run makes ten of them."""


@dataclass(frozen=True)
class FinetuneOptions:
    """What the command line says.

    Attributes:
        method: one of `train.methods.METHODS`.
        freeze: units file, roles and share of top CU to hold.
        only: units file and roles, when only their parameters may change.
        layers: the safety layers.
        mix: refusals mixed in, per row.
        epochs: passes over the data.
        lr: peak learning rate; the method's own when None.
        batch_size: examples per step.
        policy: what training may move at all.
        curve_every: steps between two points of the curve; 0 for no curve.
        checkpoints: folder of the checkpoint; None for none.
        seed: order of the data.
    """

    method: str = "full"
    freeze: tuple[Path, list[Role], float] | None = None
    only: tuple[Path, list[Role]] | None = None
    layers: range | None = None
    mix: float = MIX
    epochs: float = 1.0
    lr: float | None = None
    batch_size: int = 8
    policy: Policy = "blocks"
    curve_every: int = 0
    checkpoints: Path | None = None
    seed: int = 0


def run_finetune(
    load: Callable[[], ChatModel], data: PromptSet, out: Path, options: FinetuneOptions, note: Note
) -> FinetuneReport:
    """Fine-tunes and saves; nothing is written to `out` before training is through.

    Raises:
        BadInput: an option, data or units that do not fit; no room to save; or a loss that is not finite, in which
            case the last good state has been saved.
    """
    check_method(options.method)
    check_options(options)
    check_free(out)
    model = load()
    method = _method(model, options, note)
    _check_something_left(model, method, options.policy)
    rows, held = _split(model, data, options.seed)
    _check_space(model, out)
    lr = default_lr(options.method) if options.lr is None else options.lr
    n_rows = len(rows) + (max(1, round(options.mix * len(rows))) if options.method == "mix-refusals" else 0)
    batch_size = min(options.batch_size, n_rows)
    steps = max(1, math.ceil(options.epochs * n_rows / batch_size))
    settings = TrainSettings(steps=steps, batch_size=batch_size, lr=lr, seed=options.seed, policy=options.policy)
    every = min(CHECKPOINT_EVERY, max(1, steps // 10))
    checkpoints = Checkpoints(options.checkpoints, every) if options.checkpoints else None
    before = check_model(model, held)
    try:
        tuned = tune(
            model,
            rows,
            settings,
            method,
            look=lambda m: _look(m, held),
            every=options.curve_every,
            checkpoints=checkpoints,
        )
    except Diverged as e:
        if not e.trained.losses:
            raise BadInput(f"{e}; nothing was saved") from e
        save_tuned(e.model, out)
        raise BadInput(f"{e}; that state is saved in '{out}'") from e
    after = check_model(tuned.model, held)
    save_tuned(tuned.model, out)
    if checkpoints:
        checkpoints.file.unlink(missing_ok=True)
    return _report(model, out, before, after, tuned.trained, options.method, lr)


def check_options(options: FinetuneOptions) -> None:
    """Refuses numbers out of range, and options that would be left unused without a word, before a model is loaded.

    Raises:
        BadInput: which one, and what is allowed.
    """
    if not 0 < options.epochs <= MAX_EPOCHS:
        raise BadInput(f"--epochs is {options.epochs}; allowed is above 0 and at most {MAX_EPOCHS}")
    if options.batch_size < 1:
        raise BadInput(f"--batch-size is {options.batch_size}; allowed is 1 or more")
    if not 0 < options.mix <= 1:
        raise BadInput(f"--mix is {options.mix}; allowed is above 0 and at most 1, for example 0.1")
    if options.freeze is not None and not 0 <= options.freeze[2] <= 1:
        raise BadInput(f"--top-cu is {options.freeze[2]}; allowed is a share of all units from 0 to 1")
    if options.checkpoints is not None and os.path.isfile(options.checkpoints):
        raise BadInput(f"'{options.checkpoints}' is a file; --checkpoint takes a folder, which need not exist")
    if options.freeze and options.only:
        raise BadInput("--freeze and --train-only exclude each other; give one of them")
    if options.layers is not None and options.method != "safety-layers":
        raise BadInput(f"--layers belongs to --method safety-layers, not to {options.method}; leave it out")


def _method(model: ChatModel, options: FinetuneOptions, note: Note) -> Method:
    freeze: UnitSet | None = None
    only: UnitSet | None = None
    if options.freeze:
        file, roles, top_cu = options.freeze
        freeze = frozen_set(load_units(file, model, note), roles, top_cu)
    elif options.only:
        file, roles = options.only
        only = load_units(file, model, note).units(roles)
        if not len(only):
            raise BadInput(f"'{file}' has no units of role {', '.join(roles)}: nothing would be trained")
    return Method(options.method, freeze, only, options.layers, options.mix)


def _check_something_left(model: ChatModel, method: Method, policy: Policy) -> None:
    """Units and layers that a method cannot hold are refused now, not after the model was measured."""
    check_units(method)
    if method.layers is not None:
        trainable_parts(model, FrozenSlices(layer_slices(model.anatomy, method.layers)), policy)
    elif method.freeze is not None:
        trainable_parts(model, FrozenSlices(owned_slices(model.anatomy, method.freeze)), policy)


def _split(model: ChatModel, data: PromptSet, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out; rows with the same prompt stay on one side."""
    rows = rows_of(model, data)
    check_rows(model, rows, f"'{data.name}'")
    held = set(data.sample(max(1, round(HELD_OUT * len(data))), seed).texts) if len(data) >= 10 else set()
    kept = [row for row, p in zip(rows, data, strict=True) if p.text not in held]
    if not kept:
        return rows, []
    return kept, [row for row, p in zip(rows, data, strict=True) if p.text in held]


def _check_space(model: ChatModel, out: Path) -> None:
    need = sum(p.numel() * p.element_size() for p in model.plain.parameters())
    free = shutil.disk_usage(out.parent).free
    if free < need:
        raise BadInput(
            f"'{out.parent}' has {free / 1e6:.0f} MB free and the tuned model takes {need / 1e6:.0f} MB; "
            "make room or choose another --out"
        )


def _look(model: ChatModel, held: list[Row]) -> dict[str, float]:
    asked = pairs("validation")[0].sample(CURVE_PROMPTS, 0)
    seen = {"refused": refusals(model, asked, max_new_tokens=CURVE_TOKENS).rate().value}
    return seen | ({"validation_loss": utility.losses(model, held).mean} if held else {})


def _report(
    model: ChatModel, out: Path, before: Checked, after: Checked, done: Trained, method: str, lr: float
) -> FinetuneReport:
    share = done.frozen_parameters / model.grid.block_parameters
    return FinetuneReport(
        str(out),
        before,
        after,
        paired_difference(before.refused, after.refused),
        done.losses,
        Frozen(done.frozen_parameters, share, done.unchanged, done.sha256),
        method,
        lr,
        done.trained_parameters,
        tuple(CurvePoint(step, seen["refused"], seen.get("validation_loss")) for step, seen in done.curve),
    )
