"""What takes an activation's place: another prompt's, another run's, a mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asked import METRIC, PROMPTS

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution import attribution, curvature
from ssah_lens.intervene.fill import donors, estimand
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.sites import Site
from ssah_lens.intervene.sweep import Edits, Fill, all_units, sweep
from ssah_lens.units import Kind

HEADS = [Edits(Site.HEAD, 0, np.arange(4)), Edits(Site.HEAD, 1, np.arange(4))]


def test_a_donor_is_another_prompt_by_the_seed_and_the_place(micro: ChatModel):
    rows = micro.rows([*PROMPTS, "Hi"])
    found = [donors(rows, seed) for seed in range(40)]
    assert all(rows[j].ids != rows[i].ids for chosen in found for i, j in enumerate(chosen)), "not its double either"
    assert found[3] == donors(rows, 3) and len({tuple(f) for f in found}) > 20
    assert all({f[i] for f in found} == {j for j in range(5) if rows[j].ids != rows[i].ids} for i in range(5))


@pytest.mark.parametrize("engine", ["replay", "loop"])
@pytest.mark.parametrize("last", [1, None])
def test_resampling_is_patching_from_the_donors_whatever_the_batches(
    micro: ChatModel, monkeypatch: pytest.MonkeyPatch, engine: str, last: int | None
):
    """Also when every prompt has a batch of its own, where there is no other prompt to roll to."""
    rows = micro.rows(PROMPTS)
    fill = Fill("resample", seed=1)
    together = sweep(micro, rows, METRIC, HEADS, fill, last, engine)
    monkeypatch.setattr("ssah_lens.intervene.room.BATCH_TOKENS", 1)
    apart = sweep(micro, rows, METRIC, HEADS, fill, last, engine)
    np.testing.assert_allclose(apart.values, together.values, atol=1e-5)
    assert np.abs(apart.effect).max(0).min() > 1e-4, "no prompt stands for itself"
    if last == 1:
        source = [rows[i] for i in donors(rows, 1)]
        by_hand = sweep(micro, rows, METRIC, HEADS, Fill("patch", source=source), last, engine)
        np.testing.assert_allclose(together.values, by_hand.values, atol=1e-5)
    assert np.abs(sweep(micro, rows, METRIC, HEADS, Fill("resample", seed=2), last).values - apart.values).max() > 1e-4


def test_a_shorter_donor_is_read_again_from_its_end(micro: ChatModel):
    """By hand: position -k takes what the donor has at -((k - 1) mod its length) - 1."""
    rows = micro.rows([PROMPTS[2], "Hi"])
    found = sweep(micro, rows, METRIC, [Edits(Site.MLP, 0, np.zeros(1, int))], Fill("resample"), None)
    name, seen = Site.MLP.hook(0), []
    with torch.inference_mode():
        with micro.bridge.hooks(fwd_hooks=[(name, lambda x, hook: seen.append(x.clone()))]):
            micro.logits(micro.pad(rows[1:]))
        n = len(rows[0].ids)
        put = seen[0][:, [-((k - 1) % len(rows[1].ids)) - 1 for k in range(n, 0, -1)]]
        with micro.bridge.hooks(fwd_hooks=[(name, lambda x, hook: put)]):
            want = METRIC.of(micro.logits(micro.pad(rows[:1]))[:, -1])
    assert found.values[0, 0] == pytest.approx(float(want), abs=1e-4)


def test_one_prompt_alone_cannot_be_resampled(micro: ChatModel):
    for texts in (["Hi"], ["Hi", "Hi"]):
        with pytest.raises(BadInput, match="at least two different prompts"):
            sweep(micro, micro.rows(texts), METRIC, HEADS, Fill("resample"))
        with pytest.raises(BadInput, match="at least two different prompts"):
            attribution(micro, micro.rows(texts), METRIC, Fill("resample"))


def test_attribution_takes_the_same_donors_whatever_the_batches(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    rows = micro.rows(PROMPTS)
    together = attribution(micro, rows, METRIC, Fill("resample"), None)
    monkeypatch.setattr("ssah_lens.intervene.attribution.BATCH_TOKENS", 1)
    apart = attribution(micro, rows, METRIC, Fill("resample"), None)
    for kind in Kind:
        np.testing.assert_allclose(apart[kind], together[kind], atol=1e-4)
    with pytest.raises(BadInput, match="allowed are zero and mean"):
        curvature(micro, rows, Fill("resample"))


def test_every_row_to_patch_from_is_checked(micro: ChatModel):
    """Each by itself: that the longest is long enough does not help the others."""
    rows, short = micro.rows(PROMPTS), micro.rows(["Hi"])[0]
    n = len(short.ids)
    for call in (
        lambda source, last: sweep(micro, rows, METRIC, HEADS, Fill("patch", source=source), last),
        lambda source, last: attribution(micro, rows, METRIC, Fill("patch", source=source), last),
    ):
        with pytest.raises(BadInput, match=f"row 3 to patch from has {n} tokens, fewer than the {n + 1} positions"):
            call([*rows[:2], short, rows[3]], n + 1)
        with pytest.raises(BadInput, match="row 1 to patch from"):
            call([short, *rows[1:]], None)
        with pytest.raises(BadInput, match="4 prompts need as many rows to patch from: got 3"):
            call(rows[:3], 1)
    window = np.zeros((4, n + 1), dtype=bool)
    window[1, 0] = True
    wide = [Edits(Site.HEAD, 0, np.arange(4), window)]
    with pytest.raises(BadInput, match=f"row 1 .* fewer than the {n + 1} positions"):
        sweep(micro, rows, METRIC, wide, Fill("patch", source=[short] * 4), 1)


def test_a_row_needs_no_more_than_its_own_positions(micro: ChatModel):
    """A short prompt beside a long one: padding is not patched, and asks nothing of its source."""
    rows = micro.rows(PROMPTS)
    source = micro.rows([p[::-1] for p in PROMPTS])
    fast, slow = (
        sweep(micro, rows, METRIC, all_units(micro), Fill("patch", source=source), None, e) for e in ("replay", "loop")
    )
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-4)
    alone = sweep(micro, rows[1:2], METRIC, all_units(micro), Fill("patch", source=source[1:2]), None)
    np.testing.assert_allclose(alone.values[:, 0], fast.values[:, 1], atol=1e-4)


def test_the_estimand_names_the_positions_that_edits_choose(micro: ChatModel):
    windowed = lambda *rows: Edits(Site.HEAD, 0, np.arange(len(rows)), np.array(rows, dtype=bool))
    plain, one = Edits(Site.HEAD, 0, np.arange(2)), windowed([0, 1, 0])
    for edits, want in (
        ([plain], "all positions"),
        ([one], "one chosen position"),
        ([windowed([0, 1, 0], [0, 0, 1])], "one position at a time"),
        ([windowed([0, 0, 1])], "the decision position"),
        ([windowed([0, 1, 1], [0, 1, 1])], "the last 2 positions"),
        ([windowed([1, 0, 1])], "2 chosen positions"),
        ([windowed([0, 0, 0])], "no position"),
        ([plain, one], "all positions or one chosen position"),
        ([windowed([1, 0, 1], [0, 1, 1], [0, 1, 0])], "chosen positions, other ones by edit"),
    ):
        assert estimand(Fill("zero"), None, edits) == f"zero at {want}"
    got = sweep(micro, micro.rows(PROMPTS[:1]), METRIC, [one], Fill("zero"), None)
    assert got.estimand == "zero at one chosen position"


def test_the_mean_of_a_whole_site_is_that_of_its_position_class(micro: ChatModel, monkeypatch: pytest.MonkeyPatch):
    """By hand: one row at a time, means over all tokens of a class, put in at the decision position by a hook."""
    rows = micro.rows(PROMPTS)
    sites = [Site.RESID, Site.ATTN, Site.MLP]
    monkeypatch.setattr("ssah_lens.chat.batch.FORWARD_OVERHEAD", 1)
    means = collect(micro, rows, sites=sites)
    found = sweep(micro, rows, METRIC, [Edits(s, 1, np.zeros(1, int)) for s in sites], Fill("mean", means))
    for value, site in zip(found.values, sites, strict=True):
        seen: list[torch.Tensor] = []
        with micro.bridge.hooks(fwd_hooks=[(site.hook(1), lambda x, hook, seen=seen: seen.append(x[0].clone()))]):
            for row in rows:
                micro.logits(micro.pad([row]))
        classes = torch.tensor([p for row in rows for p in row.positions])
        mean = torch.cat(seen)[classes == rows[0].positions[-1]].mean(0)
        put = lambda x, hook, mean=mean: torch.cat([x[:, :-1], mean.expand(len(x), 1, -1)], 1)
        with torch.inference_mode(), micro.bridge.hooks(fwd_hooks=[(site.hook(1), put)]):
            want = [float(METRIC.of(micro.logits(micro.pad([row]))[:, -1])) for row in rows]
        np.testing.assert_allclose(value, want, atol=1e-4)
    assert np.abs(found.effect).max(1).min() > 1e-4
    with pytest.raises(
        BadInput, match=r"no means of site 'mlp' were collected; collect\(model, rows, sites=\['mlp'\]\)"
    ):
        sweep(micro, rows, METRIC, [Edits(Site.MLP, 1, np.zeros(1, int))], Fill("mean", collect(micro, rows)))
