"""Attribution patching of maps: against finite differences through TransformerLens hooks, and completeness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asked import CLEAN, CORRUPTED, METRIC

from ssah_lens.chat.model import ChatModel
from ssah_lens.errors import BadInput
from ssah_lens.intervene.attribution_patching import attribution_patching, changeable
from ssah_lens.intervene.patching import activation_patching
from ssah_lens.intervene.sites import Site

STEP = 1e-3


def metric_of(model: ChatModel, texts: list[str], hooks=()) -> np.ndarray:
    """By the bridge, left-padded."""
    with torch.inference_mode(), model.bridge.hooks(fwd_hooks=list(hooks)):
        return METRIC.of(model.logits(model.pad(model.rows(texts)))[:, -1]).numpy()


def activation(model: ChatModel, texts: list[str], name: str) -> torch.Tensor:
    found = []
    metric_of(model, texts, [(name, lambda x, hook: found.append(x.clone()))])
    return found[0]


@pytest.mark.parametrize("site", list(Site))
def test_a_cell_is_the_slope_on_the_way_to_the_other_run(any_family: ChatModel, site: Site):
    """Central difference of the metric along (other run - this run), at one unit and one position."""
    noising = site in (Site.ATTN, Site.HEAD)
    found = attribution_patching(any_family, CLEAN, CORRUPTED, METRIC, site, by_position=True, noising=noising)
    run, source = (CLEAN, CORRUPTED) if noising else (CORRUPTED, CLEAN)
    layer, unit, at = 1, min(2, site.units(any_family.anatomy) - 1), -2
    name = site.hook(layer)
    width = site.width(any_family.anatomy) // site.units(any_family.anatomy)
    toward = (activation(any_family, source, name) - activation(any_family, run, name)).flatten(2)
    part = torch.zeros_like(toward)
    of = slice(unit * width, (unit + 1) * width)
    part[:, at, of] = toward[:, at, of]
    ends = [
        metric_of(any_family, run, [(name, lambda x, hook, s=s: x + s * STEP * part.view_as(x))]) for s in (1.0, -1.0)
    ]
    slope = (ends[0] - ends[1]) / (2 * STEP)
    values = found.values if site in (Site.HEAD, Site.NEURON) else found.values[:, None]
    base = found.clean if noising else found.corrupted
    np.testing.assert_allclose(values[layer, unit, at] - base, slope, atol=5e-3, rtol=5e-2)


def test_integrated_gradients_of_the_residual_stream_add_up_to_the_whole(any_family: ChatModel):
    """Completeness: moving a block's whole input to the other run is the other run, whatever the block."""
    for noising in (False, True):
        found = attribution_patching(any_family, CLEAN, CORRUPTED, METRIC, Site.RESID, noising=noising, steps=60)
        base, other = (found.clean, found.corrupted)[:: 1 if noising else -1]
        change = np.nansum(found.values - base, axis=1)
        np.testing.assert_allclose(change, np.broadcast_to(other - base, change.shape), atol=0.02)


@pytest.mark.parametrize("site", [Site.RESID, Site.HEAD, Site.NEURON])
def test_a_guess_is_labelled_as_the_exact_map_and_knows_its_no_ops(micro: ChatModel, site: Site):
    exact, guess = (f(micro, CLEAN, CORRUPTED, METRIC, site) for f in (activation_patching, attribution_patching))
    assert (guess.axes, guess.labels, guess.cells) == (exact.axes, exact.labels, exact.cells)
    assert (guess.method, guess.cells_run) == ("attribution patching", 0) and exact.method == "exact"
    np.testing.assert_allclose([guess.clean, guess.corrupted], [exact.clean, exact.corrupted], atol=1e-4)
    if site is Site.RESID:
        same = exact.values == exact.corrupted
        rows = micro.rows(CORRUPTED)
        for i, row in enumerate(rows):
            first = next(k for k, (a, b) in enumerate(zip(row.ids, micro.rows(CLEAN)[i].ids, strict=True)) if a != b)
            start = len(guess.labels["pos"]) - len(row.ids)
            assert (guess.values[:, start : start + first, i] == guess.corrupted[i]).all()
        assert same.any() and changeable(exact).any()


def test_nothing_is_left_behind_and_bad_settings_are_refused(micro_copy: ChatModel):
    model = micro_copy
    flags = [p.requires_grad for p in model.plain.parameters()]
    hooks = lambda: [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.plain.modules()]
    before = hooks()
    for steps in (0, 2):
        attribution_patching(model, CLEAN, CORRUPTED, METRIC, Site.MLP, steps=steps)
    assert hooks() == before and [p.requires_grad for p in model.plain.parameters()] == flags
    assert all(p.grad is None for p in model.plain.parameters())
    for call, match in (
        (lambda: attribution_patching(model, CLEAN, CORRUPTED, METRIC, Site.MLP, steps=-1), "0 .plain gradient"),
        (lambda: attribution_patching(model, ["abc"], ["abc def"], METRIC, Site.MLP), "not token-aligned"),
    ):
        with pytest.raises(BadInput, match=match):
            call()
