"""Sufficiency where the truth is known: the planted safety units alone make the unaligned model refuse."""

from __future__ import annotations

import numpy as np
import pytest
from planted import HARM, Planted, plant, prompts

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.transplant import generate_with
from ssah_lens.study.sufficiency import faithfulness, random_ranking, sets_to_move, transplant
from ssah_lens.units import Kind, UnitSet


@pytest.fixture(scope="module")
def planted(make_tokenizer) -> Planted:
    return plant(make_tokenizer)


def test_without_units_the_receiver_answers_as_it_does(micro: ChatModel, micro_copy: ChatModel):
    asked = prompts(True, 5)
    none = UnitSet.empty(micro.grid)
    assert generate_with(micro, micro_copy, none, asked, 6) == micro.generate(asked.texts, 6)


def test_all_units_of_a_twin_with_the_same_embeddings_are_the_twin(planted: Planted):
    """The pair differ in the units' own weights; with every activation moved only the output columns still differ."""
    asked = prompts(True, 6)
    everything = UnitSet(planted.model.grid, {k: np.ones_like(m) for k, m in planted.safety.masks.items()})
    same = planted.model.copy()
    assert generate_with(same, planted.model, everything, asked, 4) == planted.model.generate(asked.texts, 4)


def test_the_planted_units_alone_bring_refusal_and_their_twins_do_not(planted: Planted):
    """The counterpart has what reads the planted neurons only in the aligned model: so the last layer's write is moved
    into a copy of the aligned model whose safety units are silent."""
    model = planted.model
    mute = silenced(planted)
    harmful, harmless = prompts(True, 20, 5), prompts(False, 20, 5)
    found = transplant(
        mute, model, sets_to_move(planted.safety, 0), harmful, harmless, [planted.token("Sorry")], max_new_tokens=3
    )
    by = {t.name: t for t in found}
    assert list(by) == ["nothing", "SCU", "random twin 1", "random twin 2", "random twin 3", "all units"]
    assert by["nothing"].harmful.refused.value == 0 and by["SCU"].harmful.refused.value == 1
    assert by["SCU"].harmless.refused.value == 0 and by["all units"].harmful.refused.value == 1
    assert max(by[f"random twin {i}"].harmful.refused.value for i in (1, 2, 3)) == 0
    assert by["SCU"].refusal_score.value > 0 > by["nothing"].refusal_score.value
    assert by["SCU"].n == len(planted.safety) and by["nothing"].n == 0


def silenced(planted: Planted) -> ChatModel:
    """The aligned model with the safety units' inputs cut: their activations are constant, their output is whole."""
    import torch

    out = planted.model.copy()
    with torch.no_grad():
        for layer, block in enumerate(out.anatomy.blocks):
            for i in np.flatnonzero(planted.safety.masks[Kind.MLP][layer]):
                block.mlp.up_proj.weight[i] = 0
            for h in np.flatnonzero(planted.safety.masks[Kind.HEAD][layer]):
                block.attention.v_proj.weight[8 * h : 8 * h + 8] = 0
    return out


def test_models_that_do_not_fit_are_refused(micro: ChatModel, planted: Planted):
    with pytest.raises(BadInput, match="one shape"):
        generate_with(micro, planted.model, planted.safety, prompts(True, 2), 2)


def test_the_planted_circuit_is_faithful_and_random_units_are_not(planted: Planted):
    model = planted.model
    harmful, harmless = prompts(True, 16, 5), prompts(False, 16, 5)
    assert all(HARM in t for t in harmful.texts)
    rows = [
        *model.rows(harmful.texts, [[planted.token("Sorry")]] * 16),
        *model.rows(harmless.texts, [[planted.token("Rome")]] * 16),
    ]
    truth = {k: planted.safety.masks[k] + 0.001 * random_ranking(model, 1)[k] for k in Kind}
    share = 0.12  # of 32 heads 4 and of 160 neurons 19: all nine planted units
    curves = faithfulness(
        model,
        {"truth": truth, "random": random_ranking(model, 2)},
        collect(model, rows),
        harmful,
        harmless,
        [planted.token("Sorry")],
        (0.0, share, 0.5, 1.0),
    )
    by = {c.name: c for c in curves}
    assert all(c.n == (16, 16) for c in curves)
    assert by["truth"].values[0] == 0 and by["truth"].values[-1] == 1
    assert 0.8 < by["truth"].values[1] < 1.6  # above 1: what speaks against refusing is gone as well
    assert abs(by["random"].values[1]) < 0.3
    assert by["truth"].area > by["random"].area + 0.2 and by["truth"].distance < by["random"].distance
    v, s = by["truth"].values, by["truth"].shares
    assert by["truth"].area == pytest.approx(
        sum((a + b) / 2 * (t - r) for a, b, r, t in zip(v, v[1:], s, s[1:], strict=False))
    )
