"""H1 to H3: is refuse-or-fulfil one binary choice, and where is it made?

The direction comes from train prompts, the block, position and cell from validation prompts, every number from test
prompts. A model that hardly ever refuses has no choice to read: then the direction is that of harm, and it is said so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens import stats
from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.config import DirectionConfig, limit
from ssah_lens.direction import chain
from ssah_lens.direction.extract import ablation, extract
from ssah_lens.direction.states import collect_states
from ssah_lens.intervene.steer import Means, added, stream_means
from ssah_lens.measure.refusal import ask
from ssah_lens.results import (
    ABLATED,
    ADDED,
    TO_ZERO,
    UNDAMAGED,
    BeforeAlignment,
    CandidateDirection,
    Chain,
    ChainHead,
    DirectionReport,
    DirectionResult,
    Distances,
    Onset,
    Readout,
    TriedAblation,
)
from ssah_lens.study.behaviour import ended, outcomes
from ssah_lens.study.direction_data import DirectionData
from ssah_lens.study.direction_read import Read, read
from ssah_lens.study.direction_verdicts import direction_rows
from ssah_lens.study.interchanges import interchanges
from ssah_lens.study.keep import Keep, anew
from ssah_lens.study.onset import distance_probe, onset
from ssah_lens.study.readouts import CHOICE, HARM
from ssah_lens.study.steering import Steering

TOP_HEADS = 8
WEIGHED = 24
"""Train prompts on each side that say how much each first token weighs in the chain."""
NO_COUNTERPART = (
    "KL by token, forced refusals, the direction before alignment, and the unaligned half of the distance probe "
    "(whether alignment turned the sign of the gap): no unaligned model was given"
)
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
    strength: float
    ablations: tuple[TriedAblation, ...] = ()


def study_direction(
    model: ChatModel,
    unaligned: ChatModel | None,
    data: DirectionData,
    tokens: Sequence[int],
    config: DirectionConfig,
    seed: int,
    judge: str = "keyword",
    note: Note = lambda _: None,
    keep: Keep = anew,
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
    found = keep("read", Read, lambda: read(model, data, tokens, config, seed, judge))
    note("direction: selection")
    level = cache(lambda: stream_means(model, found.train.answered_rows(model)))
    chosen = keep("selection", Chosen, lambda: _extract(model, data, found, level()))
    vector, layer = torch.tensor(chosen.vector), chosen.layer
    note("direction: ablation and addition on test prompts")
    asked = data.harmful, data.ordinary
    first = 2 * found.test.pairs  # ordinary prompts follow the pairs
    said = ended(model, found.test.responses[first : first + len(data.ordinary)], config.max_new_tokens)
    steering = Steering(model, *asked, found.choice, judge, config.max_new_tokens, limit(config.choices), said)
    way = chosen.ablations[0].name if chosen.ablations else TO_ZERO

    @contextmanager
    def gentler(direction: Tensor, where: Collection[Position] | None = None) -> Iterator[None]:
        with ablation(model, way, layer, level())(direction, where):  # means only for what is not kept already
            yield

    steered = steering.all(
        vector, layer, chosen.strength, config.controls, seed, keep, None if way == TO_ZERO else gentler
    )
    note("direction: interchange")
    swapped, skipped = interchanges(model, data, found, vector, config, seed, keep)
    note("direction: distances, onset, chain")
    models = {"aligned": model} | ({"unaligned": unaligned} if unaligned is not None else {})
    near = data.harmful.sample(limit(config.distance), seed)
    probe = keep("distances", tuple[Distances, ...], lambda: distance_probe(models, near, seed=seed))
    deep = keep("onset", Onset, lambda: onset(model, unaligned, *asked, vector, layer, config, judge, seed))
    written = keep("chain", Chain, lambda: _chain(model, data, tokens, config, seed))
    before = None
    if unaligned is None:
        skipped.append(NO_COUNTERPART)
    elif (harm := found.readout(HARM)) is not None and unaligned.grid == model.grid:
        other, here = unaligned, torch.tensor(found.harm, dtype=torch.float32)
        before = keep("before", BeforeAlignment, lambda: _before(other, data, harm, here, chosen, config, judge))
    if found.readout(CHOICE) is None:
        skipped.insert(0, "AUROC of the choice: the model refuses, or answers, too few prompts")
    return DirectionResult(
        layer=layer,
        position=chosen.position,
        positions=found.positions,
        threshold=found.choice.threshold,
        agreement=found.choice.agreement,
        refused_train=(int(found.train.choice.sum()), len(found.train.choice)),
        by_choice=found.by_choice,
        vector=chosen.vector,
        candidates=chosen.table,
        relaxed=chosen.relaxed,
        base_scores=chosen.base_scores,
        steered=steered,
        readouts=found.readouts,
        interchange=swapped,
        distances=probe,
        onset=deep,
        chain=written,
        before=before,
        skipped=tuple(skipped),
        strength=chosen.strength,
        ablations=chosen.ablations,
    )


def direction_report(r: DirectionResult, out: str) -> DirectionReport:
    """What the command prints of a result."""
    flips: dict[str, dict] = {}
    for found in r.interchange[:1]:
        for f in found.flips:
            flips.setdefault(str(f.rank), {})[f.basis] = f.flipped
    auroc = {x.target: x.auroc for x in r.readouts} | {f"{x.target}, probe": x.probe_auroc for x in r.readouts}
    for x in r.readouts:
        if x.elsewhere is not None:
            other = {"label": x.elsewhere.harm, "behaviour": x.elsewhere.choice}
            auroc |= {f"{x.target}, own prompts, {name}": e for name, e in other.items() if e is not None}
    return DirectionReport(
        out,
        r.layer,
        r.position,
        auroc,
        r.get(UNDAMAGED),
        r.get(ABLATED),
        r.get(ADDED),
        {name: r.controls(name) for name in (ABLATED, ADDED)},
        flips,
        {row.id: row.verdict for row in direction_rows(r)},
        r,
    )


def _extract(model: ChatModel, data: DirectionData, found: Read, means: Means) -> Chosen:
    harmful, harmless = data.validation[0], data.validation_ordinary
    best = extract(model, found.candidates, harmful, harmless, found.choice, means)
    return Chosen(
        tuple(best.vector.tolist()),
        best.chosen.layer,
        best.chosen.position,
        best.table,
        best.relaxed,
        (best.base_bypass, best.base_induce),
        best.strength,
        best.ablations,
    )


# ---- the chain, and before alignment


def _chain(model: ChatModel, data: DirectionData, tokens: Sequence[int], config: DirectionConfig, seed: int) -> Chain:
    few = list(data.train[0])[:WEIGHED], list(data.train_ordinary)[:WEIGHED]
    between = chain.contrast(model, tokens, *few)
    n = min(limit(config.chain) or len(data.harmful), len(data.harmful), len(data.ordinary))
    sides = [chain.attribute(model, s.sample(n, seed), between) for s in (data.harmful, data.ordinary)]
    gap = lambda name: getattr(sides[0], name).mean(0) - getattr(sides[1], name).mean(0)
    heads = np.empty((0, 0)) if sides[0].heads is None else gap("heads")
    looks = [s.looks.mean(0) for s in sides]
    order = np.argsort(-np.abs(heads).ravel())[:TOP_HEADS]
    top = tuple(
        ChainHead(int(i), int(j), float(heads[i, j]), *(tuple(look[i, j].tolist()) for look in looks))
        for i, j in (np.unravel_index(k, heads.shape) for k in order)
    )
    text = lambda ids: tuple(model.tokenizer.decode([t]) for t in ids)
    refusing, answering = (s.lens.mean(0).tolist() for s in sides)
    return Chain(
        text(between.refusing), text(between.fulfilling), float(gap("embedding")), gap("attention").tolist(),
        gap("mlp").tolist(), heads.tolist(), refusing, answering, refusing[-1] - answering[-1], top, n,
    )  # fmt: skip


def _before(
    unaligned: ChatModel,
    data: DirectionData,
    harm: Readout,
    here: Float[Tensor, " d_model"],
    chosen: Chosen,
    config: DirectionConfig,
    judge: str,
) -> BeforeAlignment:
    """Was the direction of harm (`here`, where `harm` reads it) there before alignment, and does today's act there?"""
    sides = [
        collect_states(unaligned, side, (0,), "states before alignment").values[:, harm.layer, harm.position]
        for side in (*data.train, *data.test)
    ]
    own = sides[0].mean(0) - sides[1].mean(0)
    area = lambda v: stats.auroc((sides[2] @ v).numpy(), (sides[3] @ v).numpy())
    with added(unaligned, chosen.layer, chosen.strength * torch.tensor(chosen.vector)):
        said = ask(unaligned, [data.harmful], judge, config.max_new_tokens)[0]
    cosine = float(torch.nn.functional.cosine_similarity(here, own, dim=0))
    return BeforeAlignment(cosine, area(here), area(own), outcomes(said))
