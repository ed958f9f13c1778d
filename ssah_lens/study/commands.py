"""What the single commands do: the study's own pieces on the user's files. The command line only parses and prints."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import overload

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet, instructions, pairs, prompt_set
from ssah_lens.chat.save import check_free, save_model
from ssah_lens.config import AblateConfig, AlignConfig, UnitsConfig
from ssah_lens.errors import BadInput
from ssah_lens.files import temporary
from ssah_lens.intervene.hooks import check_mode
from ssah_lens.intervene.resample import Bank
from ssah_lens.measure import utility
from ssah_lens.measure.judges import Outcome, judge
from ssah_lens.measure.refusal import refusals
from ssah_lens.results import (
    AblateReport,
    AlignReport,
    Checked,
    RefusalReport,
    UnitsReport,
)
from ssah_lens.score import score
from ssah_lens.score.contrast import counterpart
from ssah_lens.study.ablate import ablate_sets, damage
from ssah_lens.study.align import align, alignment_data, with_forms
from ssah_lens.study.behaviour import find_refusal_tokens, outcomes, yardstick
from ssah_lens.study.units import calibrate, find_units, harmless_mix, validation_prompts
from ssah_lens.train.data import rows_of
from ssah_lens.train.freeze import FrozenSlices, other_slices
from ssah_lens.units import Role, UnitTable

CHECK_PROMPTS = 60
"""Test prompts of the shipped collection that training commands are checked on."""
Note = Callable[[str], None]


def run_refusal(
    model: ChatModel, harmful: PromptSet, harmless: PromptSet | None, judge_name: str, max_new_tokens: int
) -> RefusalReport:
    """Refusal rate on harmful, over-refusal on harmless prompts."""
    ask = lambda p: outcomes(refusals(model, p, judge_name, max_new_tokens))
    return RefusalReport(model.name, judge_name, max_new_tokens, ask(harmful), ask(harmless) if harmless else None)


def run_align(
    load: Callable[[], ChatModel],
    out: Path,
    harmful: PromptSet | None,
    harmless: PromptSet | None,
    only: tuple[Path, list[Role]] | None,
    config: AlignConfig,
    seed: int,
    note: Note,
) -> AlignReport:
    """Aligns a model and saves it; nothing is written before training is through.

    Args:
        load: loads the model (after the output folder was checked).
        out: new folder.
        harmful, harmless: the user's prompts instead of the shipped ones.
        only: units file and roles, when only their parameters may change.
        config: how to train.
        seed: seed.
    """
    check_free(out)
    model = load()
    table = load_units(only[0], model, note) if only else None
    held_out = rows_of(model, instructions("validation").sample(CHECK_PROMPTS, 0))
    before = check_model(model, held_out)
    ours, twins = pairs("train")
    ours, ordinary = with_forms(ours, instructions("train").sample(config.ordinary, seed), config, seed)
    data = alignment_data(
        model,
        harmful or ours,
        None if harmless else twins.sample(config.twins, seed),
        harmless or ordinary,
        config,
        seed,
    )
    frozen = FrozenSlices(other_slices(model.anatomy, table.units(only[1]))) if table and only else None
    done = align(model, data, config, seed, frozen)
    after = check_model(model, held_out)
    save_model(model, out)
    return AlignReport(str(out), before, after, done.losses)


def run_units(
    model: ChatModel,
    unaligned: ChatModel | None,
    out: Path,
    harmful: PromptSet | None,
    harmless: PromptSet | None,
    config: UnitsConfig,
    layers: range | None,
    seed: int,
) -> UnitsReport:
    """Scores units and writes the units file; the user's own prompts are halved: one half scores, the other sizes.

    Scores that take long keep what is done in a folder beside the units file, and so do the sizes: a killed run
    resumes there.
    """
    score(config.score)
    if config.score == "contrast":
        counterpart(model, unaligned)
    check_writable(out)
    train_harmful, twins = pairs("train")
    validation, harmless_validation, spare = validation_prompts(config.validation, seed)
    calibration, validation = _halves(harmful, seed) if harmful else (train_harmful, validation)
    ordinary = instructions("train")
    harmless_train = harmless_mix(twins, ordinary, config.calibration, seed)
    spare_train = ordinary.without(harmless_train).sample(config.calibration, seed)
    if harmless:
        harmless_train, harmless_validation = _halves(harmless, seed)
    data = calibrate(
        model,
        unaligned,
        calibration.sample(config.calibration, seed),
        harmless_train.sample(config.calibration, seed),
        config,
        seed,
        spare=None if harmless else spare_train,
    )
    table, result = find_units(
        model,
        data,
        validation.sample(config.validation, seed),
        harmless_validation.sample(config.validation, seed),
        config,
        layers,
        out.with_suffix(".parts"),
        spare=None if harmless else spare,
    )
    table.save(out)
    return UnitsReport(str(out), result.score, result.seconds, result.roles, result)


def run_ablate(
    model: ChatModel,
    units: Path,
    roles: list[Role],
    mode: str,
    harmful: PromptSet,
    harmless: PromptSet,
    config: AblateConfig,
    max_new_tokens: int,
    seed: int,
    note: Note,
) -> AblateReport:
    """Ablates the union of roles on the user's prompts, beside matched random sets."""
    check_mode(mode)
    table = load_units(units, model, note)
    chosen = table.units(roles)
    if not len(chosen):
        raise BadInput(f"'{units}' has no units of role {', '.join(roles)}; choose another role")
    train_harmful, twins = pairs("train")
    ordinary = instructions("train")
    tokens = find_refusal_tokens(model, train_harmful.sample(48, seed), ordinary.sample(48, seed), seed)
    moments = bank = None
    if mode != "zero":
        defaults = UnitsConfig(score="wifv")
        mix = harmless_mix(twins, ordinary, defaults.calibration, seed)
        data = calibrate(model, None, train_harmful.sample(defaults.calibration, seed), mix, defaults, seed)
        moments = data.moments
        bank = Bank.collect(model, [*data.safety, *data.utility], seed) if mode == "resample" else None
    y = yardstick(model, harmful, harmless, tokens, max_new_tokens=max_new_tokens, choices=60)
    name = "+".join(roles)
    found = ablate_sets(model, {name: chosen}, moments, y, config, seed, [mode], bank)
    cut, controls = found.find(name, mode).behaviour, [c.behaviour for c in found.controls(name, mode)]
    return AblateReport(
        [str(r) for r in roles],
        mode,
        found.shares[name],
        found.baseline,
        cut,
        controls,
        found.score_controls[name],
        found.beyond_random(name, mode),
        damage(cut, controls),
    )


def load_units(file: Path, model: ChatModel, note: Note) -> UnitTable:
    """A units file for this model; made from other weights of the same shape it is used, and said so."""
    table = UnitTable.load(file, model.grid)
    made_from = table.provenance.get("model")
    if made_from != model.name:
        note(f"note: '{file}' was made from '{made_from}', the weights of '{model.name}' may differ")
    system = table.provenance.get("system")
    if system != model.system:
        note(f"note: '{file}' was made under the system prompt {system!r}, here it is {model.system!r}")
    return table


def check_model(model: ChatModel, held_out: list) -> Checked:
    """Refusal and over-refusal on the shipped test prompts, loss on held-out rows."""
    harmful, ordinary = pairs("test")[0].sample(CHECK_PROMPTS, 0), instructions("test").sample(CHECK_PROMPTS, 0)
    ask = lambda p: refusals(model, p, max_new_tokens=16)
    asked = ask(harmful)
    return Checked(
        outcomes(asked),
        outcomes(ask(ordinary)),
        tuple(asked.is_(Outcome.REFUSED).tolist()),
        utility.losses(model, held_out).mean if held_out else None,
        len(held_out),
    )


@overload
def read_limited(path: Path, limit: int | None, seed: int = 0, need_answers: bool = False) -> PromptSet: ...
@overload
def read_limited(path: Path | None, limit: int | None, seed: int = 0) -> PromptSet | None: ...
def read_limited(path: Path | None, limit: int | None, seed: int = 0, need_answers: bool = False) -> PromptSet | None:
    """A prompt file, shipped set ('harmful:test') or hub id, or None for no path; at most `limit` prompts."""
    return prompt_set(path, need_answers).sample(limit, seed) if path else None


def check_judge(name: str) -> None:
    """Raises BadInput for an unknown judge, before any model is loaded."""
    judge(name)


def check_writable(file: Path) -> None:
    """Raises BadInput when a file cannot be made here, before any long work."""
    if os.path.isdir(file):
        raise BadInput(f"'{file}' is a folder; --out takes a file name ending in .parquet")
    probe = temporary(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise BadInput(f"'{file}' cannot be written: {e.strerror}; choose another --out") from e


def _halves(prompts: PromptSet, seed: int) -> tuple[PromptSet, PromptSet]:
    if len(prompts) < 16:
        raise BadInput(f"'{prompts.name}' holds {len(prompts)} prompts; scores and sizes need at least 16")
    first = prompts.sample(len(prompts) // 2, seed)
    return first, replace(prompts, prompts=prompts.without(first).prompts)
