"""The learnt gate finds a planted unit: one neuron that decides, by hand, what the first response token is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.hooks import ablated
from ssah_lens.intervene.moments import collect
from ssah_lens.measure.refusal import refusal_scores
from ssah_lens.measure.utility import losses
from ssah_lens.score.base import Calibration, Measured, Scores
from ssah_lens.score.mask import _Gate, mask
from ssah_lens.units import Kind, UnitSet

HARMFUL = [f"{w}!" for w in ("bake", "tell me", "how", "why not do", "question", "do that here")]
HARMLESS = [p[:-1] + "?" for p in HARMFUL]
PLANTED = (Kind.MLP, 1, 5)
MARK, CARRIED, ALWAYS, REFUSE = 14, 13, 12, 15
"""Dimensions of the residual stream: 'there is a !' in the embedding, the same at every later token, a constant, and
'refuse', which only the planted neuron writes."""


@pytest.fixture(scope="module")
def planted(make_llama, make_tokenizer) -> tuple[ChatModel, int, int]:
    """A model that says one token ('no') when the prompt holds a '!' and another ('yes') when it does not.

    Head 0 of layer 0 attends to everything alike and carries the mark; neuron 5 of layer 1 reads what it carries.
    All other units write small random numbers elsewhere.
    """
    tokenizer = make_tokenizer()
    model = ChatModel(make_llama(tokenizer, seed=3), tokenizer, "planted")
    bang, no, yes = (model.response_tokens(t, ended=False)[0] for t in "!NY")
    own = [ALWAYS, CARRIED, MARK, REFUSE]
    with torch.no_grad():
        inner, (first, second) = model.plain.model, model.anatomy.blocks
        inner.embed_tokens.weight[:, own] = 0
        inner.embed_tokens.weight[:, ALWAYS] = 1
        inner.embed_tokens.weight[bang, MARK] = 8
        for block in (first, second):
            block.down.weight *= 0.1
            block.o.weight *= 0.1
            block.down.weight[own] = 0
            block.o.weight[own] = 0
        first.attention.q_proj.weight[:4] = 0  # head 0 and, with it, its group's keys: equal attention to all tokens
        first.attention.v_proj.weight[:4] = 0
        first.attention.v_proj.weight[0, MARK] = 1
        first.o.weight[CARRIED, 0] = 20
        second.mlp.gate_proj.weight[5] = 0
        second.mlp.up_proj.weight[5] = 0
        second.mlp.gate_proj.weight[5, CARRIED] = 3
        second.mlp.up_proj.weight[5, CARRIED] = 1
        second.down.weight[:, 5] = 0
        model.plain.lm_head.weight *= 0.1
        model.plain.lm_head.weight[[no, yes]] = 0
        model.plain.lm_head.weight[no, REFUSE] = 20
        model.plain.lm_head.weight[yes, ALWAYS] = 40
        # 'no' wins where the neuron writes more than 2: 3 for a '!', 0 without, half of it under mean ablation.
        active: list[torch.Tensor] = []
        with model.bridge.hooks(fwd_hooks=[(Kind.MLP.hook(1), lambda x, hook: active.append(x[:, -1, 5]))]):
            model.logits(model.pad(model.rows(HARMFUL)))
        second.down.weight[REFUSE, 5] = 3 / active[0].mean()
    return model, no, yes


@pytest.fixture(scope="module")
def data(planted) -> Calibration:
    model, no, yes = planted
    answer = lambda prompts, token: model.rows(prompts, [[token, model.turn_end]] * len(prompts))
    safety, utility, fulfilling = answer(HARMFUL, no), answer(HARMLESS, yes), answer(HARMFUL, yes)
    return Calibration(safety, utility, fulfilling, collect(model, safety), collect(model, utility), seed=0, steps=12)


@pytest.fixture(scope="module")
def found(planted, data) -> Scores:
    return mask(planted[0], data)


def test_the_plant_works(planted, data):
    """Without this the rest would say nothing: the model decides as built, and the neuron is what decides."""
    model, no, yes = planted
    assert [t[0] for t in model.generate(HARMFUL, 1)] == [no] * len(HARMFUL)
    assert [t[0] for t in model.generate(HARMLESS, 1)] == [yes] * len(HARMLESS)
    with ablated(model, UnitSet.of(model.grid, [PLANTED]), "mean", data.moments):
        assert (refusal_scores(model, HARMFUL, [no]) < 0).all()
        assert (refusal_scores(model, HARMLESS, [no]) < 0).all()
    neighbour = UnitSet.of(model.grid, [(Kind.MLP, 1, 6)])
    with ablated(model, neighbour, "mean", data.moments):
        assert (refusal_scores(model, HARMFUL, [no]) > 0).all()


def test_the_planted_unit_has_the_largest_safety_score(found: Scores):
    assert found.signed
    assert np.unravel_index(found.safety[Kind.MLP].argmax(), (2, 12)) == (1, 5)
    others = np.delete(found.safety[Kind.MLP].ravel(), 17)
    assert found.safety[Kind.MLP][1, 5] > others.max() + 0.5


def test_unequal_rows_survive_half_precision(planted, data, monkeypatch: pytest.MonkeyPatch):
    """Whatever this machine has: in bfloat16, with rows of unequal length, the gate is as finite as in float32."""
    assert len({len(r.ids) for r in data.safety}) > 1
    short = Calibration(**{**vars(data), "steps": 3})
    got = {}
    for half in (False, True):
        monkeypatch.setattr("ssah_lens.chat.precision.has_bfloat16", lambda device, half=half: half)
        got[half] = mask(planted[0], short).safety[Kind.MLP]
        assert np.isfinite(got[half]).all(), f"bfloat16: {half}"
    assert got[True].argmax() == got[False].argmax() == 12 + 5


def test_scores_are_whole_and_repeatable(planted, data, found: Scores):
    model = planted[0]
    for scores in (found.safety, found.utility):
        assert {k: v.shape for k, v in scores.items()} == {k: (2, model.grid.width(k)) for k in Kind}
        assert all(np.isfinite(v).all() for v in scores.values())
    again = mask(model, data)
    for kind in Kind:
        np.testing.assert_array_equal(again.safety[kind], found.safety[kind])
        np.testing.assert_array_equal(again.utility[kind], found.utility[kind])


def test_scoring_leaves_the_model_as_it_was(planted, data):
    model = planted[0]
    model.plain.lm_head.weight.requires_grad_(False)
    try:
        weights = [p.detach().clone() for p in model.plain.parameters()]
        flags = [p.requires_grad for p in model.plain.parameters()]
        before = losses(model, data.safety).nll
        mask(model, Calibration(**{**vars(data), "steps": 1}))
        assert all(torch.equal(a, b) for a, b in zip(weights, model.plain.parameters(), strict=True))
        assert [p.requires_grad for p in model.plain.parameters()] == flags
        assert all(p.grad is None for p in model.plain.parameters())
        np.testing.assert_array_equal(losses(model, data.safety).nll, before)
    finally:
        model.plain.lm_head.weight.requires_grad_(True)


def test_a_killed_run_resumes_to_the_same_gate(planted, data, found: Scores, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Killed in the middle of the second gate: the first is read back, the second goes on where it was kept."""
    kept = replace(data, measured=Measured(store=tmp_path / "parts"))
    monkeypatch.setattr("ssah_lens.score.mask.KEPT_EVERY", 0.0)
    descend, done = _Gate.descend, []

    def killed_at(n: int):
        def inner(self, model, backward):
            if len(done) == n:
                raise KeyboardInterrupt
            done.append(1)
            descend(self, model, backward)

        return inner

    monkeypatch.setattr(_Gate, "descend", killed_at(17))
    with pytest.raises(KeyboardInterrupt):
        mask(planted[0], kept)
    monkeypatch.setattr(_Gate, "descend", killed_at(24))
    again = mask(planted[0], kept)
    assert len(done) == 2 * 12
    for kind in Kind:
        np.testing.assert_array_equal(again.safety[kind], found.safety[kind])
        np.testing.assert_array_equal(again.utility[kind], found.utility[kind])
    monkeypatch.setattr(_Gate, "descend", descend)
    other = mask(planted[0], replace(kept, seed=1, steps=1))  # another run's gate is not taken up
    assert not np.array_equal(other.safety[Kind.MLP], found.safety[Kind.MLP])
    for file in (tmp_path / "parts").iterdir():
        file.write_bytes(b"half")
    with pytest.raises(BadInput, match="damaged"):
        mask(planted[0], kept)


def test_the_log_odds_of_refusing_count_where_the_tokens_are_known(planted, data):
    """With no fulfilling answer to learn from but the refusal itself, the choice alone finds the unit."""
    model, no, _ = planted
    blind = replace(data, fulfilling=data.safety, refusal_tokens=(no,))
    got = mask(model, blind).safety[Kind.MLP]
    assert np.unravel_index(got.argmax(), got.shape) == (1, 5)
    without = mask(model, replace(blind, refusal_tokens=())).safety[Kind.MLP]
    assert without[1, 5] < got[1, 5]
