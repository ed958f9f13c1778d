"""H2, second half: which pairs of prompts the interchange is done on, and its result."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssah_lens import stats
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, token_aligned
from ssah_lens.config import DirectionConfig
from ssah_lens.direction import interchange
from ssah_lens.direction.choice import Choice
from ssah_lens.direction.interchange import MIN_PAIRS
from ssah_lens.errors import BadInput
from ssah_lens.measure.refusal import refusal_scores
from ssah_lens.results import Flips, Interchange
from ssah_lens.study.direction_data import DirectionData
from ssah_lens.study.direction_read import Read
from ssah_lens.study.keep import Keep

FEW, MANY = 2, 8
"""Times as many twins are looked at as are wanted (quick, and standard): in most the model may refuse both sides."""
Pairs = list[tuple[list[Prompt], list[Prompt]]]
"""(refused, answered) of train and of test."""


def interchanges(
    model: ChatModel,
    data: DirectionData,
    found: Read,
    vector: torch.Tensor,
    config: DirectionConfig,
    seed: int,
    keep: Keep,
) -> tuple[tuple[Interchange, ...], list[str]]:
    """Token-aligned twins where the model decides enough of them differently, else harmful beside ordinary prompts."""
    settings = interchange.Training(
        ranks=config.ranks,
        epochs=config.das_epochs,
        controls=config.das_controls,
        every_control=config.both_pairs,
        layer_step=config.layer_step,
        seed=seed,
    )
    kinds = {"twins": lambda: _twins(model, data, found, config, seed), "unmatched": lambda: _unmatched(found, config)}
    out: list[Interchange] = []
    why: list[str] = []
    for kind, choose in kinds.items():
        if out and not config.both_pairs:
            break
        pairs = keep(f"pairs_{kind}", Pairs, choose)
        short = [f"{len(p[0])} {s}" for p, s in zip(pairs, ("train", "test"), strict=True) if len(p[0]) < MIN_PAIRS]
        if short:
            why.append(f"interchange on {kind} pairs: the model decides only {' and '.join(short)} pairs differently")
            continue
        make = partial(_interchanged, kind, model, pairs, found.choice, settings, vector)
        try:
            out.append(keep(f"interchange_{kind}", Interchange, make))
        except BadInput as e:  # a family whose blocks cannot be run again on their own
            why.append(f"interchange on {kind} pairs: {e}")
    return tuple(out), why


def _twins(model: ChatModel, data: DirectionData, found: Read, config: DirectionConfig, seed: int) -> Pairs:
    """Token-aligned pairs whose harmful side is refused and whose harmless side is answered, by refusal score."""
    out: Pairs = []
    for split, part in ((data.aligned_train, found.train), (data.aligned_test, found.test)):
        aligned = token_aligned(model.tokenizer, *split)
        n, refused, choice = part.pairs, part.choice, found.choice
        share = float((refused[:n] & ~refused[n : 2 * n]).mean())
        look = min(len(aligned[0]), (MANY if config.both_pairs else FEW) * config.pairs)
        if share * look < MIN_PAIRS:
            out.append(([], []))  # by the share seen so far there are not enough
            continue
        sides = [s.sample(look, seed) for s in aligned]
        scores = [refusal_scores(model, s, choice.tokens) for s in sides]
        keep = np.flatnonzero(choice.refuses(scores[0]) & ~choice.refuses(scores[1]))[: config.pairs]
        out.append(([sides[0][i] for i in keep], [sides[1][i] for i in keep]))
    return out


def _unmatched(found: Read, config: DirectionConfig) -> Pairs:
    """Refused harmful prompts beside answered ordinary ones, in their order."""
    out = []
    for p in (found.train, found.test):
        refuses, n = found.choice.refuses(p.scores), p.pairs
        ordinary = np.flatnonzero(~p.edge & (np.arange(len(p.harm)) >= 2 * n) & ~refuses)
        harmful = np.flatnonzero(refuses[:n])
        m = min(len(harmful), len(ordinary), config.pairs)
        out.append(([p.prompts[i] for i in harmful[:m]], [p.prompts[i] for i in ordinary[:m]]))
    return out


def _interchanged(
    kind: str,
    model: ChatModel,
    pairs: Pairs,
    choice: Choice,
    settings: interchange.Training,
    vector: Float[Tensor, " d_model"],
) -> Interchange:
    train, test = pairs
    found = interchange.interchange(model, train, test, choice, settings)
    cosine = lambda v: float(torch.nn.functional.cosine_similarity(v, vector, dim=0).abs())
    return Interchange(
        pairs=kind,
        layer=found.layer,
        arrived=found.arrived,
        n_train=found.n_train,
        n_test=found.n_test,
        layers=found.layers,
        whole=found.whole.tolist(),
        line=found.line.tolist(),
        flips=tuple(_flips(f) for f in found.flips),
        cosines={name: cosine(v) for name, v in found.bases.items()},
    )


def _flips(f: interchange.Flipped) -> Flips:
    n = len(f.hits) // 2
    # In the untrained model only some directed pairs could be flipped; arbitrary labels have no two ways.
    apart = f.basis not in (interchange.UNTRAINED, interchange.ARBITRARY)
    to_fulfil, to_refuse = (float(f.hits[:n].mean()), float(f.hits[n:].mean())) if apart else (None, None)
    whole = set(np.unique(f.hits)) <= {0.0, 1.0}
    share = stats.rate(f.hits > 0.5) if whole else stats.mean(f.hits)
    return Flips(f.basis, f.rank, share, to_fulfil, to_refuse, f.fit, tuple(f.hits.tolist()))
