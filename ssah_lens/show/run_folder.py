"""A run folder's figures and report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ssah_lens.files import write_whole
from ssah_lens.results import FreezeResult, Results, Training, UnitContext
from ssah_lens.show import figures, proof_figures, tuning_stage_figures, words
from ssah_lens.show.direction_figures import direction_figures
from ssah_lens.show.explorer import explorer
from ssah_lens.show.paper_figures import ablation_beside_paper, freezing_beside_paper
from ssah_lens.show.patch_section import draw_patch
from ssah_lens.show.report import write_report
from ssah_lens.show.style import caption_of, save_png, save_still
from ssah_lens.units import Kind, UnitTable

EXPLORER = "explorer.html"


def draw(results: Results, units: UnitTable | None = None) -> dict[str, Figure]:
    """All figures that the finished stages allow, by name."""
    out: dict[str, Figure] = {}
    if results.align is not None and results.align.training is not None and results.align.training.losses:
        out["training_align"] = figures.training(
            {"alignment": results.align.training}, "Training loss of the alignment"
        )
    if results.refusal is not None:
        out["behaviour"] = figures.behaviour(results.refusal)
    if results.direction is not None:
        out |= direction_figures(results.direction)
    if results.units is not None:
        if results.units.sizes:
            out["size_choice"] = figures.size_choice(results.units)
        out["units_by_layer"] = figures.units_by_layer(results.units)
    if results.scores is not None:
        out["scores_compared"] = proof_figures.scores_compared(results.scores)
    if units is not None:
        out["score_scatter"] = figures.score_scatter(units)
        out["units_by_kind"] = proof_figures.units_by_kind(units)
    if results.stability is not None:
        out["stability"] = proof_figures.stability(results.stability)
    if results.ablate is not None:
        out["roles_ablated"] = figures.roles_ablated(results.ablate)
        out["ablation_beside_paper"] = ablation_beside_paper(results.ablate)
        for role in words.scored_roles(results.ablate):
            out[f"score_controls_{role.lower()}"] = figures.score_controls(results.ablate, role)
        if results.ablate.doses:
            out["dose_response"] = proof_figures.dose_response(results.ablate)
    if results.sufficiency is not None:
        if results.sufficiency.transplants:
            out["transplants"] = proof_figures.transplants(results.sufficiency.transplants)
        out["faithfulness"] = proof_figures.faithfulness(results.sufficiency.faithfulness)
    if results.freeze is not None and results.freeze.arms:
        out["freezing"] = figures.freezing(results.freeze)
        out["training_freeze"] = figures.training(_runs(results.freeze), "Training loss of the benign fine-tuning")
        out["freezing_beside_paper"] = freezing_beside_paper(results.freeze)
    if results.tuning is not None:
        out |= tuning_stage_figures.tuning_figures(results.tuning)
    if results.budget is not None:
        out["budget"] = tuning_stage_figures.budget(results.budget)
    if results.transfer is not None:
        out["transfer"] = tuning_stage_figures.transfer(results.transfer)
    if results.patch is not None:
        out |= draw_patch(results.patch)
    return out


def _runs(result: FreezeResult) -> dict[str, Training]:
    several = len({a.seed for a in result.arms}) > 1
    return {f"{a.name}, seed {a.seed}" if several else a.name: a.training for a in result.arms}


def render(
    results: Results,
    units: UnitTable | None,
    provenance: Mapping,
    out: Path,
    contexts: Sequence[UnitContext] = (),
) -> Path:
    """Writes `out/figures/*` (.png and .svg), `out/explorer.html` and `out/report.html`, each through a temporary name.

    Args:
        results: with their scorecard.
        units: the table behind stage `units`; None where there is none.
        provenance: what `record.json` holds.
        out: the run folder.
        contexts: what units respond to, for the explorer.

    Returns:
        The report's path.
    """
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths, captions = {}, {}
    for name, figure in draw(results, units).items():
        paths[name] = write_whole(folder / f"{name}.png", partial(save_png, figure))
        captions[name] = caption_of(figure)
        figure.set_layout_engine("none")  # laid out already; doing it again costs as much as the drawing
        write_whole(folder / f"{name}.svg", partial(save_still, figure, form="svg"))
    if units is not None:
        title = f"Units of {results.model or 'the model'}"
        explorer(units, contexts, exact_effects(results, units), title).save(out / EXPLORER)
    beside = EXPLORER if units is not None else None
    return write_report(results, paths, provenance, out / "report.html", beside, captions)


def exact_effects(results: Results, units: UnitTable) -> dict[str, dict[Kind, np.ndarray]]:
    """What replacing single units does to the choice, of those that stage `patch` sampled; NaN for the others."""
    if results.patch is None or not results.patch.units:
        return {}
    found = results.patch.units[0]
    out = {k: np.full(np.shape(units.safety[k]), np.nan) for k in Kind}
    for label, effect in zip(found.labels, found.exact, strict=True):
        name, _, place = label.partition(" ")
        kind = Kind.HEAD if name == "head" else Kind.MLP
        layer, index = map(int, place.split("."))
        if layer < units.grid.n_layers and index < units.grid.width(kind):
            out[kind][layer, index] = effect
    return {"exact effect on the choice": out}


def copy_figures(run: Path, folder: Path) -> list[Path]:
    """Copies a run folder's pictures (.png) to another folder, as the README's and the paper's analogues.

    Raises:
        BadInput: the folder cannot be written.
    """
    found = sorted((run / "figures").glob("*.png"))
    return [write_whole(folder / f.name, partial(shutil.copyfile, f)) for f in found]
