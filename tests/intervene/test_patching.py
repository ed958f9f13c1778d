"""Activation patching and attribution on micro models: no-ops, ends of the scale, hand-made effects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from asked import CLEAN, CORRUPTED, METRIC

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution import agreement, attribution
from ssah_lens.intervene.attribution_patching import attribution_patching
from ssah_lens.intervene.metric import Metric, metric_of
from ssah_lens.intervene.moments import collect
from ssah_lens.intervene.patching import Patched, activation_patching
from ssah_lens.intervene.sites import Site, parse_site
from ssah_lens.intervene.sweep import Fill, all_units, sweep
from ssah_lens.units import Kind


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
    run = "corrupted" if noising else "clean"
    where = "one position at a time" if by_position else "all positions at once"
    assert fast.estimand == f"its value in the {run} run, {where}"
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


def made_up(values: list, clean: list, corrupted: list) -> Patched:
    ends = np.array(clean, dtype=float), np.array(corrupted, dtype=float)
    labels = {"layer": tuple(map(str, range(len(values))))}
    return Patched(Site.RESID, False, ("layer",), labels, np.array(values, dtype=float), *ends, "metric", 1, 1)


def test_intervals_of_two_pairs_by_hand():
    """Half of the draws take one pair twice: effects 1/4 and 3/2 are the ends; both together give (1 + 3) / (4 + 2)."""
    found = made_up([[1, 3]], [4, 2], [0, 0])
    assert found.effect[0] == pytest.approx(4 / 6)
    low, high = found.interval()
    assert (low[0], high[0]) == (pytest.approx(1 / 4), pytest.approx(3 / 2))


def test_intervals_are_those_of_scipy():
    """Percentile bootstrap of a ratio of means over pairs drawn together; a pair that a cell lacks is left out."""
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)
    clean, corrupted = rng.normal(3, 1, 12), rng.normal(-1, 0.5, 12)
    values = corrupted + rng.normal(0.4, 0.3, (2, 12)) * (clean - corrupted)
    low, high = made_up(values, clean, corrupted).interval(seed=1)
    for row, ends in zip(values, zip(low, high, strict=True), strict=True):
        ratio = lambda v, c, k, axis: (v - k).mean(axis) / (c - k).mean(axis)
        theirs = bootstrap(
            (row, clean, corrupted), ratio, paired=True, method="percentile", vectorized=True, n_resamples=9999,
            random_state=np.random.default_rng(2),
        ).confidence_interval  # fmt: skip
        np.testing.assert_allclose(ends, theirs, atol=0.02)
    lacking = values.copy()
    lacking[0, 3:] = np.nan
    some = made_up(lacking[:1, :3], clean[:3], corrupted[:3])
    assert made_up(lacking, clean, corrupted).effect[0] == pytest.approx(some.effect[0])


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


@pytest.mark.parametrize("noising", [False, True])
def test_a_metric_that_is_not_finite_on_either_side_is_refused(micro: ChatModel, noising: bool):
    """Also where it fails on one run only, patched or not; and where only its gradient does."""
    values = [float(metric_of(micro, micro.rows(side), METRIC)[0]) for side in (CLEAN[:1], CORRUPTED[:1])]
    between = sum(values) / 2
    for sign in (1, -1):
        broken = Metric("log", METRIC.columns, lambda x, s=sign: (s * (METRIC.function(x) - between)).log())
        side = "clean" if sign * (values[0] - between) < 0 else "corrupted"
        for call in (activation_patching, attribution_patching):
            with pytest.raises(BadInput, match=f"'log' is not finite on the ({side} prompts|undamaged model)"):
                call(micro, CLEAN[:1], CORRUPTED[:1], broken, Site.RESID, noising=noising)
    steep = Metric("root", METRIC.columns, lambda x: (METRIC.function(x) * 0).sqrt() + METRIC.function(x))
    with pytest.raises(BadInput, match="'root' is not finite with resid patched"):
        attribution_patching(micro, CLEAN[:1], CORRUPTED[:1], steep, Site.RESID, noising=noising)


def test_layers_outside_the_model_are_refused(micro: ChatModel):
    for call in (activation_patching, attribution_patching):
        for layers, match in (([9], "no layer 9"), ([-1], "no layer -1"), ([], "no layers are given")):
            with pytest.raises(BadInput, match=f"{match}: the model has layers 0-1"):
                call(micro, CLEAN, CORRUPTED, METRIC, Site.RESID, layers=layers)


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


def test_the_gradient_is_exact_for_small_changes(micro: ChatModel):
    """A fill very near the activation: central difference of the exact effect, for every unit."""
    rows = micro.rows(CLEAN[:1])
    at, seen = rows[0].positions[-1], {}
    hooks = [
        (k.hook(i), lambda x, hook, place=(k, i): seen.update({place: x[0, -1].flatten().double()}))
        for k in Kind
        for i in (0, 1)
    ]
    with torch.no_grad(), micro.bridge.hooks(fwd_hooks=hooks):
        micro.logits(micro.pad(rows))
    generator = torch.Generator().manual_seed(0)
    steps = {place: 0.05 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for place, x in seen.items()}

    def near(sign: int) -> Fill:
        moments = collect(micro, rows)
        for (kind, layer), x in seen.items():
            moments.mean[kind][layer, at] = x + sign * steps[kind, layer]
        return Fill("mean", moments)

    exact = [sweep(micro, rows, METRIC, all_units(micro), near(sign)).effect.mean(1) for sign in (1, -1)]
    guess = attribution(micro, rows, METRIC, near(1))
    slope = (exact[0] - exact[1]) / 2
    together = np.concatenate([flat(guess, k) for k in Kind])
    np.testing.assert_allclose(together, slope, rtol=0.02, atol=0.005 * np.abs(slope).max())


def test_agreement_of_guesses_with_exact_effects(micro: ChatModel):
    rows = micro.rows(CLEAN)
    fill = Fill("mean", collect(micro, rows))
    exact = sweep(micro, rows, METRIC, all_units(micro), fill).effect.mean(1)
    guess = attribution(micro, rows, METRIC, fill)
    got = agreement(exact, np.concatenate([flat(guess, k) for k in Kind]), shares=(0.1, 0.5))
    assert got.n == 32 and got.spearman > 0.7 and 0 <= got.overlap[0.1] <= 1
    same = agreement(exact, exact)
    assert same.spearman == pytest.approx(1) and set(same.overlap.values()) == {1.0}


@pytest.mark.parametrize(("fill", "forwards"), [("zero", 1), ("resample", 2), ("patch", 2)])
def test_attribution_takes_one_forward_and_one_backward_per_batch(
    micro: ChatModel, passes: dict[str, int], fill: str, forwards: int
):
    """And one more forward of the run that activations are taken from, whatever the number of layers and kinds."""
    rows = micro.rows(CLEAN)
    source = micro.rows(CORRUPTED) if fill == "patch" else None
    n = len(micro.batches(rows, share_prefix=False))
    attribution(micro, rows, METRIC, Fill(fill, source=source), None)
    assert passes == {"forward": n * forwards, "backward": n}


@pytest.mark.parametrize("site", [Site.RESID, Site.NEURON])
def test_attribution_patching_takes_two_forwards_and_one_backward_per_batch(micro: ChatModel, passes, site: Site):
    n = len(micro.batches(micro.rows(CLEAN), share_prefix=False))
    attribution_patching(micro, CLEAN, CORRUPTED, METRIC, site)
    assert passes == {"forward": 2 * n, "backward": n}


@pytest.fixture
def passes(micro: ChatModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often the micro model is run, in either view of it, and gradients are taken."""
    seen = {"forward": 0, "backward": 0}
    backward = torch.Tensor.backward

    def count(what: str) -> None:
        seen[what] += 1

    monkeypatch.setattr(torch.Tensor, "backward", lambda *args, **opts: count("backward") or backward(*args, **opts))
    views = micro.plain, micro.bridge.original_model
    handles = [m.register_forward_hook(lambda *args: count("forward")) for m in views]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("steps", [0, 2])
def test_attribution_of_a_metric_that_is_not_finite_is_refused(micro: ChatModel, steps: int):
    rows = micro.rows(CLEAN)
    nothing = Metric("log", METRIC.columns, lambda x: (METRIC.function(x) * 0).log())
    with pytest.raises(BadInput, match="'log' is not finite on the undamaged model"):
        attribution(micro, rows, nothing, Fill("zero"), steps=steps)
    steep = Metric("root", METRIC.columns, lambda x: (METRIC.function(x) * 0).sqrt())
    with pytest.raises(BadInput, match="'root' is not finite in its gradient at neuron of layer 0"):
        attribution(micro, rows, steep, Fill("zero"), steps=steps)


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
