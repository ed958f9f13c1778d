"""The room against models whose truth is written into their weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ssah_lens.direction.extract as extract_room
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.direction.choice import Choice
from ssah_lens.direction.extract import (
    ENOUGH,
    STRENGTHS,
    Trials,
    ablations,
    cells,
    differences,
    extract,
    random_like,
    strength,
)
from ssah_lens.direction.interchange import (
    ARBITRARY,
    DAS,
    MEAN,
    PROBE,
    RANDOM,
    UNTRAINED,
    WHOLE,
    Interchanged,
    Training,
    interchange,
)
from ssah_lens.direction.separability import areas, best_cell, fit, project
from ssah_lens.direction.states import collect_states
from ssah_lens.intervene.steer import added, projected_out, stream_means
from ssah_lens.measure.judges import Outcome
from ssah_lens.measure.refusal import ask, refusal_scores
from ssah_lens.results import TO_MEAN, TO_MEAN_HERE, TO_MEAN_ONWARD, TO_ZERO

N = 16


def as_set(texts: list[str]) -> PromptSet:
    return PromptSet("planted", tuple(Prompt(t) for t in texts))


def refused(planted, texts: list[str]) -> float:
    return ask(planted.model, [as_set(texts)], max_new_tokens=4)[0].is_(Outcome.REFUSED).mean()


@pytest.fixture(scope="module")
def states(one_direction):
    p = one_direction
    return collect_states(p.model, [*p.harmful(N, 1), *p.harmless(N, 1)], p.tokens)


REFUSING = np.arange(2 * N) < N


def test_the_planted_models_choose_as_planted(one_direction, two_directions):
    for planted in (one_direction, two_directions):
        assert refused(planted, planted.harmful(8, 0)) == 1
        assert refused(planted, planted.harmless(8, 0)) == 0


def test_the_planted_direction_is_recovered(one_direction, states):
    truth = one_direction.directions[0]
    found = differences(states, REFUSING)
    assert found.shape == (4, len(states.labels), 32)
    cosine = torch.nn.functional.cosine_similarity(found[1:], truth, dim=-1).abs()
    assert cosine.min() > 0.99
    # The tokens after the instruction are the same for all prompts: before block 0 nothing differs.
    assert found[0].abs().max() < 1e-6


def test_it_separates_from_the_block_on_that_writes_it(one_direction, states):
    p = one_direction
    weights = fit(states, REFUSING[:, None])
    test = collect_states(p.model, [*p.harmful(N, 2), *p.harmless(N, 2)], p.tokens)
    for scores in (project(test, weights.mean), project(test, weights.probe)):
        area = areas(scores, REFUSING)[..., 0]
        assert np.allclose(area[1:], 1) and np.allclose(area[0], 0.5)
        assert best_cell(area) == (1, len(states.labels) - 1)
    truth = p.directions[0]
    assert torch.nn.functional.cosine_similarity(weights.probe[1, -1, :, 0], truth, dim=0).abs() > 0.9


def test_the_published_selection_takes_it_and_it_is_causal(one_direction, states):
    p = one_direction
    harmful, harmless = p.harmful(8, 3), p.harmless(8, 3)
    vectors = differences(states, REFUSING)
    tried = cells(np.ones(vectors.shape[:2]), per_layer=1)
    assert tried == [(0, -1), (1, -1), (2, -1), (3, -1)]
    found = extract(p.model, {cell: vectors[cell] for cell in tried}, harmful, harmless, Choice(p.tokens))
    assert [t.layer for t in found.table] == [1, 2, 3]  # block 0 has no difference to try
    assert found.chosen.bypass < found.base_bypass and found.base_bypass > 0 > found.base_induce
    assert found.chosen.induce > 0
    truth = p.directions[0]
    assert torch.nn.functional.cosine_similarity(found.vector, truth, dim=0).abs() > 0.99
    at_random = random_like(found.vector, 5)
    assert float(at_random.norm()) == pytest.approx(float(found.vector.norm()), rel=1e-5)
    base = refusal_scores(p.model, harmful, p.tokens)
    with projected_out(p.model, found.vector):
        without = refusal_scores(p.model, harmful, p.tokens)
        # Nothing is left to choose by: both sides are the same.
        np.testing.assert_allclose(without, refusal_scores(p.model, harmless, p.tokens), atol=0.2)
    with projected_out(p.model, at_random):
        assert np.abs(refusal_scores(p.model, harmful, p.tokens) - base).mean() < 0.5 * np.abs(without - base).mean()
    with added(p.model, found.chosen.layer, found.vector):
        assert refused(p, harmless) == 1
    assert found.strength == 1 and [t.name for t in found.ablations] == [TO_ZERO]
    means = stream_means(p.model, p.model.rows(harmless))
    every = extract(p.model, {(1, -1): vectors[1, -1]}, harmful, harmless, Choice(p.tokens), means).ablations
    assert {t.name for t in every} == {TO_ZERO, TO_MEAN, TO_MEAN_ONWARD, TO_MEAN_HERE} and every[0].refused == 0


def every_way(planted, means, harmful: list[str], harmless: list[str]):
    model, direction = planted.model, planted.directions[0]
    trials = Trials(model, harmful, harmless, Choice(planted.tokens))
    return ablations(trials, 1, direction, means, trials.without(TO_ZERO, projected_out(model, direction)))


def test_a_gentler_way_is_not_taken_when_it_leaves_refusals(one_direction, monkeypatch: pytest.MonkeyPatch):
    """Means of refused prompts leave the choice where it was: however gentle, that is no ablation."""
    p = one_direction
    harmful, harmless = p.harmful(8, 3), p.harmless(8, 3)
    means = stream_means(p.model, p.model.rows(harmful))
    divergences = iter([1.0, 0.0, 0.25, 0.5])  # zero, mean, from its block on, at its block
    monkeypatch.setattr(extract_room, "kl", lambda a, b: torch.full((len(a),), next(divergences)))
    found = every_way(p, means, harmful, harmless)
    assert [(t.name, t.refused) for t in found] == [(TO_ZERO, 0), (TO_MEAN, 1), (TO_MEAN_ONWARD, 1), (TO_MEAN_HERE, 1)]


@pytest.mark.parametrize(("left", "taken"), [(1, TO_MEAN), (2, TO_ZERO)])
def test_a_gentler_way_may_leave_few_refusals(one_direction, monkeypatch: pytest.MonkeyPatch, left: int, taken: str):
    """Of 24 prompts one is less than `SPARE`, two are more."""
    p = one_direction
    refused = iter([0, left, 24, 24])  # by zero, mean, from its block on, at its block
    scores = lambda log_probs, tokens: torch.where(torch.arange(24) < next(refused), 1.0, -1.0)
    monkeypatch.setattr(extract_room, "log_odds", scores)
    monkeypatch.setattr(Choice, "answers", lambda choice, log_probs: np.ones(len(log_probs), dtype=bool))
    divergences = iter([1.0, 0.5, 0.1, 0.1])
    monkeypatch.setattr(extract_room, "kl", lambda a, b: torch.full((len(a),), next(divergences)))
    means = stream_means(p.model, p.model.rows(p.harmless(8, 3)))
    prompts = p.harmful(24, 3), p.harmless(8, 3)
    assert every_way(p, means, *prompts)[0].name == taken


def test_as_much_is_added_as_a_refusal_takes(one_direction, states):
    p = one_direction
    layer, whole = 1, differences(states, REFUSING)[1, -1]
    harmless, choice = p.harmless(8, 3), Choice(p.tokens)
    assert strength(p.model, layer, whole, harmless, choice) == 1
    for part in (0.4, 0.2):
        times = strength(p.model, layer, part * whole, harmless, choice)
        weaker = STRENGTHS[STRENGTHS.index(times) - 1]
        with added(p.model, layer, times * part * whole):
            assert (refusal_scores(p.model, harmless, p.tokens) > 0).mean() >= ENOUGH
        with added(p.model, layer, weaker * part * whole):
            assert times > 1 and (refusal_scores(p.model, harmless, p.tokens) > 0).mean() < ENOUGH


def test_harm_is_counted_where_the_model_was_going_to_answer():
    """Odds of the refusal token (the first) of 3 to 1, 1 to 3 and 1 to 9, by hand."""
    log_probs = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.1, 0.9]]).log()
    assert Choice((0,)).answers(log_probs).tolist() == [False, True, True]
    assert Choice((0,), threshold=-2.0).answers(log_probs).tolist() == [False, False, True]
    assert Choice((0,), threshold=-9.0).answers(log_probs).all(), "without an answer all are compared"


def rank_curve(planted, border: float = 0.0, seed: int = 0) -> Interchanged:
    pairs = lambda n, s: (planted.harmful(n, s), planted.harmless(n, s))
    settings = Training(ranks=(1, 2), epochs=16, lr=0.1, batch_size=32, controls=2, seed=seed)
    return interchange(planted.model, pairs(24, 1), pairs(16, 2), Choice(planted.tokens, border), settings)


def share(found: Interchanged, basis: str, rank: int | None = None) -> float:
    return float(next(f.hits.mean() for f in found.flips if f.basis == basis and rank in (None, f.rank)))


def test_one_direction_flips_every_decision(one_direction):
    found = rank_curve(one_direction)
    assert (found.layer, found.arrived, found.n_train, found.n_test) == (1, True, 24, 16)
    assert found.whole.tolist() == [0, 1, 1, 1] and found.line.tolist() == [0, 1, 1, 1]
    assert share(found, WHOLE) == share(found, MEAN) == share(found, PROBE) == share(found, DAS, 1) == 1
    truth = one_direction.directions[0]
    cosine = lambda name: torch.nn.functional.cosine_similarity(found.bases[name], truth, dim=0).abs()
    assert cosine(MEAN) > 0.99 and cosine(DAS) > 0.7  # DAS stops where every decision flips
    assert share(found, RANDOM, 1) < 0.3 and share(found, ARBITRARY, 1) < 1 and share(found, UNTRAINED, 1) < 1


def test_a_choice_that_needs_two_directions_shows_in_the_rank_curve(two_directions):
    """The sign of a product x y. Half of the pairs differ in x, half in y: a move along one direction of the plane
    changes the sign for one of the halves, or takes all products to nothing. The border is where both words are equally
    likely.
    """
    even = -math.log(len(two_directions.model.tokenizer) - 1)
    found = rank_curve(two_directions, even)
    assert found.layer == 1 and share(found, WHOLE) == 1
    one, two = share(found, DAS, 1), share(found, DAS, 2)
    assert two > 0.95 and one <= 0.75, (one, two)
    assert share(found, MEAN) <= 0.75 and share(found, PROBE) <= 0.75
