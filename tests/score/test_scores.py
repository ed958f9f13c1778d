"""Each score against its formula, computed another way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution import attribution
from ssah_lens.intervene.hooks import ablated, fills, gated
from ssah_lens.intervene.moments import Moments, collect
from ssah_lens.intervene.sweep import Fill
from ssah_lens.measure.refusal import refusal_scores
from ssah_lens.measure.utility import decision_log_probs, kl
from ssah_lens.score import NAMES, score
from ssah_lens.score.base import Calibration, Measured, Scores, standardised
from ssah_lens.score.exact import exact, units_to_measure
from ssah_lens.score.roles import ranking
from ssah_lens.units import Kind, Role, UnitSet, top_units

HARMFUL = ["Hi", "How do I bake a loaf of bread?", "Why not"], ["Sorry, I cannot help with that.", "No", "Sorry"]
HARMLESS = ["Tell me a story", "a b c"], ["Sure, here is how you can do that.", "d e f g"]
TOKENS = (40, 50)


def made(model: ChatModel, **more) -> Calibration:
    rows = lambda side: model.rows(side[0], [model.response_tokens(a) for a in side[1]])
    safety, utility = rows(HARMFUL), rows(HARMLESS)
    return Calibration(
        safety, utility, safety, collect(model, safety), collect(model, utility), refusal_tokens=TOKENS, **more
    )


def inputs(model: ChatModel, row, name: str) -> list[np.ndarray]:
    """Inputs of every layer's output matrix at the response tokens of one row, from the plain model."""
    seen: list[torch.Tensor] = []
    keep = lambda m, args: seen.append(args[0][0].detach().double())
    handles = [getattr(b, name).register_forward_pre_hook(keep) for b in model.anatomy.blocks]
    with torch.no_grad():
        model.plain(torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    response = np.array(row.positions) == Position.RESPONSE
    return [x.numpy()[response] for x in seen]


def changed(model: ChatModel, name: str = "other") -> ChatModel:
    """A counterpart: the same model after some weights moved."""
    out = model.copy()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in out.anatomy.parameters:
            p.add_(torch.randn_like(p) * 0.05)
    out.name = name
    return out


# ---- wanda


def test_wanda_is_the_sum_of_weights_times_the_norm_of_the_input(micro: ChatModel):
    data = made(micro)
    got = score("wanda")(micro, data)
    for rows, scores in ((data.safety, got.safety), (data.utility, got.utility)):
        for kind, name, width in ((Kind.MLP, "down", 1), (Kind.HEAD, "o", 4)):
            x = [np.concatenate(parts) for parts in zip(*(inputs(micro, r, name) for r in rows), strict=True)]
            weights = [getattr(b, name).weight.detach().double().numpy() for b in micro.anatomy.blocks]
            entries = [np.abs(w) * np.sqrt((a**2).sum(0)) for w, a in zip(weights, x, strict=True)]
            per_unit = np.array([e.sum(0).reshape(-1, width).sum(1) for e in entries])
            np.testing.assert_allclose(scores[kind], standardised(per_unit), rtol=1e-3, atol=1e-4)
    assert not got.signed


# ---- snip


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt2", "gpt_neox"])
def test_snip_is_the_weight_times_its_gradient_over_owned_parameters(make_family, family: str):
    """By plain autograd; matrices apart, with biases, fused, transposed and interleaved."""
    model = make_family(family)
    data = made(model)
    got = score("snip")(model, data)
    want = {k: np.zeros((2, model.grid.width(k))) for k in Kind}
    for row in data.safety:
        n = row.positions.count(Position.RESPONSE)
        model.plain.zero_grad()
        out = model.plain(torch.tensor([row.ids])).logits[0, -n - 1 : -1]
        torch.nn.functional.cross_entropy(out, torch.tensor(row.ids[-n:])).backward()
        for layer, block in enumerate(model.anatomy.blocks):
            for kind, pieces in ((Kind.MLP, block.neurons), (Kind.HEAD, block.heads)):
                for piece in pieces:
                    size = (piece.parameter * piece.parameter.grad).abs().detach()
                    for unit in range(model.grid.width(kind)):
                        index = torch.tensor(piece.index(np.array([unit])))
                        want[kind][layer, unit] += float(size.index_select(piece.dim, index).sum()) / len(data.safety)
    model.plain.zero_grad()
    for kind in Kind:
        np.testing.assert_allclose(got.safety[kind], want[kind], rtol=1e-3)


# ---- contrast


def test_contrast_is_the_rms_of_the_difference_over_response_tokens(micro: ChatModel):
    other = changed(micro)
    data = made(micro, unaligned=other)
    got = score("contrast")(micro, data)
    for rows, scores in ((data.safety, got.safety), (data.utility, got.utility)):
        for kind, name, width in ((Kind.MLP, "down", 1), (Kind.HEAD, "o", 4)):
            ours, theirs = ([inputs(m, r, name) for r in rows] for m in (micro, other))
            for layer in (0, 1):
                difference = np.concatenate([a[layer] - b[layer] for a, b in zip(ours, theirs, strict=True)])
                want = np.sqrt((difference**2).mean(0).reshape(-1, width).mean(1))
                np.testing.assert_allclose(scores[kind][layer], want, rtol=1e-3)


def test_a_model_does_not_differ_from_itself(micro: ChatModel):
    got = score("contrast")(micro, made(micro, unaligned=micro.copy()))
    assert all((got.safety[k] == 0).all() for k in Kind)


def test_contrast_without_a_counterpart_says_what_to_give(micro: ChatModel, make_family):
    with pytest.raises(BadInput, match="--unaligned"):
        score("contrast")(micro, made(micro))
    wider = make_family("llama")
    wider.tokenizer.add_tokens(["snow"])
    with pytest.raises(BadInput, match="not its counterpart"):
        score("contrast")(micro, made(micro, unaligned=wider))


# ---- attribution and the exact effect


def test_the_exact_effect_is_that_of_ablating_the_unit(micro: ChatModel):
    """All positions at once, so that the role ablation of `hooks.py` can be the judge."""
    data = made(micro, measured=Measured(last=None))
    got = exact(micro, data)
    clean = refusal_scores(micro, HARMFUL[0], TOKENS).mean()
    before = decision_log_probs(micro, HARMLESS[0])
    assert got.signed
    for kind, layer, unit in ((Kind.MLP, 0, 3), (Kind.MLP, 1, 11), (Kind.HEAD, 0, 0), (Kind.HEAD, 1, 2)):
        with ablated(micro, UnitSet.of(micro.grid, [(kind, layer, unit)]), "mean", data.moments):
            lost = clean - refusal_scores(micro, HARMFUL[0], TOKENS).mean()
            damage = kl(before, decision_log_probs(micro, HARMLESS[0])).mean()
        assert got.safety[kind][layer, unit] == pytest.approx(lost, abs=1e-5)
        assert got.utility[kind][layer, unit] == pytest.approx(damage, abs=1e-5)
    assert all((got.utility[k] > -1e-9).all() for k in Kind)


def test_attribution_is_the_slope_and_the_curvature_of_closing_a_unit_s_gate(micro: ChatModel, monkeypatch):
    """All positions. A gate closed by a share e moves the refusal score by e I_S, and the KL per token by e^2 I_U."""
    monkeypatch.setattr("ssah_lens.score.attribution.SAMPLES", 400)
    data, closed = made(micro), 1e-2
    got = score("attribution")(micro, data)
    fill = fills(micro, data.moments, "mean")
    batch = micro.pad(data.utility)

    def read():
        with torch.no_grad():
            log_p = micro.response_logits(batch).double().log_softmax(-1)
        return refusal_scores(micro, HARMFUL[0], TOKENS).mean(), log_p

    clean = read()
    for kind, layer, unit in ((Kind.MLP, 0, 3), (Kind.MLP, 1, 11), (Kind.HEAD, 0, 0), (Kind.HEAD, 1, 2)):
        gates = {k: torch.ones(2, micro.grid.width(k)) for k in Kind}
        gates[kind][layer, unit] -= closed
        with gated(micro, gates, fill):
            refusal, log_p = read()
        slope = (clean[0] - refusal) / closed
        assert got.safety[kind][layer, unit] == pytest.approx(slope, abs=0.02 * max(1, abs(slope)))
        assert got.utility[kind][layer, unit] == pytest.approx(kl(clean[1], log_p).mean() / closed**2, rel=0.2)


def test_attribution_of_more_prompts_than_are_kept_apart(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    data = made(micro)
    whole = score("attribution")(micro, data)
    monkeypatch.setattr("ssah_lens.score.attribution.PROMPTS", 2)
    parts = score("attribution")(micro, data)
    for kind in Kind:
        np.testing.assert_allclose(parts.safety[kind], whole.safety[kind], atol=1e-6)
        np.testing.assert_allclose(parts.utility[kind], whole.utility[kind], atol=1e-6)


def test_integrated_gradients_see_what_the_slope_does_not(micro: ChatModel):
    """Nearer to the exact effect at the decision position than the plain slope there."""
    data = made(micro)
    truth, guess = exact(micro, data).safety, score("attribution-ig")(micro, data).safety
    prompts = [r.prompt for r in data.safety]
    slope = attribution(micro, prompts, data.refusal_metric, Fill("mean", data.moments), last=1)
    error = lambda values: np.mean([np.abs(values[k] - truth[k]).mean() for k in Kind])
    assert error(guess) < error({k: -v.mean(-1) for k, v in slope.items()})


# ---- how much is measured


def test_a_sample_measures_some_units_and_ranks_no_others(micro: ChatModel):
    data = made(micro, measured=Measured(units=8, prompts=2))
    got, whole = exact(micro, data), exact(micro, replace(data, measured=Measured(prompts=2)))
    known = {k: ~np.isnan(got.safety[k]) for k in Kind}
    assert {k: int(m.sum()) for k, m in known.items()} == {Kind.HEAD: 2, Kind.MLP: 6}
    for k in Kind:
        np.testing.assert_allclose(got.safety[k][known[k]], whole.safety[k][known[k]], atol=1e-6)
        assert (known[k] == ~np.isnan(got.utility[k])).all()
    for role in (Role.SCU, Role.UCU, Role.RU):
        rank = ranking(got, role)
        assert all(np.isfinite(rank[k][known[k]]).all() and (rank[k][~known[k]] == -np.inf).all() for k in Kind)
        chosen = top_units(micro.grid, rank, 1.0)
        assert all((chosen.masks[k] == known[k]).all() for k in Kind)


def test_layers_are_measured_alone(micro: ChatModel):
    got = exact(micro, made(micro, measured=Measured(layers=range(1, 2))))
    for k in Kind:
        assert np.isnan(got.safety[k][0]).all() and np.isfinite(got.safety[k][1]).all()


def test_samples_are_of_both_kinds_and_repeatable(micro: ChatModel):
    parts = [units_to_measure(micro, Measured(units=n), 3) for n in (8, 8, 20, 100)]
    as_set = lambda edits: {(e.site, e.layer, u) for e in edits for u in e.units.tolist()}
    assert as_set(parts[0]) == as_set(parts[1]) and [len(as_set(p)) for p in parts] == [8, 8, 20, 32]
    with pytest.raises(BadInput, match="2 and more"):
        units_to_measure(micro, Measured(units=1), 0)


def test_what_was_measured_is_kept_and_found_again(micro: ChatModel, tmp_path, monkeypatch: pytest.MonkeyPatch):
    from ssah_lens.intervene.runners import Replayed

    data = made(micro, measured=Measured(store=tmp_path / "exact"))
    first = exact(micro, data)
    ran, real = [], Replayed._chunk
    monkeypatch.setattr(Replayed, "_chunk", lambda self, *a: ran.append(1) or real(self, *a))
    again = exact(micro, data)
    assert not ran
    for kind in Kind:
        np.testing.assert_array_equal(again.safety[kind], first.safety[kind])
        np.testing.assert_array_equal(again.utility[kind], first.utility[kind])
    other = exact(micro, replace(data, refusal_tokens=(60,)))
    assert ran and np.abs(other.safety[Kind.MLP] - first.safety[Kind.MLP]).max() > 1e-3


# ---- all of them


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_whole_repeatable_and_leave_the_model_alone(micro_copy: ChatModel, name: str):
    micro = micro_copy
    data = made(micro, unaligned=changed(micro), steps=2)
    micro.plain.lm_head.weight.requires_grad_(False)
    weights = [p.detach().clone() for p in micro.plain.parameters()]
    flags = [p.requires_grad for p in micro.plain.parameters()]
    hooks = lambda: [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in micro.plain.modules()]
    before = hooks()
    first, again = score(name)(micro, data), score(name)(micro, data)
    for a, b in ((first.safety, again.safety), (first.utility, again.utility)):
        for k in Kind:
            assert a[k].shape == (2, micro.grid.width(k)) and a[k].dtype == np.float64 and np.isfinite(a[k]).all()
            np.testing.assert_array_equal(a[k], b[k])
            assert np.ptp(a[k]) > 0
    assert all(torch.equal(a, b) for a, b in zip(weights, micro.plain.parameters(), strict=True))
    assert [p.requires_grad for p in micro.plain.parameters()] == flags and hooks() == before
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in micro.plain.parameters())


@pytest.mark.parametrize("name", [n for n in NAMES if n != "mask"])
def test_a_model_without_refusals_has_utility_scores_only(micro: ChatModel, name: str):
    data = replace(made(micro, unaligned=changed(micro)), safety=[], fulfilling=[], safety_moments=Moments.zeros(micro))
    got: Scores = score(name)(micro, data)
    for k in Kind:
        assert (got.safety[k] == 0).all() and np.ptp(got.utility[k]) > 0


@pytest.mark.parametrize("name", ["attribution", "attribution-ig", "exact"])
def test_scores_that_read_the_refusal_score_need_its_tokens(micro: ChatModel, name: str):
    with pytest.raises(BadInput, match="refusal_tokens"):
        score(name)(micro, replace(made(micro), refusal_tokens=()))


def test_an_unknown_score_is_refused():
    with pytest.raises(BadInput, match="allowed are attribution, attribution-ig, contrast, exact, mask, snip, wanda"):
        score("luck")
