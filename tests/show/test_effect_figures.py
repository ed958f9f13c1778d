"""Two effects of the same units as a picture: every unit where it belongs, what is missed shown and named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssah_lens.errors import BadInput
from ssah_lens.results import EffectAgreement
from ssah_lens.show.effect_figures import agreement_picture, agreement_scatter


def made_up(n: int = 500) -> EffectAgreement:
    exact = np.random.default_rng(0).standard_t(3, n)
    labels = tuple(f"neuron 1.{i}" for i in range(n))
    missed = tuple(labels[i] for i in np.argsort(-np.abs(exact))[:3])
    return EffectAgreement(
        "attribution patching", "exact effect", "zero at the decision position", "logit difference", labels,
        tuple(exact.tolist()), tuple((exact * 2).tolist()), 0.875, {0.01: 0.6}, missed, 32,
    )  # fmt: skip


def test_units_stand_where_their_effects_say_and_missed_ones_are_named():
    found = made_up()
    axes = agreement_scatter(found).axes[0]
    ranked, missed = axes.collections
    drawn = np.vstack([ranked.get_offsets(), missed.get_offsets()])
    order = lambda points: points[np.argsort(points[:, 0])]
    np.testing.assert_allclose(order(drawn), order(np.stack([found.exact, found.guess], 1)))
    assert len(missed.get_offsets()) == 3 and {t.get_text() for t in axes.texts} <= set(found.missed)
    assert len(axes.texts) == 2, "the third would run into another"
    together = replace(found, guess=tuple(0.0 for _ in found.guess), exact=tuple(1.0 for _ in found.exact))
    assert len(agreement_scatter(together).axes[0].texts) == 1, "names do not run into each other"


def test_the_caption_says_what_n_and_how_well():
    words = " ".join(agreement_scatter(made_up())._supxlabel.get_text().split())
    for part in ("n = 500", "32 prompts", "0.88", "top 1% by size, 60% agree", "zero at the decision position"):
        assert part in words
    without = agreement_scatter(replace(made_up(), spearman=None))._supxlabel.get_text()
    assert "Spearman" not in without


def test_no_effect_at_all_is_a_picture_too():
    nothing = (0.0,) * 60
    found = replace(made_up(60), exact=nothing, guess=nothing, missed=(), spearman=None)
    assert agreement_scatter(found).axes[0].get_xlim()[0] < 0


def test_hover_tells_the_unit(tmp_path: Path):
    shown = agreement_picture(made_up())
    ranked, missed = shown.interactive().data
    assert set(missed.text) == set(made_up().missed) and len(ranked.text) == 497
    assert shown.save(tmp_path / "a.html").stat().st_size > 5000 and shown._repr_png_().startswith(b"\x89PNG")
    many = agreement_picture(made_up(9000)).interactive().data
    assert len(many[0].text) < 3200 and len(many[1].text) == 3


@pytest.mark.parametrize(
    ("change", "match"),
    [({"exact": (1.0, 2.0)}, "same units, got 2 and 60 for 60"), ({"guess": (float("nan"),) * 60}, "not finite")],
)
def test_what_cannot_be_drawn_is_refused(change: dict, match: str):
    with pytest.raises(BadInput, match=match):
        agreement_scatter(replace(made_up(60), **change))
