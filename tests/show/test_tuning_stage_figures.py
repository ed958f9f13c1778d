"""The pictures and sections of `tuning`, `budget` and `transfer` are drawn from labelled results."""

from __future__ import annotations

import numpy as np
from made_up_tuning_stage import budget, transfer, tuning

from ssah_lens.results import Results
from ssah_lens.show.run_folder import draw
from ssah_lens.show.sections import sections
from ssah_lens.show.tuning_stage_figures import methods, tradeoff

RESULTS = Results(tuning=tuning(), budget=budget(), transfer=transfer())


def test_every_figure_is_drawn_and_has_its_words():
    drawn = draw(RESULTS)
    told = {name: alt for s in sections(RESULTS) for name, alt in s.figures.items()}
    assert set(drawn) == set(told) == {"tuning_ordinary", "tuning_tradeoff_ordinary", "budget", "transfer"}
    assert all(len(alt) > 20 for alt in told.values())


def test_methods_hold_every_run_but_those_of_the_trade_off():
    result = tuning()
    figure = methods(result.before[0], result.arms)
    left = figure.axes[0]
    names = [t.get_text() for t in left.get_yticklabels()]
    assert names[0] == "full" and not [n for n in names if "0." in n]
    points = [line for line in left.lines if line.get_linestyle() == "None" and len(line.get_xdata()) == 1]
    assert len(points) >= sum(a.method in names for a in result.arms)


def test_trade_off_reads_shares_from_the_arms():
    result = tuning()
    top = tradeoff(result.before[0], result.arms).axes[0]
    lines = {line.get_label(): line for line in top.containers}
    data = lines["safest units by score"].lines[0].get_xydata()
    np.testing.assert_allclose(data[:, 0], [0.01, 0.1, 0.3, 0.5, 0.7, 0.9])
    assert np.all(np.diff(data[:, 1]) >= 0)
