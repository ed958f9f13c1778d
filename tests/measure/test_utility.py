"""Losses, multiple choice and KL against arithmetic by hand on unpadded rows."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from ssah_lens.chat.batch import Row
from ssah_lens.chat.fits import context_length
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import shipped
from ssah_lens.measure import utility
from ssah_lens.measure.utility import (
    Losses,
    choices,
    decision_log_probs,
    kl,
    losses,
    prose_losses,
    response_nll,
    row_log_probs,
    stored_log_probs,
)

PROMPTS = ["Hi", "How do I bake a loaf of bread?", "Why not"]
ANSWERS = ["Sure, here is how you can do that.", "No", "Ask the assistant a question"]


def by_hand(model: ChatModel, row: Row) -> float:
    """-sum log p(token | everything before it) over response tokens, one token at a time, float64."""
    total = 0.0
    for i, (token, position) in enumerate(zip(row.ids, row.positions, strict=True)):
        if position == 3:
            with torch.no_grad():
                logits = model.plain(torch.tensor([row.ids[:i]])).logits[0, -1].double()
            total -= float(logits[token] - logits.logsumexp(-1))
    return total


@pytest.fixture(scope="module")
def rows(micro: ChatModel) -> list[Row]:
    return micro.rows(PROMPTS, [micro.response_tokens(a) for a in ANSWERS])


def test_losses_by_hand(micro: ChatModel, rows: list[Row]):
    got = losses(micro, rows)
    np.testing.assert_allclose(got.nll, [by_hand(micro, r) for r in rows], rtol=1e-5)
    assert got.tokens.tolist() == [len(micro.response_tokens(a)) for a in ANSWERS]  # the turn's end is scored


def test_losses_do_not_depend_on_company(micro: ChatModel, rows: list[Row]):
    alone = [losses(micro, [r]).nll[0] for r in rows]
    np.testing.assert_allclose(losses(micro, rows).nll, alone, rtol=1e-5)
    np.testing.assert_allclose(losses(micro, rows[::-1]).nll, alone[::-1], rtol=1e-5)


def test_a_row_without_a_response_scores_nothing(micro: ChatModel, rows: list[Row]):
    got = losses(micro, [*rows, micro.rows(["Hi"])[0]])
    assert (got.nll[3], got.tokens[3], got.per_token[3]) == (0, 0, 0)
    np.testing.assert_allclose(got.nll[:3], losses(micro, rows).nll, rtol=1e-5)


def test_rows_without_any_response_score_nothing(micro: ChatModel):
    got = losses(micro, micro.rows(PROMPTS))
    assert got.nll.tolist() == [0, 0, 0] and got.tokens.tolist() == [0, 0, 0]


def test_several_answers_to_one_prompt(micro: ChatModel):
    """Rows that share all of their prompt, and even the first words of their answers."""
    answers = ["Sure, here is how", "Sure, here is why", "Sure, no"]
    rows = micro.rows([PROMPTS[1]] * 3, [micro.response_tokens(a) for a in answers])
    got = losses(micro, rows)
    assert got.tokens.tolist() == [len(micro.response_tokens(a)) for a in answers]
    np.testing.assert_allclose(got.nll, [by_hand(micro, r) for r in rows], rtol=1e-5)
    twice = losses(micro, [rows[0], rows[0]])
    np.testing.assert_allclose(twice.nll, got.nll[[0, 0]], rtol=1e-5)


def test_losses_are_weighted_by_tokens():
    got = Losses(np.array([1.0, 6.0]), np.array([1, 3]))
    assert got.per_token.tolist() == [1.0, 2.0] and got.mean == 7 / 4
    assert got.perplexity.value == pytest.approx(math.exp(7 / 4)) and got.perplexity.n == 2


def test_nll_of_known_logits(micro: ChatModel):
    batch = micro.pad([Row([4, 5, 6, 7], [1, 1, 3, 3]), Row([4, 5], [1, 3])])
    logits = torch.zeros(3, 320)
    logits[0, 6] = math.log(319)  # p(6) = 319 / (319 + 319) = 1/2
    assert batch.response_rows.tolist() == [0, 0, 1]
    np.testing.assert_allclose(response_nll(logits, batch).numpy(), np.log([2, 320, 320]), rtol=1e-4)


def test_prose_is_scored_without_a_template(micro: ChatModel):
    got = prose_losses(micro, limit=2)
    text = shipped("prose")[-1]["text"]  # two passages, evenly: the first and the last
    whole = micro.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = whole[: context_length(micro.plain) - 1]
    assert got.tokens[1] == len(ids) < len(whole)  # the first token too, after a neutral one, to the context's end
    with torch.no_grad():
        logits = micro.plain(torch.tensor([[micro.turn_end, *ids]])).logits[0, :-1].double()
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum")
    assert got.nll[1] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("limit", "which"),
    [(5, (0, 132, 264, 397, 529)), (1, (0,))],  # evenly: multiples of 529 / 4, to the nearest
)
def test_choices_by_hand(micro: ChatModel, limit: int, which: tuple[int, ...]):
    got = choices(micro, limit=limit)
    items = shipped("choices")
    picked = [items[i] for i in which]
    assert got.tasks == tuple(i["task"] for i in picked)
    for item, correct in zip(picked, got.correct, strict=True):
        question = item["question"]
        context = f"Question: {question}\nAnswer:" if question.endswith("?") else question
        rows = micro.text_rows([context] * len(item["options"]), [" " + o for o in item["options"]])
        per_token = [by_hand(micro, r) / sum(p == 3 for p in r.positions) for r in rows]
        assert correct == (int(np.argmin(per_token)) == item["answer"])
    assert got.chance == pytest.approx(np.mean([1 / len(i["options"]) for i in picked]))


def test_choices_follow_the_better_option(micro_copy: ChatModel, monkeypatch: pytest.MonkeyPatch):
    """With all blocks silent every token is equally likely but one; the option made of it wins."""
    with torch.no_grad():
        for p in micro_copy.plain.model.parameters():
            p.zero_()
        micro_copy.plain.model.embed_tokens.weight[:, 0] = 1
        micro_copy.plain.model.norm.weight.fill_(1)
        micro_copy.plain.lm_head.weight.zero_()
        liked = micro_copy.response_tokens(" bread", ended=False)
        micro_copy.plain.lm_head.weight[liked, 0] = 1
    items = [
        {"id": "1", "task": "a", "question": "What?", "options": ["xyz", "bread", "bread xyz"], "answer": 1},
        {"id": "2", "task": "a", "question": "So", "options": ["bread", "xyz"], "answer": 1},
        {
            "id": "3",
            "task": "b",
            "question": "So",
            "options": ["bread bread bread", "xyz"],
            "answer": 0,
        },  # longer, per token better
    ]
    monkeypatch.setattr(utility, "shipped", lambda name: items)
    got = choices(micro_copy)
    assert got.correct.tolist() == [True, False, True] and got.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert got.accuracy.value == pytest.approx(2 / 3)
    assert {t: (e.value, e.n) for t, e in got.by_task().items()} == {"a": (0.5, 2), "b": (1.0, 1)}


def test_kl_of_known_distributions():
    p = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]).log()
    p[1] = torch.tensor([0.0, -200.0, -200.0])
    # 1/2 log 2 + 1/4 log 1/2 + 0 = 1/4 log 2; log 2; 0. KL is not symmetric: the first argument is the reference.
    np.testing.assert_allclose(kl(p, q), [0.25 * math.log(2), math.log(2), 0.0], atol=1e-7)
    skewed = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    np.testing.assert_allclose(kl(*skewed), [0.9 * math.log(1.8) + 0.1 * math.log(0.2)], atol=1e-7)


def test_decision_log_probs_by_hand(micro: ChatModel):
    got = decision_log_probs(micro, PROMPTS)
    assert got.shape == (3, len(micro.tokenizer))
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(3))
    for row, prompt in zip(got, PROMPTS, strict=True):
        with torch.no_grad():
            alone = micro.plain(torch.tensor([micro.prompt_tokens(prompt)[0]])).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)


def test_an_unchanged_model_has_no_kl(micro: ChatModel):
    got = decision_log_probs(micro, PROMPTS)
    np.testing.assert_array_equal(kl(got, got), np.zeros(3))


def test_a_table_on_disk_is_the_table(micro: ChatModel):
    """Rows go in and come out in any order; what was not asked for is not read."""
    rows = micro.rows(PROMPTS)
    table, stored = row_log_probs(micro, rows), stored_log_probs(micro, rows)
    assert len(stored) == len(rows) and torch.equal(stored[range(len(rows))], table)
    order = np.array([2, 0, 2])
    assert torch.equal(stored[order], table[order])
    stored[[1]] = table[:1]
    assert torch.equal(stored[[1, 0]], table[[0, 0]])
    assert torch.equal(pickle.loads(pickle.dumps(stored))[order], stored[order])  # as it goes to a worker
