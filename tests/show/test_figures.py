"""The figures, from made-up results: what is drawn, how it is labelled, and that n is told."""

from __future__ import annotations

import pytest
from made_up import ROLE_COUNTS, made_up, made_up_table

from ssah_lens.results import Results
from ssah_lens.show import figures
from ssah_lens.show.style import ROLE_COLOURS
from ssah_lens.units import Role


@pytest.fixture(scope="module")
def results() -> Results:
    return made_up()


def labels(axes) -> set[str]:
    return set(axes.get_legend_handles_labels()[1])


def all_text(figure) -> str:
    texts = [
        t.get_text() for axes in figure.axes for t in (*axes.texts, axes.title, axes._left_title, axes.xaxis.label)
    ]
    return " ".join([*texts, figure.get_suptitle(), figure.get_supxlabel()]).replace("\u00a0", " ")


def test_a_notebook_draws_a_figure_before_anything_used_pyplot(results: Results) -> None:
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(figures.behaviour(results.refusal))
    assert shown["image/png"]


def test_the_behaviour_figure_has_a_bar_per_outcome(results: Results) -> None:
    figure = figures.behaviour(results.refusal)
    (axes,) = figure.axes
    assert len(axes.patches) == 3 * 2 * 3 and labels(axes) == {"refused", "fulfilled", "incoherent"}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["aligned", "unaligned"] * 3
    assert "97%" in all_text(figure) and "n = 60" in all_text(figure) and "n = 40" in all_text(figure)


def test_the_role_figure_shows_roles_beside_random_sets(results: Results) -> None:
    figure = figures.roles_ablated(results.ablate)
    refused, noise, choices, perplexity = figure.axes
    assert len(refused.containers) == 4 * 2 + 3 + 3 and len(choices.containers) == 4 + 3 + 3
    want = {"role, mean ablation", "role, zero ablation", "random set, mean ablation", "undamaged model"}
    assert labels(refused) == want
    assert perplexity.get_yscale() == "log" and noise.get_title(loc="left").startswith("Incoherent")
    assert "1.0% of units" in refused.get_figure().axes[-1].get_xticklabels()[0].get_text()


def test_the_score_figure_counts_all_random_sets(results: Results) -> None:
    figure = figures.score_controls(results.ablate)
    (axes,) = figure.axes
    assert sum(p.get_height() for p in axes.patches[:40]) == 20
    assert labels(axes) == {"random sets", "without the SCU", "undamaged model"} and "20 matched" in all_text(figure)


def test_the_size_figure_marks_what_was_chosen(results: Results) -> None:
    figure = figures.size_choice(results.units)
    assert "SCU: 1% chosen" in labels(figure.axes[0]) and "UCU: 2% chosen (target not reached)" in labels(
        figure.axes[0]
    )
    rings = [line for line in figure.axes[0].lines if line.get_markersize() == 14]
    assert sorted(line.get_xdata()[0] for line in rings) == [0.01, 0.02, 0.2]


def test_the_layer_figure_counts_every_unit(results: Results) -> None:
    figure = figures.units_by_layer(results.units)
    drawn = {axes.get_title(loc="left")[:3].strip(): sum(p.get_height() for p in axes.patches) for axes in figure.axes}
    assert drawn == ROLE_COUNTS


def test_the_scatter_draws_every_unit_rasterised() -> None:
    table = made_up_table()
    figure = figures.score_scatter(table)
    clouds = [c for axes in figure.axes for c in axes.collections]
    assert sum(len(c.get_offsets()) for c in clouds) == table.grid.n_units and all(c.get_rasterized() for c in clouds)
    assert len(figure.axes) == 2 and "wifv" in all_text(figure)


def test_the_freezing_figure_shows_each_seed(results: Results) -> None:
    figure = figures.freezing(results.freeze)
    safety, loss = figure.axes
    assert [round(p.get_height(), 3) for p in safety.patches] == [0.967, 0.525, 0.792, 0.575]
    assert len(loss.lines) == 5 and "n seeds = 2" in all_text(figure).replace("\n", " ")


def test_the_training_figure_has_a_curve_per_run(results: Results) -> None:
    runs = {a.name: a.training for a in results.freeze.arms[:3]}
    (axes,) = figures.training(runs).axes
    assert labels(axes) == {"nothing frozen", "SCU and top CU frozen", "random units frozen"}
    assert axes.get_xlabel() == "optimizer step" and axes.get_ylabel() == "nats per token"


def test_drawing_leaves_global_settings_alone(results: Results) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.behaviour(results.refusal)
    assert dict(matplotlib.rcParams) == before


def test_colours_of_roles_are_all_there() -> None:
    assert set(ROLE_COLOURS) == set(Role)
