"""Activation patching and attribution on micro models: no-ops, ends of the scale, hand-made effects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution import agreement, attribution
from ssah_lens.intervene.metric import Metric, logit_difference
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.patching import activation_patching
from ssah_lens.intervene.sites import Site, parse_site
from ssah_lens.intervene.sweep import Fill, all_units, sweep
from ssah_lens.units import Kind

CLEAN = ["abc x def", "tell x me 1 lot", "x"]
CORRUPTED = ["abc y def", "tell y me 2 lot", "y"]
METRIC = logit_difference([40, 50], [60, 70, 80])


@pytest.mark.parametrize("site", list(Site))
@pytest.mark.parametrize("by_position", [False, True])
def test_replay_is_the_loop_and_no_ops_are_exact(any_family: ChatModel, site, by_position):
    noising = site in (Site.ATTN, Site.HEAD)
    options = {"by_position": by_position, "noising": noising}
    fast, slow = (
        activation_patching(any_family, CLEAN, CORRUPTED, METRIC, site, engine=e, **options) for e in ("replay", "loop")
    )
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    np.testing.assert_allclose([fast.clean, fast.corrupted], [slow.clean, slow.corrupted], atol=1e-4)
    assert fast.axes == ("layer", *(["unit"] if site in (Site.HEAD, Site.NEURON) else []),
                         *(["pos"] if by_position else []))  # fmt: skip
    assert all(len(fast.labels[a]) == n for a, n in zip(fast.axes, fast.values.shape, strict=False))
    if by_position:
        base = fast.clean if noising else fast.corrupted
        n_pos = len(fast.labels["pos"])
        for i, (a, b) in enumerate(zip(any_family.rows(CLEAN), any_family.rows(CORRUPTED), strict=True)):
            start = n_pos - len(a.ids)
            first = next(k for k, (x, y) in enumerate(zip(a.ids, b.ids, strict=True)) if x != y)
            assert np.isnan(fast.values[..., :start, i]).all()
            assert (fast.values[..., start : start + first, i] == base[i]).all()
        assert fast.cells_run < fast.cells


@pytest.mark.parametrize("noising", [False, True])
def test_the_whole_residual_stream_carries_everything(micro: ChatModel, noising: bool):
    """Patching every position of block 0's input makes one run the other: effect 1 (denoising) or 0 (noising)."""
    got = activation_patching(micro, CLEAN, CORRUPTED, METRIC, Site.RESID, by_position=False, noising=noising)
    np.testing.assert_allclose(got.effect, [0.0, 0.0] if noising else [1.0, 1.0], atol=1e-4)
    low, high = got.interval()
    np.testing.assert_allclose([low, high], [got.effect] * 2, atol=1e-4)


def test_the_last_position_of_the_last_block_decides(micro: ChatModel):
    """At the input of block 1 the decision position and what block 1 attends to matter, positions after it do not."""
    one = activation_patching(micro, CLEAN[:1], CORRUPTED[:1], METRIC, Site.RESID)
    assert one.labels["pos"][-1] == "\n" and " y" in "".join(one.labels["pos"])
    at = next(i for i, t in enumerate(one.labels["pos"]) if "y" in t)
    assert one.effect[0, at] == pytest.approx(1.0, abs=1e-4)
    assert np.flatnonzero(one.effect[0]).tolist() == [at]


def test_the_other_run_is_run_once_for_all_layers(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    """And layer by layer where there is memory for one only, with the same values."""
    from ssah_lens.intervene import fill

    passes, real = [], fill.activations
    monkeypatch.setattr(fill, "activations", lambda *args: passes.append([i for _, i in args[2]]) or real(*args))
    at_once = activation_patching(micro, CLEAN[:1], CORRUPTED[:1], METRIC, Site.MLP)
    assert passes == [[0, 1]]
    monkeypatch.setattr("ssah_lens.intervene.room.free_bytes", lambda device: 100)
    apart = activation_patching(micro, CLEAN[:1], CORRUPTED[:1], METRIC, Site.MLP)
    assert passes[1:] == [[0], [1]]
    np.testing.assert_allclose(apart.values, at_once.values, atol=1e-5)


@pytest.mark.parametrize("noising", [False, True])
def test_transformer_lens_takes_the_result(micro: ChatModel, noising: bool):
    found = activation_patching(micro, CLEAN[:1], CORRUPTED[:1], METRIC, Site.RESID, noising=noising)
    theirs = found.to_patching_result()
    base = found.clean if noising else found.corrupted
    np.testing.assert_allclose(theirs.effect().numpy(), found.values - base)
    ends = torch.as_tensor(found.corrupted if noising else found.clean)
    told = theirs.normalized(ends).numpy()[..., 0]
    np.testing.assert_allclose(told, 1 - found.effect if noising else found.effect, atol=1e-6)
    assert len(theirs.index_df) == found.cells and theirs.axis_names == ["layer", "pos"]


def test_pairs_that_are_not_token_aligned_are_refused(micro: ChatModel):
    for clean, corrupted, match in (
        (["abc"], ["abc def ghi"], "the pair is not token-aligned"),
        (["abc"], ["abc"], "same tokens"),
        (["abc"], [], "1 clean and 0 corrupted"),
    ):
        with pytest.raises(BadInput, match=match):
            activation_patching(micro, clean, corrupted, METRIC, Site.RESID)


def test_a_metric_without_a_difference_is_refused(micro: ChatModel):
    nothing = Metric("nothing", torch.tensor([3]), lambda logits: logits[..., 0] * 0)
    with pytest.raises(BadInput, match="no difference to explain"):
        activation_patching(micro, CLEAN, CORRUPTED, nothing, Site.RESID)


def test_an_unknown_site_is_refused():
    assert parse_site("head") is Site.HEAD
    with pytest.raises(BadInput, match="resid, attn, mlp, head, neuron"):
        parse_site("norm")


# --- attribution


def flat(effect: dict, kind: Kind) -> np.ndarray:
    return effect[kind].mean(-1).ravel()


def test_integrated_gradients_add_up_to_replacing_the_layer(any_family: ChatModel):
    """Completeness (Sundararajan et al. 2017): a layer's attributions sum to the effect of replacing all its units."""
    rows = any_family.rows(CLEAN)
    moments = collect(any_family, rows)
    found = attribution(any_family, rows, METRIC, Fill("mean", moments), steps=60)
    for layer in (0, 1):
        means = moments.means(Kind.MLP)[layer].float()

        def hook(x, hook, means=means):
            put = means[any_family.positions_of(x.shape[1])[:, -1:]].to(x.dtype)
            return torch.cat([x[:, :-1], put], 1)

        for i, row in enumerate(rows):
            batch = any_family.pad([row])
            with torch.inference_mode():
                before = float(METRIC.of(any_family.logits(batch)[:, -1]))
                with any_family.bridge.hooks(fwd_hooks=[(Kind.MLP.hook(layer), hook)]):
                    after = float(METRIC.of(any_family.logits(batch)[:, -1]))
            assert found[Kind.MLP][layer, :, i].sum() == pytest.approx(after - before, abs=2e-2)


def test_the_gradient_is_exact_where_the_metric_is_linear(micro: ChatModel):
    """Tiny changes: attribution of a fill very near the activation equals the exact effect."""
    rows = micro.rows(CLEAN)
    near = collect(micro, rows)
    exact = sweep(micro, rows, METRIC, all_units(micro), Fill("mean", near))
    guess = attribution(micro, rows, METRIC, Fill("mean", near))
    together = np.concatenate([guess[k].reshape(-1, 3) for k in Kind])
    got = agreement(exact.effect.mean(1), together.mean(1), shares=(0.1, 0.5))
    assert got.n == 32 and got.spearman > 0.7
    assert 0 <= got.overlap[0.1] <= 1
    same = agreement(exact.effect.mean(1), exact.effect.mean(1))
    assert same.spearman == pytest.approx(1) and set(same.overlap.values()) == {1.0}


def test_attribution_leaves_no_gradients_behind(micro_copy: ChatModel):
    micro = micro_copy
    before = [p.requires_grad for p in micro.plain.parameters()]
    attribution(micro, micro.rows(CLEAN), METRIC, Fill("zero"))
    assert [p.requires_grad for p in micro.plain.parameters()] == before
    assert all(p.grad is None for p in micro.plain.parameters())


def test_bad_attribution_settings_are_refused(micro: ChatModel):
    with pytest.raises(BadInput, match="0 .plain gradient"):
        attribution(micro, micro.rows(CLEAN), METRIC, Fill("zero"), steps=-1)
    with pytest.raises(BadInput, match="same units"):
        agreement(np.zeros(3), np.zeros(4))
