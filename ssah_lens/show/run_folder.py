"""A run folder's figures and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ssah_lens.results import FreezeResult, Results, Training, UnitContext
from ssah_lens.show import figures, words
from ssah_lens.show.explorer import explorer
from ssah_lens.show.patch_section import draw_patch
from ssah_lens.show.report import write_report
from ssah_lens.show.style import save_png
from ssah_lens.units import UnitTable

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
    if results.units is not None:
        if results.units.sizes:
            out["size_choice"] = figures.size_choice(results.units)
        out["units_by_layer"] = figures.units_by_layer(results.units)
    if units is not None:
        out["score_scatter"] = figures.score_scatter(units)
    if results.ablate is not None:
        out["roles_ablated"] = figures.roles_ablated(results.ablate)
        for role in words.scored_roles(results.ablate):
            out[f"score_controls_{role.lower()}"] = figures.score_controls(results.ablate, role)
    if results.freeze is not None and results.freeze.arms:
        out["freezing"] = figures.freezing(results.freeze)
        out["training_freeze"] = figures.training(_runs(results.freeze), "Training loss of the benign fine-tuning")
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
    """Writes `out/figures/*.png`, `out/explorer.html` and `out/report.html`, each through a temporary name.

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
    paths = {}
    for name, figure in draw(results, units).items():
        paths[name] = folder / f"{name}.png"
        _whole(paths[name], lambda partial, f=figure: save_png(f, partial))
    if units is not None:
        explorer(units, contexts, title=f"Units of {results.model or 'the model'}").save(out / EXPLORER)
    return write_report(results, paths, provenance, out / "report.html", EXPLORER if units is not None else None)


def _whole(path: Path, write: Callable[[Path], None]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
