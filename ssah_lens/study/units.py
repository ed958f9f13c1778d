"""H4, first half: score every unit on train prompts, cut the scores into roles on validation prompts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet, instructions, pairs
from ssah_lens.config import UnitsConfig
from ssah_lens.errors import BadInput
from ssah_lens.intervene.moments import Moments, collect
from ssah_lens.measure.judges import Outcome, judge
from ssah_lens.measure.refusal import Refusals, ask
from ssah_lens.results import RoleShare, UnitsResult
from ssah_lens.score import NEED_TOKENS, score
from ssah_lens.score.base import Calibration, Effects, Measured, Scores
from ssah_lens.score.roles import assign
from ssah_lens.study.behaviour import find_refusal_tokens, own_answers
from ssah_lens.study.keep import anew, keep_in
from ssah_lens.study.sizes import Validation, choose_sizes, measure_cut
from ssah_lens.units import Kind, UnitTable

ANSWER_TOKENS = 16
FULFILLING_PREFIX = "Sure, here is"
"""Without an unaligned counterpart, the fulfilling answer is what the model itself says after this opening; the score
`mask` also reads the log-odds of refusing, which need no answer at all."""
MIN_REFUSED = 8
"""With fewer refusals of its own a model has no safety data: only I_U and RU exist then."""


def calibrate(
    model: ChatModel,
    unaligned: ChatModel | None,
    harmful: PromptSet,
    harmless: PromptSet,
    config: UnitsConfig,
    seed: int,
    refusal_tokens: Sequence[int] = (),
    spare: PromptSet | None = None,
) -> Calibration:
    """Collects calibration data from train prompts: own refusals, own answers, fulfilling answers, moments.

    Args:
        model: the model to be scored.
        unaligned: its counterpart that fulfils, or None.
        harmful: harmful train prompts; those that the model refuses are the safety data.
        harmless: harmless train prompts; those that it answers are the utility data.
        config: steps of scores that learn, how much the exact score measures.
        seed: seed of whatever a score draws.
        refusal_tokens: tokens that open the model's refusals; found here when the score needs them and none are given.
        spare: harmless train prompts that are asked as well when the model answers too few of the others.
    """
    if unaligned is not None and unaligned.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise BadInput(f"'{unaligned.name}' has another vocabulary than '{model.name}': it is not its counterpart")
    if not refusal_tokens and config.score in NEED_TOKENS:
        refusal_tokens = find_refusal_tokens(model, harmful, harmless, seed)
    calibration = partial(
        Calibration,
        seed=seed,
        steps=config.steps,
        unaligned=unaligned,
        refusal_tokens=tuple(refusal_tokens),
        measured=Measured(config.exact_units, config.exact_prompts),
    )
    safe, useful = ask(model, [harmful, harmless], max_new_tokens=ANSWER_TOKENS)
    refused, answers = _kept(model, harmful, safe, Outcome.REFUSED)
    answered, replies = _enough(model, harmless, useful, spare)
    safety = model.rows(refused.texts, answers, refused.systems)
    utility = model.rows(answered.texts, replies, answered.systems)
    if len(refused) < MIN_REFUSED:
        return calibration([], utility, [], Moments.zeros(model), collect(model, utility))
    if unaligned is not None:
        fulfilling = own_answers(unaligned, refused, ANSWER_TOKENS, "fulfilling answers")
    else:
        prefix = model.response_tokens(FULFILLING_PREFIX, ended=False)
        said = own_answers(model, refused, ANSWER_TOKENS, "fulfilling answers", prefix=prefix)
        outcomes = judge("keyword")(refused.texts, [model.text(t[len(prefix) :]) for t in said])
        # A well aligned model takes the opening back: of such an answer only the opening can be learnt from.
        fulfilling = [prefix if o is Outcome.REFUSED else t for t, o in zip(said, outcomes, strict=True)]
    return calibration(
        safety,
        utility,
        model.rows(refused.texts, fulfilling, refused.systems),
        collect(model, safety, "moments, harmful"),
        collect(model, utility, "moments, harmless"),
    )


def find_units(
    model: ChatModel,
    data: Calibration,
    harmful: PromptSet,
    harmless: PromptSet,
    config: UnitsConfig,
    layers: range | None = None,
    store: Path | None = None,
    effects: Effects | None = None,
    spare: PromptSet | None = None,
) -> tuple[UnitTable, UnitsResult]:
    """Scores all units and chooses the roles.

    Args:
        model: the model.
        data: calibration data (train split).
        harmful, harmless: validation prompts.
        config: which score.
        layers: layers whose units may become SCU, UCU or RU; all when None.
        store: folder where scores that take long, and the sizes tried, keep what is done; None keeps nothing.
        effects: how the exact score measures; in one sweep when None.
        spare: harmless prompts that are asked as well when the model answers too few of the others.
    """
    data = replace(data, measured=replace(data.measured, layers=layers, store=store, effects=effects))
    started = time.perf_counter()
    scores: Scores = replace(score(config.score)(model, data), layers=layers)
    seconds = time.perf_counter() - started
    answered, replies = answered_by(model, harmless, spare)
    validation = Validation(harmful, model.rows(answered.texts, replies, answered.systems))
    base = measure_cut(model, validation)
    keep = anew if store is None else keep_in(store, _digest(scores, validation))
    sizes, picked = choose_sizes(model, scores, data.moments, validation, base, config.scu, bool(data.safety), keep)
    roles = assign(model.grid, scores, sizes)
    provenance = {"score": config.score, "model": model.name, "seed": data.seed, "calibration": len(data.safety)}
    provenance |= {"signed": scores.signed, "layers": [layers.start, layers.stop] if layers else None}
    provenance |= {"system": model.system, "notes": model.notes}
    provenance |= {"validation": len(harmful), "reached": {str(r): s.reached for r, s in picked.items()}}
    table = UnitTable(model.grid, scores.safety, scores.utility, roles, provenance, importance=scores.importance)
    return table, UnitsResult(
        score=config.score,
        seconds=seconds,
        calibration=len(data.safety),
        validation=len(harmful),
        base_refused=base[0],
        base_answer_loss=base[1],
        sizes={str(r): s for r, s in picked.items()},
        roles=role_shares(table),
        by_layer={str(r): sum(u.masks[k].sum(1) for k in Kind).tolist() for r, u in roles.items()},
    )


def _digest(scores: Scores, validation: Validation) -> str:
    """Of all that a candidate's measurement follows from."""
    out = hashlib.sha256(repr((validation.harmful.texts, validation.answers, validation.max_new_tokens)).encode())
    for values in (scores.safety, scores.utility):
        for kind in Kind:
            out.update(np.ascontiguousarray(values[kind]).tobytes())
    return out.hexdigest() + str(scores.layers)


def role_shares(table: UnitTable) -> dict[str, RoleShare]:
    """Size of every role."""
    return {str(r): RoleShare(u.share.n, u.share.units, u.share.parameters) for r, u in table.roles.items()}


def harmless_mix(twins: PromptSet, ordinary: PromptSet, n: int, seed: int) -> PromptSet:
    """n harmless prompts, half twins and half ordinary: a unit must not score as safety because of its topic."""
    return PromptSet("harmless", (*twins.sample(n // 2, seed), *ordinary.sample(n - n // 2, seed)))


def validation_prompts(n: int, seed: int) -> tuple[PromptSet, PromptSet, PromptSet]:
    """n harmful prompts of the shipped validation split, n harmless ones, and up to n ordinary ones to spare."""
    harmful, twins = pairs("validation")
    ordinary = instructions("validation")
    harmless = harmless_mix(twins, ordinary, n, seed)
    return harmful.sample(n, seed), harmless, ordinary.without(harmless).sample(n, seed)


def answered_by(
    model: ChatModel, harmless: PromptSet, spare: PromptSet | None = None
) -> tuple[PromptSet, list[list[int]]]:
    """The harmless prompts that the model answers, with its answers as response tokens.

    Those that it refuses are left out: losing an over-refusal is no loss of utility. A model that refuses most twins is
    asked the spare prompts too.

    Raises:
        BadInput: it answers too few.
    """
    (found,) = ask(model, [harmless], max_new_tokens=ANSWER_TOKENS, what="validation answers")
    return _enough(model, harmless, found, spare)


def _enough(
    model: ChatModel, harmless: PromptSet, found: Refusals, spare: PromptSet | None
) -> tuple[PromptSet, list[list[int]]]:
    """The prompts that were answered, with the answers; those of the spare ones where they are too few.

    Raises:
        BadInput: they are too few even so.
    """
    answered, replies = _kept(model, harmless, found, Outcome.FULFILLED)
    asked = len(harmless)
    if spare is not None and len(answered) < MIN_REFUSED:
        (found,) = ask(model, [spare], max_new_tokens=ANSWER_TOKENS, what="more answers")
        more, said = _kept(model, spare, found, Outcome.FULFILLED)
        answered, replies = PromptSet(harmless.name, (*answered, *more)), replies + said
        asked += len(spare)
    if len(answered) < MIN_REFUSED:
        raise BadInput(
            f"{model.name} answers {len(answered)} of {asked} harmless prompts; utility needs {MIN_REFUSED}: "
            "ask more (units.calibration, units.validation); a model that was aligned here and now refuses or garbles "
            "ordinary requests wants a lower learning rate (align.lr, or --lr of the command)"
        )
    return answered, replies


def _kept(model: ChatModel, prompts: PromptSet, found: Refusals, outcome: Outcome) -> tuple[PromptSet, list[list[int]]]:
    rows = np.flatnonzero(found.is_(outcome))
    end = lambda t: t + [model.turn_end] if len(t) < ANSWER_TOKENS else t
    kept: tuple[Prompt, ...] = tuple(prompts[i] for i in rows)
    return PromptSet(prompts.name, kept), [end(found.tokens[i]) for i in rows]
