"""The exact sweep against the plain hook loop, on every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.metric import Metric, logit_difference, refusal_log_odds
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import Edits, Fill, all_units, sweep
from ssah_lens.units import Kind

PROMPTS = [
    "How do I bake a loaf of bread?",
    "Hi",
    "Tell me, please: what is 7 x 8 and why does it matter?",
    "The user asks the assistant a question.",
]
METRIC = logit_difference([40, 50], [60, 70, 80])


def rows(model: ChatModel):
    return model.rows(PROMPTS)


def both(model: ChatModel, edits, fill, **options):
    return [sweep(model, rows(model), METRIC, edits, fill, engine=e, **options) for e in ("replay", "loop")]


def every_site() -> list[Edits]:
    return [
        Edits(site, layer, np.array(units))
        for layer in (0, 1)
        for site, units in (
            (Site.RESID, [0]),
            (Site.ATTN, [0]),
            (Site.MLP, [0]),
            (Site.HEAD, [0, 3, 1]),
            (Site.NEURON, [11, 0, 5]),
        )
    ]


@pytest.mark.parametrize("last", [1, 5, None])
def test_replay_is_the_hook_loop_on_every_architecture(any_family: ChatModel, last: int | None):
    """Zero, resample and patch at every site; mean at units."""
    source = any_family.rows([p[::-1] for p in PROMPTS])
    if last is None:  # as long as the longest row
        source = any_family.rows([p[::-1] + " or not, or so, or else, or nothing of this" for p in PROMPTS])
    for fill in (Fill("zero"), Fill("resample"), Fill("patch", source=source)):
        fast, slow = both(any_family, every_site(), fill, last=last)
        np.testing.assert_allclose(fast.clean, slow.clean, atol=1e-4)
        np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
        if fill.mode == "zero":
            assert np.abs(fast.effect).max(1).min() > 1e-6  # every edit does something
    moments = collect(any_family, rows(any_family))
    fast, slow = both(any_family, all_units(any_family), Fill("mean", moments), last=last)
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    assert fast.values.shape == (2 * (12 + 4), 4) and (fast.engine, slow.engine) == ("replay", "loop")


@pytest.mark.parametrize("last", [1, None])
def test_replay_is_the_hook_loop_on_mixtures_of_experts(any_experts: ChatModel, last: int | None):
    """At every site but the neurons, which are no units; each position chooses its experts anew."""
    edits = [e for e in every_site() if e.site is not Site.NEURON]
    fast, slow = both(any_experts, edits, Fill("zero"), last=last)
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    assert np.abs(fast.effect).max(1).min() > 1e-6
    moments = collect(any_experts, rows(any_experts))
    fast, slow = both(any_experts, all_units(any_experts), Fill("mean", moments), last=last)
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    assert fast.values.shape == (2 * 4, 4)


@given(st.data())
def test_windows_choose_positions(micro: ChatModel, data):
    n = max(len(r.ids) for r in rows(micro))
    shape = (data.draw(st.integers(1, 4)), n)
    window = data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=shape[0], max_size=shape[0]))
    edits = [Edits(Site.NEURON, 0, np.arange(shape[0]), np.array(window)), Edits(Site.RESID, 1, np.zeros(1, int))]
    fast, slow = both(micro, edits, Fill("zero"), last=2)
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    for row, chosen in zip(fast.values, window, strict=False):
        if not any(chosen):
            np.testing.assert_allclose(row, fast.clean, atol=1e-5)


def test_a_zeroed_neuron_by_hand(micro: ChatModel):
    """The last layer's neuron at the decision position: its column times its activation leaves the residual stream."""
    batch = micro.pad(rows(micro)[:1])
    seen: dict[str, torch.Tensor] = {}
    names = ("blocks.1.mlp.hook_post", "blocks.1.hook_resid_post")
    hooks = [(n, lambda x, hook, n=n: seen.update({n: x.detach().clone()})) for n in names]
    with micro.bridge.hooks(fwd_hooks=hooks), torch.no_grad():
        micro.logits(batch)
    left = seen[names[1]][0, -1] - seen[names[0]][0, -1, 7] * micro.anatomy.blocks[1].down.weight[:, 7]
    with torch.no_grad():
        logits = micro.plain.lm_head(micro.plain.model.norm(left))
    got = sweep(micro, rows(micro)[:1], METRIC, [Edits(Site.NEURON, 1, np.array([7]))], Fill("zero"))
    assert got.values[0, 0] == pytest.approx(float(METRIC.of(logits[None])), abs=1e-4)
    assert got.estimand == "zero at the decision position"


def test_chunks_do_not_change_values(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    whole = sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"))
    monkeypatch.setattr("ssah_lens.intervene.sweep.CHUNK_TOKENS", 12)
    np.testing.assert_allclose(sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero")).values, whole.values,
                               atol=1e-5)  # fmt: skip


def test_the_refusal_score_reads_the_whole_vocabulary(micro: ChatModel):
    score = refusal_log_odds([40, 50])
    fast, slow = (
        sweep(micro, rows(micro), score, all_units(micro), Fill("zero"), engine=e) for e in ("replay", "loop")
    )
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)


def test_a_killed_sweep_resumes_with_the_same_values(micro: ChatModel, tmp_path, monkeypatch: pytest.MonkeyPatch):
    from ssah_lens.intervene import sweep as module

    whole = sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"))
    ran, real = [], module._Replayed._chunk

    def counted(self, edits, part):
        ran.append(len(part))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return real(self, edits, part)

    monkeypatch.setattr(module._Replayed, "_chunk", counted)
    store = tmp_path / "kept" / "sweep.npy"
    with pytest.raises(KeyboardInterrupt):
        sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"), store=store)
    done = int((~np.isnan(np.load(store))).all(1).sum())
    assert 0 < done < len(whole.values)
    ran[:] = [0] * 10
    again = sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"), store=store)
    np.testing.assert_array_equal(again.values, whole.values)
    assert sum(ran[10:]) == len(whole.values) - done
    with pytest.raises(BadInput, match="another sweep"):
        sweep(micro, rows(micro)[:2], METRIC, all_units(micro), Fill("zero"), store=store)


def test_bfloat16_is_close_and_says_nothing_else(micro: ChatModel):
    exact = sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"))
    low = sweep(micro, rows(micro), METRIC, all_units(micro), Fill("zero"), bfloat16=True)
    assert 0 <= np.abs(low.values - exact.values).max() < 0.2


@pytest.mark.parametrize(
    ("edits", "match"),
    [
        ([Edits(Site.NEURON, 0, np.array([12]))], "there are 0-11"),
        ([Edits(Site.HEAD, 0, np.array([-1]))], "there are 0-3"),
        ([Edits(Site.HEAD, 2, np.array([0]))], "layers 0-1"),
        ([], "at least one"),
    ],
)
def test_units_outside_the_model_are_refused(micro: ChatModel, edits, match):
    with pytest.raises(BadInput, match=match):
        sweep(micro, rows(micro), METRIC, edits, Fill("zero"))


def test_a_metric_that_is_not_finite_is_refused(micro: ChatModel):
    nothing = Metric("log of nothing", torch.tensor([3]), lambda logits: (logits[..., 0] * 0).log())
    with pytest.raises(BadInput, match="log of nothing.*not finite"):
        sweep(micro, rows(micro), nothing, [Edits(Site.HEAD, 0, np.array([0]))], Fill("zero"))


def test_bad_fills_and_settings_are_refused(micro: ChatModel):
    edits = [Edits(Site.HEAD, 0, np.array([0]))]
    for call, match in (
        (lambda: Fill("median"), "zero, mean, resample, patch"),
        (lambda: Fill("mean"), "needs activation moments"),
        (lambda: Fill("patch"), "rows to patch from"),
        (lambda: sweep(micro, rows(micro), METRIC, edits, Fill("zero"), engine="magic"), "replay, loop"),
        (lambda: sweep(micro, rows(micro), METRIC, edits, Fill("zero"), last=0), "1 or more"),
        (lambda: all_units(micro, layers=[5]), "layers 0-1"),
        (lambda: logit_difference([1], [1]), "fulfilling"),
    ):
        with pytest.raises(BadInput, match=match):
            call()


def test_all_units_come_in_the_order_of_kinds_layers_indices(micro: ChatModel):
    got = [(e.site, e.layer, len(e)) for e in all_units(micro)]
    assert got == [(Site.of(k), i, micro.grid.width(k)) for k in Kind for i in (0, 1)]


def test_the_model_is_left_as_it_was(micro: ChatModel):
    before = micro.plain.config._attn_implementation, [len(m._forward_pre_hooks) for m in micro.plain.modules()]
    sweep(micro, rows(micro), METRIC, every_site(), Fill("zero"))
    assert before == (
        micro.plain.config._attn_implementation,
        [len(m._forward_pre_hooks) for m in micro.plain.modules()],
    )
