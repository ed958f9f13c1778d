"""Curves while fine-tuning, and our numbers beside the paper's."""

from __future__ import annotations

import pytest
from made_up import made_up

from ssah_lens.errors import BadInput
from ssah_lens.results import CurvePoint, Training
from ssah_lens.show import figures
from ssah_lens.show.paper_figures import ablation_beside_paper, freezing_beside_paper
from ssah_lens.show.reference import PAPER_ABLATION, PAPER_FREEZING
from ssah_lens.show.tuning_figures import LOOKS, tuning_curves

CURVE = (CurvePoint(0, 1.0, 2.0), CurvePoint(4, 0.75, 1.5), CurvePoint(8, 0.5, 1.25))


def test_every_look_is_a_point_of_its_run():
    refused, loss = tuning_curves({"a": CURVE, "b": CURVE[:2]}, 16).axes
    assert [line.get_xydata().tolist() for line in refused.lines] == [
        [[0, 1], [4, 0.75], [8, 0.5]],
        [[0, 1], [4, 0.75]],
    ]
    assert loss.lines[0].get_ydata().tolist() == [2.0, 1.5, 1.25]
    assert [t.get_text() for t in refused.get_legend().get_texts()] == ["a", "b"]


def test_without_a_loss_there_is_one_panel():
    assert len(tuning_curves({"a": [CurvePoint(0, 0.5, None)]}, 16).axes) == 1


@pytest.mark.parametrize("runs", [{}, {"a": ()}, {str(i): CURVE for i in range(len(LOOKS) + 1)}])
def test_curves_that_cannot_be_told_apart_are_refused(runs):
    with pytest.raises(BadInput, match="allowed are 1 to 6"):
        tuning_curves(runs, 16)


def test_looks_differ_without_colour():
    assert len({(marker, line) for _, marker, line in LOOKS}) == len(LOOKS)


def test_a_long_noisy_run_gets_its_running_mean():
    losses = tuple(float(i % 2) for i in range(40))
    (axes,) = figures.training({"alignment": Training(losses, 300)}).axes
    raw, mean = axes.lines
    assert raw.get_ydata().tolist() == list(losses) and len(mean.get_ydata()) == 40
    assert all(0.4 < y < 0.6 for y in mean.get_ydata()[4:-4])
    (short,) = figures.training({"alignment": Training(losses[:10], 300)}).axes
    assert len(short.lines) == 1


def ends(figure) -> list[tuple[float, float]]:
    """(before, after) of every dumbbell, from its connecting line."""
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    return [tuple(round(float(x), 3) for x in line.get_xdata()) for line in lines]


def test_the_paper_stands_below_our_run():
    results = made_up()
    drawn = ends(ablation_beside_paper(results.ablate))
    base = round(1 - results.ablate.baseline.harmful.refused.value, 3)
    scu = round(1 - results.ablate.find("SCU").behaviour.harmful.refused.value, 3)
    assert drawn[0] == (base, scu) and len(drawn) == 4 + len(PAPER_ABLATION)
    assert drawn[4] == (0.1, 0.66), "Llama-2's SCU in the paper's Table 2"
    frozen = ends(freezing_beside_paper(results.freeze))
    assert len(frozen) == 3 + len(PAPER_FREEZING) and frozen[3] == (0.002, 0.053)
