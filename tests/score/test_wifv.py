"""WIFV against the formula Var(X_j) ||W_:j||^2 computed directly on the plain model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssah_lens.chat.batch import Row
from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.moments import Moments, collect
from ssah_lens.score.base import Calibration, standardised
from ssah_lens.score.wifv import wifv
from ssah_lens.units import Kind

SAFETY = ["Hi", "How do I bake a loaf of bread?", "Why not"], ["Sorry, I cannot help with that.", "No", "Sorry"]
UTILITY = ["Tell me a story", "a b c"], ["Sure, here is how you can do that.", "d e f g"]


def zscore(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)


def directly(model: ChatModel, rows: list[Row], name: str) -> np.ndarray:
    """Var over response tokens of the inputs of an output matrix, times its squared column norms: [layer, channel]."""
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    handles = [
        getattr(b, name).register_forward_pre_hook(lambda m, args, i=i: seen[i].append(args[0][0].detach()))
        for i, b in enumerate(model.anatomy.blocks)
    ]
    for row in rows:
        with torch.no_grad():
            model.plain(torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    response = np.concatenate([r.positions for r in rows]) == 3
    out = []
    for i, block in enumerate(model.anatomy.blocks):
        x = torch.cat(seen[i]).double().numpy()[response]
        w = getattr(block, name).weight.detach().double().numpy()
        out.append(((x - x.mean(0)) ** 2).mean(0) * (w**2).sum(0))
    return np.array(out)


@pytest.fixture(scope="module")
def data(micro: ChatModel) -> Calibration:
    safety, utility = (micro.rows(p, [micro.response_tokens(a) for a in answers]) for p, answers in (SAFETY, UTILITY))
    return Calibration(safety, utility, safety, collect(micro, safety), collect(micro, utility))


def test_scores_equal_the_formula(micro: ChatModel, data: Calibration):
    got = wifv(micro, data)
    assert not got.signed
    for rows, scores in ((data.safety, got.safety), (data.utility, got.utility)):
        neurons, channels = directly(micro, rows, "down"), directly(micro, rows, "o")
        np.testing.assert_allclose(scores[Kind.MLP], zscore(neurons), rtol=1e-3, atol=1e-4)
        heads = zscore(channels).reshape(2, 4, 4).mean(2)  # a head is the mean of its channels
        np.testing.assert_allclose(scores[Kind.HEAD], zscore(heads), rtol=1e-3, atol=1e-4)


def test_scores_are_standardised_per_layer(micro: ChatModel, data: Calibration):
    for scores in (wifv(micro, data).safety, wifv(micro, data).utility):
        for kind in Kind:
            np.testing.assert_allclose(scores[kind].mean(1), 0, atol=1e-9)
            np.testing.assert_allclose(scores[kind].std(1), 1, atol=1e-9)


def test_only_responses_count(micro: ChatModel, data: Calibration):
    """Variance over tokens of the prompt, however large, changes nothing."""
    seen = data.safety_moments
    m2 = {k: v.clone() for k, v in seen.m2.items()}
    m2[Kind.MLP][:, :3] += torch.rand(2, 3, 12, dtype=torch.float64) * 1e6
    moments = Moments(seen.count, seen.mean, m2)
    changed = Calibration(data.safety, data.utility, data.safety, moments, data.utility_moments)
    np.testing.assert_array_equal(wifv(micro, changed).safety[Kind.MLP], wifv(micro, data).safety[Kind.MLP])


def test_a_louder_column_scores_higher(micro_copy: ChatModel):
    rows = micro_copy.rows(SAFETY[0], [micro_copy.response_tokens(a) for a in SAFETY[1]])
    with torch.no_grad():
        micro_copy.anatomy.blocks[1].down.weight[:, 5] *= 100
        micro_copy.anatomy.blocks[1].o.weight[:, 8:12] *= 100
    moments = collect(micro_copy, rows)
    got = wifv(micro_copy, Calibration(rows, rows, rows, moments, moments)).safety
    assert got[Kind.MLP][1].argmax() == 5 and got[Kind.HEAD][1].argmax() == 2


def test_standardising_by_hand():
    got = standardised(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    np.testing.assert_allclose(got, [[-np.sqrt(1.5), 0, np.sqrt(1.5)], [0, 0, 0]])
