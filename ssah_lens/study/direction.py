"""H1 to H3: is refuse-or-fulfil one binary choice, and where is it made?

The direction comes from train prompts, the block, position and cell from validation prompts, every number from test
prompts. A model that hardly ever refuses has no choice to read: then the direction is that of harm, and it is said so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssah_lens import stats
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import PromptSet
from ssah_lens.config import DirectionConfig, limit
from ssah_lens.direction import chain
from ssah_lens.direction.choice import Choice, calibrated
from ssah_lens.direction.extract import cells, differences, extract
from ssah_lens.direction.separability import areas
from ssah_lens.direction.states import collect_states
from ssah_lens.intervene.steer import added
from ssah_lens.measure.judges import Outcome
from ssah_lens.measure.refusal import ask
from ssah_lens.results import (
    BeforeAlignment,
    CandidateDirection,
    Chain,
    ChainHead,
    DirectionReport,
    DirectionResult,
    Distances,
    Onset,
    Readout,
    Steered,
)
from ssah_lens.study.behaviour import outcomes
from ssah_lens.study.direction_data import DirectionData
from ssah_lens.study.direction_verdicts import direction_rows
from ssah_lens.study.interchanges import Keep, Part, interchanges
from ssah_lens.study.onset import distance_probe, onset
from ssah_lens.study.readouts import CHOICE, HARM, Labelled, readout
from ssah_lens.study.steering import ABLATED, ADDED, UNDAMAGED, Steering

MIN_SIDE = 8
"""With fewer refused harmful (or answered harmless) train prompts there is no choice to take a mean of."""
TOP_HEADS = 8
WEIGHED = 24
"""Train prompts on each side that say how much each first token weighs in the chain."""
Note = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """The direction and its selection table, as the result holds them."""

    vector: tuple[float, ...]
    layer: int
    position: int
    table: tuple[CandidateDirection, ...]
    relaxed: bool
    base_scores: tuple[float, float]


def study_direction(
    model: ChatModel,
    unaligned: ChatModel | None,
    data: DirectionData,
    tokens: Sequence[int],
    config: DirectionConfig,
    seed: int,
    judge: str = "keyword",
    note: Note = lambda _: None,
    keep: Keep = lambda _, __, make: make(),
) -> DirectionResult:
    """Measures everything about the direction.

    Args:
        model: the model under study.
        unaligned: its unaligned counterpart, or None: then KL by token, forced refusals and 'before' are left out.
        data: prompts by split.
        tokens: refusal-opening token ids of the model, found on train prompts.
        config: sizes.
        seed: seed.
        judge: which judge.
        note: told what is under way.
        keep: called with the name, type and maker of each part; an interrupted run gives back what it kept.
    """
    tokens = tuple(tokens)
    note("direction: states and choices")
    train = _asked(model, data.train, [data.train_ordinary], [], tokens, config, judge)
    choice = _calibrate(train, tokens)
    by_choice = _enough(train)
    validation = _scored(model, data.validation, data.validation_ordinary, choice)
    note("direction: selection")
    chosen = keep("selection", Chosen, lambda: _extract(model, train, validation, choice, by_choice, config))
    vector, layer = torch.tensor(chosen.vector), chosen.layer
    note("direction: ablation and addition on test prompts")
    steering = Steering(model, data.harmful, data.ordinary, tokens, judge, config.max_new_tokens)
    steered = keep("steered", tuple[Steered, ...], lambda: steering.all(vector, layer, config.controls, seed))
    note("direction: read-outs")
    test = _asked(model, data.test, [data.ordinary], [data.safe, data.unsafe], tokens, config, judge)
    parts = [part.labelled for part in (train, validation, test)]
    found = [readout(target, *parts, config.shuffles, seed) for target in (CHOICE, HARM)]
    skipped = [] if found[0] else ["AUROC of the choice: the model refuses, or answers, too few prompts"]
    readouts = tuple(r for r in found if r is not None)
    note("direction: interchange")
    swapped, why = interchanges(model, data, train, test, choice, vector, config, seed, keep)
    note("direction: distances, onset, chain")
    models = {"aligned": model} | ({"unaligned": unaligned} if unaligned is not None else {})
    near = data.harmful.sample(limit(config.distance), seed)
    probe = keep("distances", tuple[Distances, ...], lambda: distance_probe(models, near, seed=seed))
    asked = data.harmful, data.ordinary
    deep = keep("onset", Onset, lambda: onset(model, unaligned, *asked, vector, layer, config, judge, seed))
    if unaligned is None:
        skipped.append("KL by token, forced refusals and the direction before alignment: no unaligned model was given")
    before = _before(model, unaligned, data, train, test, chosen, readouts, config, judge) if unaligned else None
    refused = train.labelled.choice
    return DirectionResult(
        layer=layer,
        position=chosen.position,
        positions=train.labelled.states.labels,
        threshold=choice.threshold,
        agreement=choice.agreement,
        refused_train=(int(refused.sum()), len(refused)),
        by_choice=by_choice,
        vector=chosen.vector,
        candidates=chosen.table,
        relaxed=chosen.relaxed,
        base_scores=chosen.base_scores,
        steered=steered,
        readouts=readouts,
        interchange=swapped,
        distances=probe,
        onset=deep,
        chain=_chain(model, data, train, tokens, config, seed),
        before=before,
        skipped=(*skipped, *why),
    )


def direction_report(r: DirectionResult, out: str) -> DirectionReport:
    """What the command prints of a result."""
    flips: dict[str, dict] = {}
    for found in r.interchange[:1]:
        for f in found.flips:
            flips.setdefault(str(f.rank), {})[f.basis] = f.flipped
    auroc = {x.target: x.auroc for x in r.readouts} | {f"{x.target}, probe": x.probe_auroc for x in r.readouts}
    return DirectionReport(
        out,
        r.layer,
        r.position,
        auroc,
        *(r.find(name) for name in (UNDAMAGED, ABLATED, ADDED)),
        {name: r.controls(name) for name in (ABLATED, ADDED)},
        flips,
        {row.id: row.verdict for row in direction_rows(r)},
        r,
    )


# ---- prompts with their choices


def _asked(
    model: ChatModel,
    pairs: tuple[PromptSet, PromptSet],
    plain: Sequence[PromptSet],
    edge: Sequence[PromptSet],
    tokens: Sequence[int],
    config: DirectionConfig,
    judge: str,
) -> Part:
    """States and judged choices of matched pairs, ordinary prompts and borderline ones (safe first, then unsafe)."""
    sets = [*pairs, *plain, *edge]
    texts = [t for s in sets for t in s.texts]
    states = collect_states(model, texts, tokens)
    said = ask(model, sets, judge, config.max_new_tokens)
    is_ = lambda outcome: np.concatenate([s.is_(outcome) for s in said])
    harm = np.concatenate([np.full(len(s), i == 0 or (bool(edge) and i == len(sets) - 1)) for i, s in enumerate(sets)])
    at_edge = np.concatenate([np.full(len(s), i >= len(sets) - len(edge)) for i, s in enumerate(sets)])
    labelled = Labelled(states, harm, is_(Outcome.REFUSED), len(pairs[0]), at_edge)
    return Part(labelled, texts, is_(Outcome.FULFILLED))


def _scored(model: ChatModel, pairs: tuple[PromptSet, PromptSet], ordinary: PromptSet, choice: Choice) -> Part:
    """The same with choices read off the refusal score: one forward pass, no responses."""
    texts = [t for s in (*pairs, ordinary) for t in s.texts]
    states = collect_states(model, texts, choice.tokens)
    refused = choice.refuses(states.scores)
    n = len(pairs[0])
    labelled = Labelled(states, np.arange(len(texts)) < n, refused, n, np.zeros(len(texts), dtype=bool))
    return Part(labelled, texts, ~refused)


def _calibrate(train: Part, tokens: Sequence[int]) -> Choice:
    clear = train.labelled.choice | train.fulfilled  # noise is neither
    return calibrated(tokens, train.labelled.states.scores[clear], train.labelled.choice[clear])


def _enough(train: Part) -> bool:
    refused, harm = train.labelled.choice, train.labelled.harm
    return min((refused & harm).sum(), (train.fulfilled & ~harm).sum()) >= MIN_SIDE


# ---- the direction


def _extract(
    model: ChatModel, train: Part, validation: Part, choice: Choice, by_choice: bool, config: DirectionConfig
) -> Chosen:
    """Published filter: harmful prompts that are refused minus harmless ones that are answered."""
    t, v = train.labelled, validation.labelled
    kept = (t.choice & t.harm) | (train.fulfilled & ~t.harm) if by_choice else np.ones(len(t.harm), dtype=bool)
    vectors = differences(t.states.where(kept), t.harm[kept])
    truth = v.choice if by_choice and 0 < v.choice.sum() < len(v.choice) else v.harm
    separation = areas(torch.einsum("nlpd,lpd->nlp", v.states.values, vectors).numpy(), truth)
    per_layer = None if config.per_layer == "all" else config.per_layer
    tried = cells(separation, config.layer_step, per_layer)
    harmful, harmless = validation.texts[: v.pairs], validation.texts[2 * v.pairs :]
    found = extract(model, vectors, tried, harmful, harmless, choice)
    return Chosen(
        tuple(found.vector.tolist()),
        found.chosen.layer,
        found.chosen.position,
        tuple(CandidateDirection(**vars(t)) for t in found.table),
        found.relaxed,
        (found.base_bypass, found.base_induce),
    )


# ---- the chain, and before alignment


def _chain(
    model: ChatModel, data: DirectionData, train: Part, tokens: Sequence[int], config: DirectionConfig, seed: int
) -> Chain:
    few = train.texts[: train.labelled.pairs][:WEIGHED], data.train_ordinary.texts[:WEIGHED]
    between = chain.contrast(model, tokens, *few)
    n = min(limit(config.chain) or len(data.harmful), len(data.harmful), len(data.ordinary))
    sides = [chain.attribute(model, s.sample(n, seed).texts, between) for s in (data.harmful, data.ordinary)]
    gap = lambda name: getattr(sides[0], name).mean(0) - getattr(sides[1], name).mean(0)
    heads = np.empty((0, 0)) if sides[0].heads is None else gap("heads")
    looks = [s.looks.mean(0) for s in sides]
    order = np.argsort(-np.abs(heads).ravel())[:TOP_HEADS]
    top = tuple(
        ChainHead(int(i), int(j), float(heads[i, j]), *(tuple(look[i, j].tolist()) for look in looks))
        for i, j in (np.unravel_index(k, heads.shape) for k in order)
    )
    text = lambda ids: tuple(model.tokenizer.decode([t]) for t in ids)
    lens = [s.lens.mean(0).tolist() for s in sides]
    return Chain(
        text(between.refusing), text(between.fulfilling), float(gap("embedding")), gap("attention").tolist(),
        gap("mlp").tolist(), heads.tolist(), *lens, lens[0][-1] - lens[1][-1], top, n,
    )  # fmt: skip


def _before(
    model: ChatModel,
    unaligned: ChatModel,
    data: DirectionData,
    train: Part,
    test: Part,
    chosen: Chosen,
    readouts: Sequence[Readout],
    config: DirectionConfig,
    judge: str,
) -> BeforeAlignment | None:
    """Was the direction there before alignment, and does it act there?"""
    harm = next((r for r in readouts if r.target == HARM), None)
    if harm is None or unaligned.grid != model.grid:
        return None
    at = lambda states, rows: states.values[rows, harm.layer, harm.position]
    there = [
        collect_states(unaligned, part.texts[: 2 * part.labelled.pairs], (0,), "states before alignment")
        for part in (train, test)
    ]
    mean = lambda states, n: at(states, slice(0, n)).mean(0) - at(states, slice(n, 2 * n)).mean(0)
    n, m = train.labelled.pairs, test.labelled.pairs
    here, own = mean(train.labelled.states, n), mean(there[0], n)
    area = lambda v: stats.auroc(*((at(there[1], rows) @ v).numpy() for rows in (slice(0, m), slice(m, 2 * m))))
    with added(unaligned, chosen.layer, torch.tensor(chosen.vector)):
        said = ask(unaligned, [data.harmful], judge, config.max_new_tokens)[0]
    cosine = float(torch.nn.functional.cosine_similarity(here, own, dim=0))
    return BeforeAlignment(cosine, area(here), area(own), outcomes(said))
