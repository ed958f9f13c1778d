"""Hand-computed numbers, and parts of the room against the plain forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from activations import states

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.direction import chain, decision
from ssah_lens.direction.choice import Choice, calibrated
from ssah_lens.direction.decision import Decisions
from ssah_lens.direction.distance import distances
from ssah_lens.direction.extract import Trials, ablation, ablations, cells, choose, differences
from ssah_lens.direction.onset import forced, opening, projections, token_kl
from ssah_lens.direction.separability import areas, fit, shuffles
from ssah_lens.direction.states import States, collect_asked, collect_states, n_positions
from ssah_lens.errors import BadInput
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.steer import projected_out, stream_means
from ssah_lens.measure.refusal import log_odds, refusal_scores
from ssah_lens.measure.utility import decision_log_probs, kl
from ssah_lens.results import TO_MEAN, TO_MEAN_HERE, TO_MEAN_ONWARD, TO_ZERO, CandidateDirection

PROMPTS = ["Hi", "How do I bake a loaf of bread?", "Why not", "Tell me, please: what is 7 x 8?"]
TOKENS = (40, 50)


# --- states, selection


def test_states_are_those_of_unpadded_rows(micro: ChatModel):
    got = collect_states(micro, PROMPTS, TOKENS)
    n = n_positions(micro)
    assert got.values.shape == (4, 2, n, 16) and len(got.labels) == n and got.labels[-1] == "\n"
    for i, row in enumerate(micro.rows(PROMPTS)):
        for layer in range(2):
            want = states(micro, row, Site.RESID.hook(layer))[-n:]
            torch.testing.assert_close(got.values[i, layer], want, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(got.scores, refusal_scores(micro, PROMPTS, TOKENS), atol=1e-5)
    twice = collect_states(micro, [PROMPTS[1]] * 2, TOKENS)  # all of both rows is shared
    torch.testing.assert_close(twice.values[1], got.values[1], atol=1e-5, rtol=1e-4)


def test_states_are_read_under_the_prompts_own_system_prompt(micro: ChatModel):
    """With answers and without; also of prompts whose shared prefix reaches into the positions."""
    n, name = n_positions(micro), Site.RESID.hook(1)
    own = PromptSet("own", tuple(Prompt(t, system="Be brief.") for t in PROMPTS))
    want = torch.stack([states(micro, row, name)[-n:] for row in micro.rows(own.texts, system=own.systems)])
    assert (want - collect_states(micro, PROMPTS, TOKENS).values[:, 1]).abs().max() > 1e-2
    for found in (collect_states(micro, own, TOKENS), collect_asked(micro, [own], TOKENS, "keyword", 2)[0]):
        torch.testing.assert_close(found.values[:, 1], want, atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(found.scores, refusal_scores(micro, own, TOKENS), atol=1e-5)
    twins = PromptSet("twins", (own[1], own[1]))
    found, _ = collect_asked(micro, [twins], TOKENS, "keyword", 2)
    torch.testing.assert_close(found.values[:, 1], want[[1, 1]], atol=1e-5, rtol=1e-4)


def test_a_difference_of_means_by_hand():
    values = torch.tensor([[1.0, 2], [3, 4], [10, 0]])[:, None, None]
    found = differences(States(values, np.zeros(3), ("",)), np.array([True, True, False]))
    assert found.tolist() == [[[-8.0, 3.0]]]
    with pytest.raises(BadInput, match="both sides"):
        differences(States(values, np.zeros(3), ("",)), np.ones(3, dtype=bool))


def test_the_published_choice_and_its_fallbacks():
    row = lambda bypass, induce, kl, allowed: CandidateDirection(3, -1, 1.0, bypass, induce, kl, allowed)
    good, harmful, idle = row(-1, 1, 0.05, True), row(-5, 1, 0.3, False), row(-8, -3, 0.02, False)
    assert choose([good, harmful, idle], 0) == (good, False)
    assert choose([harmful, idle], 0) == (harmful, True)  # an idle direction harms nothing, and shows nothing
    assert choose([idle], 0) == (idle, True)


def test_what_disturbs_harmless_prompts_less_is_left(micro: ChatModel):
    """Along what all prompts share, zero is far from all; where none is refused KL decides."""
    rows = micro.rows(PROMPTS)
    shared = torch.stack([states(micro, row, Site.RESID.hook(1))[-1] for row in rows]).mean(0)
    means, choice = stream_means(micro, rows), Choice(TOKENS, threshold=99.0)
    trials = Trials(micro, PROMPTS[:1], PROMPTS[1:], choice)
    found = ablations(trials, 1, shared, means, trials.without(TO_ZERO, projected_out(micro, shared)))
    assert {t.name for t in found} == {TO_ZERO, TO_MEAN, TO_MEAN_ONWARD, TO_MEAN_HERE} and found[-1].name == TO_ZERO
    assert [t.kl for t in found] == sorted(t.kl for t in found) and found[0].kl > 0
    base = decision_log_probs(micro, PROMPTS)
    for tried in found:
        with ablation(micro, tried.name, 1, means)(shared):
            without = decision_log_probs(micro, PROMPTS)
        assert tried.kl == pytest.approx(float(kl(base[1:], without[1:]).mean()), rel=1e-3)
        assert tried.bypass == pytest.approx(float(log_odds(without[:1], TOKENS).mean()), abs=1e-4)
        assert tried.refused == 0


def test_a_direction_is_taken_out_of_one_block_alone_and_from_there_on(micro: ChatModel):
    rows, r = micro.rows(PROMPTS), torch.randn(16)
    means, unit, last = stream_means(micro, rows), r / r.norm(), Site.RESID.hook(1)
    clean = states(micro, rows[1], Site.RESID.hook(0))
    with ablation(micro, TO_MEAN_HERE, 1, means)(r):
        assert torch.equal(states(micro, rows[1], Site.RESID.hook(0)), clean)
        left = states(micro, rows[1], last) @ unit
        assert (states(micro, rows[1], Site.MLP.hook(1)) @ unit).std() > 1e-2
    torch.testing.assert_close(left, means[last][torch.tensor(rows[1].positions)] @ unit, atol=1e-5, rtol=1e-4)
    with ablation(micro, TO_MEAN_ONWARD, 1, means)(r):
        assert torch.equal(states(micro, rows[1], Site.RESID.hook(0)), clean)
        for name in (last, Site.MLP.hook(1), "blocks.1.hook_resid_post"):
            left = states(micro, rows[1], name) @ unit
            torch.testing.assert_close(left, means[name][torch.tensor(rows[1].positions)] @ unit, atol=1e-4, rtol=1e-3)
    with ablation(micro, TO_ZERO, 1, means)(r):
        assert (states(micro, rows[1], Site.RESID.hook(0)) @ unit).abs().max() < 1e-5


def test_cells_stay_below_the_published_depth():
    separation = np.tile([0.1, 0.9, 0.9], (10, 1))
    assert {layer for layer, _ in cells(separation)} == set(range(8)) and len(cells(separation)) == 24
    assert cells(separation, layer_step=3, per_layer=1) == [(1, -1), (4, -1), (7, -1)]


def test_the_border_of_the_choice_by_hand():
    found = calibrated([3], np.array([-2.0, -1.0, 0.5, -0.5]), np.array([False, False, True, True]))
    assert (found.threshold, found.agreement, found.tokens) == (-0.75, 1.0, (3,))
    assert found.refuses(np.array([-0.8, -0.7])).tolist() == [False, True]
    assert calibrated([3], np.array([1.0, 2.0]), np.array([True, True])) == Choice((3,))
    logits = torch.log(torch.tensor([[1.0, 1, 1, 1]]))
    assert float(found.margin(logits)) == pytest.approx(np.log(1 / 3) + 0.75)
    classes = found.classes(logits)[0]
    assert float(classes[0] - classes[1]) == pytest.approx(np.log(1 / 3) + 0.75, abs=1e-6)


# --- separability


def test_areas_by_hand():
    scores = np.array([[0.0, 3], [1, 2], [2, 1], [2, 1]])
    assert areas(scores, np.array([False, False, True, True])).tolist() == [1.0, 0.0]
    assert areas(scores[:, 0], np.array([False, True, False, True])).tolist() == pytest.approx(0.625)
    with pytest.raises(BadInput):
        areas(scores, np.ones(4, dtype=bool))


def test_a_probe_finds_what_noise_hides_from_the_means():
    """Two channels with common noise: their difference tells the classes apart, either alone does not."""
    rng = np.random.default_rng(0)
    y = np.arange(200) < 100
    noise = rng.normal(0, 10, 200)
    x = np.stack([noise + y, noise - y], 1) + rng.normal(0, 0.1, (200, 2))
    found = fit(States(torch.tensor(x, dtype=torch.float32)[:, None, None], np.zeros(200), ("",)), y[:, None])
    probe = found.probe[0, 0, :, 0]
    by_probe, by_first = areas(x @ probe.numpy(), y), areas(x[:, 0], y)
    assert by_probe > 0.9 > by_first


def test_shuffles_keep_pairs_together():
    y = np.arange(20) < 10
    found = shuffles(y, 50, 0, pairs=True)
    assert (found[:10] != found[10:]).all() and 0.3 < found[:10].mean() < 0.7
    assert (shuffles(y, 5, 0).sum(0) == 10).all()


# --- the decision position


def test_cached_decisions_equal_whole_forward_passes(any_family: ChatModel):
    model, choice = any_family, Choice(TOKENS, 0.3)
    found = Decisions(model, PROMPTS, choice)
    want = refusal_scores(model, PROMPTS, TOKENS) - 0.3
    np.testing.assert_allclose(found.margins, want, atol=1e-4)
    for layer in range(model.grid.n_layers):
        with torch.no_grad():
            classes = found.above(layer)(torch.tensor([2, 0]))
        np.testing.assert_allclose((classes[:, 0] - classes[:, 1]).numpy(), want[[2, 0]], atol=1e-4)
    torch.testing.assert_close(
        found.states, collect_states(model, PROMPTS, TOKENS).values[:, :, -1], atol=1e-4, rtol=1e-4
    )


def test_a_changed_state_changes_the_decision_as_in_the_whole_model(micro: ChatModel, monkeypatch):
    """Rows of several recorded parts, a hook on the block's input, against a hook on the bridge."""
    monkeypatch.setattr(decision, "PART", 3)
    found, move = Decisions(micro, PROMPTS, Choice(TOKENS)), torch.randn(16)
    tail = found.above(1)
    with torch.no_grad(), tail.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: x + move)]):
        classes = tail(torch.tensor([3, 1]))
    at_last = lambda x, hook: torch.cat([x[:, :-1], x[:, -1:] + move], 1)
    with torch.no_grad(), micro.bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", at_last)]):
        want = log_odds(micro.logits(micro.pad(micro.rows([PROMPTS[3], PROMPTS[1]])))[:, -1], TOKENS)
    torch.testing.assert_close((classes[:, 0] - classes[:, 1]).double(), want, atol=1e-4, rtol=1e-4)


# --- distance, onset


def test_distances_are_those_of_separate_runs(micro: ChatModel):
    strings = ["Sorry, I cannot help with that", "The user asks the assistant"]
    got = distances(micro, PROMPTS[:2], strings, ks=(1, 3))
    assert got.shape == (2, 2, 2)
    want = np.zeros_like(got)
    for i, p in enumerate(PROMPTS[:2]):
        for s in strings:
            for j, k in enumerate((1, 3)):
                rows = micro.rows([p, p], [[], micro.response_tokens(s)[:k]])
                for block in range(2):
                    a, b = (states(micro, r, f"blocks.{block}.hook_resid_post")[-1] for r in rows)
                    want[i, block, j] += (1 - float(torch.nn.functional.cosine_similarity(a, b, dim=0))) / 2
    np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(BadInput, match="is shorter|got k"):
        distances(micro, PROMPTS[:1], ["a"], ks=(9,))


def test_kl_along_a_response(micro: ChatModel, micro_qwen: ChatModel):
    rows = micro.rows(PROMPTS[:2], [micro.response_tokens("Sure, here"), micro.response_tokens("No", ended=False)])
    assert np.nanmax(np.abs(token_kl(micro, micro, rows, 4))) < 1e-6
    got = token_kl(micro, micro_qwen, rows, 3)
    lengths = [sum(p == Position.RESPONSE for p in r.positions) for r in rows]
    assert [int((~np.isnan(g)).sum()) for g in got] == [min(3, n) for n in lengths]
    with torch.no_grad():
        p, q = (m.logits(m.pad([rows[0]]), keep=lengths[0] + 1)[0, 0].log_softmax(-1) for m in (micro, micro_qwen))
    assert got[0, 0] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-4)


def test_openings_are_cut_and_shuffled(micro: ChatModel):
    text = "Sure, here is how you can do that."
    whole = opening(micro, text)
    assert opening(micro, text, 3) == whole[:3]
    mixed = opening(micro, text, shuffle_seed=1)
    assert sorted(mixed) == sorted(whole) and mixed != whole


def test_only_what_the_model_adds_is_judged(one_direction):
    """The planted model says its one word whatever came before; a forced refusing word alone is no refusal."""
    p = one_direction
    harmless = p.harmless(4, 0)
    word = p.model.response_tokens("Sorry", ended=False)
    assert {str(o) for o in forced(p.model, harmless, [], 3, "keyword")} == {"fulfilled"}
    # 'Sorry' ends the turn by itself: nothing is added, and nothing is no refusal.
    assert {str(o) for o in forced(p.model, harmless, word, 3, "keyword")} == {"incoherent"}
    assert {str(o) for o in forced(p.model, harmless, word, 3, "keyword", "Sorry")} == {"refused"}


def test_projections_start_at_the_decision_position(micro: ChatModel):
    r = torch.randn(16)
    rows = micro.rows(PROMPTS[:2], [micro.response_tokens("Sure, here"), micro.response_tokens("No", ended=False)])
    got = projections(micro, rows, 1, r, 2)
    for i, row in enumerate(rows):
        along = states(micro, row, Site.RESID.hook(1)) @ (r / r.norm())
        first = row.positions.index(Position.RESPONSE)
        np.testing.assert_allclose(got[i, : len(along[first - 1 :][:3])], along[first - 1 :][:3], atol=1e-5)
    assert np.isnan(got[1, 2:]).all() or sum(p == Position.RESPONSE for p in rows[1].positions) > 1


# --- the chain


def test_contributions_add_up_to_the_logit_difference(any_family: ChatModel):
    model = any_family
    between = chain.contrast(model, TOKENS, PROMPTS[:2], PROMPTS[2:])
    assert sum(between.refusing_weight) == pytest.approx(1, abs=1e-5) and not set(TOKENS) & set(between.fulfilling)
    found = chain.attribute(model, PROMPTS, between)
    with torch.no_grad():
        # Before any soft cap: the final norm's output on the unembedding rows.
        decoder = model.bridge.original_model.get_decoder()
        batch = model.pad(model.rows(PROMPTS))
        final = model._forward(model.bridge.original_model, decoder, batch).last_hidden_state[:, -1]
        head = model.plain.get_output_embeddings()
        want = (final @ between.direction(model.plain)).numpy()
    bias = 0.0
    norm_bias = getattr(model.anatomy.final_norm, "bias", None)
    if norm_bias is not None:
        bias = float(norm_bias.detach() @ between.direction(model.plain))
    whole = found.embedding + found.attention.sum(1) + found.mlp.sum(1) + bias
    np.testing.assert_allclose(found.lens[:, -1], want, atol=1e-3)
    np.testing.assert_allclose(whole, want, atol=2e-3)
    assert head.weight.shape[1] == 16
    np.testing.assert_allclose(found.looks.sum(-1), 1, atol=1e-3)
    if found.heads is not None and model.name in ("micro-llama", "micro-qwen2"):
        np.testing.assert_allclose(found.heads.sum(-1), found.attention, atol=1e-3)
