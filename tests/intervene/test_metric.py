"""What a sweep reads: metrics by hand, and those that read something of each prompt's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.intervene.attribution import attribution
from ssah_lens.intervene.metric import divergence, logit_difference
from ssah_lens.intervene.sweep import Fill, all_units, sweep
from ssah_lens.measure.utility import kl, row_log_probs
from ssah_lens.units import Kind

PROMPTS = ["Hi", "How do I bake a loaf of bread?", "Tell me, please: what is 7 x 8?", "why"]


def test_divergence_is_kl_from_each_prompt_s_reference():
    torch.manual_seed(0)
    reference, logits = torch.randn(3, 7).double().log_softmax(-1), torch.randn(4, 7)
    prompts = torch.tensor([2, 0, 0, 1])
    got = divergence(reference).of(logits, prompts)
    np.testing.assert_allclose(got.numpy(), kl(reference[prompts], logits.log_softmax(-1)), atol=1e-6)
    same = divergence(reference).of(reference[prompts], prompts)
    np.testing.assert_allclose(same.numpy(), 0, atol=1e-12)


def test_divergence_where_the_reference_is_sure():
    reference = torch.tensor([[0.0, -torch.inf]])
    got = divergence(reference).of(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    assert got.item() == pytest.approx(np.log(2))


def test_logit_difference_does_not_ask_for_prompts():
    got = logit_difference([0], [1]).of(torch.tensor([[3.0, 1.0, 9.0]]))
    assert got.item() == 2.0


@pytest.mark.parametrize("last", [1, None])
def test_replay_reads_each_prompt_against_its_own(any_family: ChatModel, last: int | None):
    """Batches mix the order of prompts: the loop and replay agree, and so does each prompt alone."""
    rows = any_family.rows(PROMPTS)
    reference, edits = row_log_probs(any_family, rows), all_units(any_family, layers=[0])
    fast, slow = (
        sweep(any_family, rows, divergence(reference), edits, Fill("zero"), last, e) for e in ("replay", "loop")
    )
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    alone = sweep(any_family, rows[1:2], divergence(reference[1:2]), edits, Fill("zero"), last)
    np.testing.assert_allclose(alone.values[:, 0], fast.values[:, 1], atol=1e-4)
    undamaged = sweep(any_family, rows, divergence(reference), edits, Fill("zero")).clean
    assert np.abs(undamaged).max() < 1e-5, "zero but for rounding"


def test_attribution_reads_each_prompt_against_its_own(micro: ChatModel):
    """Against a reference that is not the model itself: there KL has a slope."""
    rows = micro.rows(PROMPTS)
    reference = torch.randn(len(rows), len(micro.tokenizer)).log_softmax(-1)
    for steps in (0, 3):
        together = attribution(micro, rows, divergence(reference), Fill("zero"), None, steps)
        for i in range(len(rows)):
            one = divergence(reference[i : i + 1])
            alone = attribution(micro, rows[i : i + 1], one, Fill("zero"), None, steps)
            for kind in Kind:
                np.testing.assert_allclose(alone[kind][..., 0], together[kind][..., i], atol=1e-5)


def test_integrated_points_in_parts_are_those_at_once(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    rows, metric = micro.rows(PROMPTS[:2]), logit_difference([40], [50])
    whole = attribution(micro, rows, metric, Fill("zero"), 2, 6)
    monkeypatch.setattr("ssah_lens.intervene.attribution.BATCH_TOKENS", 60)
    for kind in Kind:
        np.testing.assert_allclose(attribution(micro, rows, metric, Fill("zero"), 2, 6)[kind], whole[kind], atol=1e-5)
