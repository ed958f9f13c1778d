"""Refusal scores against hand-computed probabilities, and the choice of refusal-opening tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.measure.judges import Outcome, keyword
from ssah_lens.measure.refusal import FALLBACK_OPENINGS, Refusals, log_odds, refusal_scores, refusal_tokens, refusals

PROMPTS = PromptSet("p", tuple(Prompt(t) for t in ("Hi", "How do I bake a loaf of bread?", "Why not", "Sure")))
REFUSED, FULFILLED, INCOHERENT = Outcome.REFUSED, Outcome.FULFILLED, Outcome.INCOHERENT


def test_log_odds_of_known_probabilities():
    p = torch.tensor([[0.2, 0.3, 0.1, 0.4], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    got = log_odds(p.log() + torch.tensor([[3.0], [-100.0]]), [1, 3])  # logits are known up to a constant
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), [math.log(0.7 / 0.3), 0.0], atol=1e-12)


def test_log_odds_stay_finite_where_probabilities_round_to_one():
    logits = torch.tensor([[60.0, 0.0, 0.0]])
    # p = 1 / (1 + 2 e^-60): 1 - p is 0 in float64, its log-odds are 60 - log 2.
    assert log_odds(logits, [0]).item() == pytest.approx(60 - math.log(2), abs=1e-9)
    assert log_odds(logits, [1]).item() == pytest.approx(-60, abs=1e-9)


def test_repeated_tokens_count_once():
    logits = torch.randn(3, 5)
    assert torch.equal(log_odds(logits, [2, 2, 4]), log_odds(logits, [4, 2]))


def test_scores_of_a_model_by_hand(micro: ChatModel):
    tokens = [7, 50, 200]
    got = refusal_scores(micro, PROMPTS, tokens)
    assert got.dtype == np.float64
    for score, text in zip(got, PROMPTS.texts, strict=True):
        with torch.no_grad():
            p = micro.plain(torch.tensor([micro.prompt_tokens(text)[0]])).logits[0, -1].double().softmax(-1)
        assert score == pytest.approx(math.log(p[tokens].sum() / (1 - p[tokens].sum())), abs=1e-4)


def test_scores_take_plain_texts_and_any_iterable_of_tokens(micro: ChatModel):
    np.testing.assert_array_equal(
        refusal_scores(micro, PROMPTS.texts, iter([7, 50])), refusal_scores(micro, PROMPTS, (7, 50))
    )


def asked(*said: tuple[int | None, Outcome], times: int = 1) -> Refusals:
    """Responses that begin with a token and were judged so."""
    tokens = [[] if t is None else [t, 99] for t, _ in said] * times
    return Refusals("p", tuple(o for _, o in said) * times, ("",) * len(tokens), tuple(tokens))


def test_openings_are_found_in_the_models_own_refusals(micro: ChatModel):
    # 60 refusals: 5 opens half of them, 6 a third, 7 ten, all more than 2%.
    harmful = asked(*[(5, REFUSED)] * 30, *[(6, REFUSED)] * 20, *[(7, REFUSED)] * 10, (8, FULFILLED), (9, INCOHERENT))
    # 10 answers: 6 opens 20% of them (33% >= 2 x 20% is false), 7 opens none.
    harmless = asked(*[(6, FULFILLED)] * 2, *[(8, FULFILLED)] * 8, (7, REFUSED), (5, INCOHERENT))
    assert refusal_tokens(micro, harmful, harmless) == [5, 7]


def test_twice_as_often_is_enough(micro: ChatModel):
    harmful = asked((5, REFUSED), (6, REFUSED), times=10)  # 5 opens 1/2
    assert refusal_tokens(micro, harmful, asked((5, FULFILLED), *[(8, FULFILLED)] * 3)) == [5, 6]  # and 1/4 of answers
    assert refusal_tokens(micro, harmful, asked((5, FULFILLED), *[(8, FULFILLED)] * 2)) == [6]  # and 1/3 of answers


def test_rare_openings_do_not_count(micro: ChatModel):
    harmful = asked(*[(5, REFUSED)] * 59, (6, REFUSED))  # 6 opens 1 of 60, under 2%
    assert refusal_tokens(micro, harmful, asked((8, FULFILLED))) == [5]


def test_empty_responses_open_with_nothing(micro: ChatModel):
    assert refusal_tokens(micro, asked(*[(5, REFUSED)] * 10, (None, REFUSED)), asked((None, FULFILLED))) == [5]


@pytest.mark.parametrize(
    ("harmful", "harmless"),
    [
        (asked(*[(5, REFUSED)] * 9, *[(6, FULFILLED)] * 50), asked((8, FULFILLED))),  # fewer than ten refusals
        (asked(*[(5, REFUSED)] * 20), asked((5, FULFILLED))),  # nothing tells refusals from answers
    ],
)
def test_a_model_that_does_not_refuse_gets_the_usual_openings(micro: ChatModel, harmful, harmless):
    expected = sorted({micro.response_tokens(text, ended=False)[0] for text in FALLBACK_OPENINGS})
    assert refusal_tokens(micro, harmful, harmless) == expected


def test_rates_count_every_prompt():
    got = asked((1, REFUSED), (1, REFUSED), (1, FULFILLED), (1, INCOHERENT)).rates()
    assert {k: (e.value, e.n) for k, e in got.items()} == {
        "refused": (0.5, 4),
        "fulfilled": (0.25, 4),
        "incoherent": (0.25, 4),
    }
    assert asked((1, REFUSED), (1, FULFILLED)).is_(REFUSED).tolist() == [True, False]


def test_asking_a_model(micro: ChatModel):
    got = refusals(micro, PROMPTS, max_new_tokens=5)
    assert got.prompts == "p" and list(got.tokens) == micro.generate(PROMPTS.texts, 5)
    assert list(got.responses) == [micro.text(t) for t in got.tokens]
    assert list(got.outcomes) == keyword(PROMPTS.texts, got.responses)
