"""Tables for people at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ssah_lens.results import (
    ADDED,
    AS_PUBLISHED,
    UNDAMAGED,
    AlignReport,
    DirectionReport,
    FinetuneReport,
    PatchMap,
    UnitsReport,
)
from ssah_lens.show.text import point_interval, printable
from ssah_lens.show.tokens import visible
from ssah_lens.stats import Estimate


def estimate(e: Estimate) -> str:
    """'0.96 [0.90, 0.98]'."""
    return f"{e.value:.2f}" if e.low is None else f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"


def counted(e: Estimate) -> str:
    """'0.96 [0.90, 0.98], n=186'."""
    return f"{estimate(e)}, n={e.n}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table on standard output; cells are never read as markup, nor by the terminal as commands."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(printable(title)), title_justify="left")
    for i, column in enumerate(columns):
        drawn.add_column(Text(printable(column)), overflow="fold", no_wrap=i == 0)  # a name is copied from there
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(drawn)


def print_units(result: UnitsReport) -> None:
    """Roles, how their sizes were chosen, and whether the rule was met."""
    choice = result.choice
    how = lambda r: "the rest" if r not in choice.sizes else "met" if choice.sizes[r].reached else "not met"
    print_table(
        f"Units by {result.score}, in {result.out}",
        ["role", "units", "share of units", "share of parameters", "rule of its size"],
        [[r, str(s.n), f"{s.units:.2%}", f"{s.parameters:.2%}", how(r)] for r, s in result.roles.items()],
    )
    print(f"sizes chosen on n={choice.validation} validation prompts, of which {choice.base_refused:.0%} are refused")
    if any(not size.reached for size in choice.sizes.values()):
        print("where a rule is not met, the role is the candidate that comes nearest without harming the other side")


def print_training(result: AlignReport | FinetuneReport) -> None:
    """Safety and loss before and after a training run."""
    checks = (("before", result.before), ("after", result.after))
    print_table(
        f"saved in {result.out}",
        ["", "harmful refused", "ordinary refused", "validation loss"],
        [
            [
                name,
                counted(c.harmful.refused),
                counted(c.harmless.refused),
                "" if c.validation_loss is None else f"{c.validation_loss:.3f}, n={c.held_out}",
            ]
            for name, c in checks
        ],
    )
    if not isinstance(result, FinetuneReport):
        return
    if result.curve:
        loss = lambda p: "" if p.validation_loss is None else f"{p.validation_loss:.3f}"
        rows = [[str(p.step), f"{p.refused:.2f}", loss(p)] for p in result.curve]
        print_table("during training", ["step", "validation prompts refused", "validation loss"], rows)
    print(f"method: {result.method}, learning rate {result.lr:g}, {result.trained_parameters} parameters trained")
    if result.frozen.parameters:
        share = f"{result.frozen.share:.1%} of block parameters"
        bits = f"bit-identical afterwards (sha256 {result.frozen.sha256[:12]}...)"
        print(f"frozen: {result.frozen.parameters} parameters ({share}), {bits}")


def safety_lost(lost: Estimate) -> str:
    """What fine-tuning did to refusals, in a sentence; a warning only where the whole interval says so."""
    lost_points = f"{point_interval(lost)} (paired, n={lost.n} test prompts)"
    if lost.low is not None and lost.low > 0:
        return f"warning: refusals of harmful prompts fell by {lost_points}; the tuned model is less safe"
    return f"refusals of harmful prompts lost: {lost_points}, so no loss is shown"


def print_direction(result: DirectionReport) -> None:
    """The direction's effects beside random ones, what it reads, interchange by rank, verdicts."""
    rate = lambda side: counted(side.refused) if side else ""
    ablated = f"ablated ({result.direction.ablation})"
    rows = [(UNDAMAGED, result.undamaged), (ablated, result.ablated), (ADDED, result.added)]
    rows += [(s.name, s) for s in result.direction.steered if s.name == AS_PUBLISHED]
    rows += [(f"random direction {name}", s) for name, found in result.controls.items() for s in found]
    print_table(
        f"direction of block {result.layer}, position {result.position}; in {result.out}",
        ["", "harmful refused", "ordinary refused", "KL on ordinary"],
        [[name, rate(s.harmful), rate(s.harmless), counted(s.kl) if s.kl else ""] for name, s in rows],
    )
    auroc = [[name, counted(e)] for name, e in result.auroc.items()]
    print_table("AUROC on unseen prompts", ["read-out", "AUROC"], auroc)
    flips = [[rank, name, counted(e)] for rank, found in result.interchange.items() for name, e in found.items()]
    print_table("Decisions flipped by interchange", ["rank", "basis", "share"], flips)
    print_table("Verdicts", ["", "verdict"], [[h, str(v)] for h, v in result.verdicts.items()])


def strongest_cells(found: PatchMap, n: int = 8) -> list[list[str]]:
    """The cells of a patching map that move the choice most, as rows of a table."""
    import numpy as np

    values = np.array(found.values, dtype=float)
    change = np.abs(np.where(np.isnan(values), 0, values - found.noising))
    rows = []
    for flat in np.argsort(-change, axis=None, kind="stable")[:n]:
        place = np.unravel_index(flat, values.shape)
        names = [found.labels[a][i] for a, i in zip(found.axes, place, strict=True)]
        rows.append([*(visible(name, 40) for name in names), f"{values[place]:.3f}"])
    return rows
